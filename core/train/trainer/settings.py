"""Every setting of a training, with its unit, its bounds and its help.

Recipes are `presets/training/*.toml`.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Annotated, Any

from core.lora.blocks import BLOCKS
from core.schema import limits, presets
from core.schema.bounds import OneOf, Real, Seed, Switch, Whole, format_value
from core.schema.errors import UserError
from core.schema.records import make_record, read_help, record
from core.schema.types import Model
from core.system.device import detect_machine

KINDS = ("LoRA", "DoRA", "LoKr")
TARGETS = ("attention", "attention + feed-forward", "attention + feed-forward + convolution")
OPTIMIZERS = ("AdamW", "AdamW8bit", "Lion8bit", "Adafactor", "Prodigy")
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
)
PRECISIONS = ("float32", "bfloat16", "float16")
LAYOUTS = ("kohya", "diffusers")
MAX_RULES_LENGTH = 1000  # characters
OLD_NAMES = {
    "rate": "learning_rate",
    "text_rate": "text_encoder_lr",
    "warmup": "lr_warmup_steps",
    "clip": "max_grad_norm",
}
"""Former name of a setting -> its name; files and scripts may use either."""


@record
class TrainingSettings:
    """How a LoRA is trained: one file of `presets/training/`.

    The docstrings of its fields are the help that the page shows, each in one line: a long one is
    joined from several strings.
    """

    title: str
    help: str
    """What it is for, in Markdown."""
    kind: Annotated[str, OneOf(KINDS)] = "LoRA"
    """LoRA, DoRA or LoKr."""
    rank: Annotated[int, Whole(*limits.RANK)] = 16
    "Network dim, the columns of each of the two matrices; more can learn more, also what you do not want."
    alpha: Annotated[float, Real(0.01, 1024)] = 8.0
    """Scale = alpha / rank; half of it needs twice the strength."""
    dropout: Annotated[float, Real(0, 0.9)] = 0.0
    """Share of a layer's input that is dropped for the LoRA, 0 to 0.9."""
    targets: Annotated[str, OneOf(TARGETS)] = "attention"
    """Layers to train: attention, + feed-forward, + convolution."""
    ranks: str = ""
    (
        "Ranks per block, such as OUT00=64, OUT01=64; blocks that are not listed are not trained. "
        "Empty: `rank` for all."
    )
    text_encoders: Annotated[bool, Switch()] = False
    """Also train both text encoders."""
    resolution: Annotated[int, Whole(64, 2048, step=8)] = 1024
    """Bucket area: side of a square, in pixels, to whose area an image is scaled."""
    least_side: Annotated[int, Whole(32, 2048, step=8)] = 256
    """Shortest side of a bucket, in pixels."""
    most_side: Annotated[int, Whole(64, 8192, step=8)] = 2048
    """Longest side of a bucket, in pixels."""
    bucket_step: Annotated[int, Whole(8, 256, step=8)] = 64
    """Sides of buckets are multiples of it, in pixels."""
    upscale: Annotated[bool, Switch()] = True
    """Enlarge images that are smaller than the resolution."""
    flip: Annotated[bool, Switch()] = False
    """Mirror half of the images."""
    steps: Annotated[int, Whole(1, 100_000)] = 1000
    """Optimizer steps."""
    batch: Annotated[int, Whole(1, 64)] = 1
    """Images per batch."""
    accumulation: Annotated[int, Whole(1, 256)] = 1
    """Batches whose gradients are added up for one step."""
    learning_rate: Annotated[float, Real(2e-7, 10)] = 1e-4
    """Learning rate of the U-Net."""
    text_encoder_lr: Annotated[float, Real(2e-7, 10)] = 5e-5
    """Learning rate of the text encoders; Prodigy has one rate for everything and uses `learning_rate`."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "AdamW8bit"
    """AdamW, AdamW8bit, Lion8bit, Adafactor or Prodigy."""
    weight_decay: Annotated[float, Real(0, 10)] = 0.01
    """Share of a weight that is removed per unit of learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How long the optimizer remembers gradients and their squares."""
    scheduler: Annotated[str, OneOf(SCHEDULERS)] = "constant"
    """Learning rate schedule, one of diffusers'."""
    lr_warmup_steps: Annotated[int, Whole(0, 100_000)] = 0
    """Steps over which the learning rate rises from 0."""
    cycles: Annotated[int, Whole(1, 1000)] = 1
    """Cycles of cosine_with_restarts."""
    step_rules: str = ""
    """For piecewise_constant: factors up to a step, such as 1:100,0.1:300,0.01."""
    max_grad_norm: Annotated[float, Real(0, 1000)] = 1.0
    """Maximum gradient norm; 0 turns clipping off."""
    min_snr: Annotated[float | None, Real(0.1, 100)] = None
    """Gamma of min-SNR weighting, usually 5: steps with little noise count less. Empty: all count alike."""
    noise_offset: Annotated[float, Real(0, 1)] = 0.0
    """Share of noise that is the same all over an image: darker darks, lighter lights."""
    prior_weight: Annotated[float, Real(0, 10)] = 1.0
    """Weight of a regularisation image relative to a training image."""
    ema: Annotated[float | None, Real(0, 0.9999)] = None
    (
        "Decay of the moving average of the weights, which is saved instead of them, such as 0.99. "
        "Empty: the weights themselves."
    )
    precision: Annotated[str, OneOf(PRECISIONS)] = "bfloat16"
    (
        "Compute precision: float32, bfloat16 or float16; the LoRA itself is kept in float32. "
        "float16 needs a GPU."
    )
    clip_skip: Annotated[int, Whole(1, 2)] = 2
    """2 is SDXL's default, the layer before the text encoders' last; 1 uses the last."""
    shuffle: Annotated[bool, Switch()] = False
    """Shuffle a caption's tags each time."""
    keep_tokens: Annotated[int, Whole(0, 75)] = 0
    """Tags at the start of a caption that stay in place."""
    tag_dropout: Annotated[float, Real(0, 1)] = 0.0
    """Share of tags that are left out at random, different ones each time."""
    caption_dropout: Annotated[float, Real(0, 1)] = 0.0
    """Share of images that are trained without their caption."""
    wildcards: Annotated[bool, Switch()] = False
    """Pick one of {a|b} in a caption, and one line of a caption of several lines."""
    held_out: Annotated[int, Whole(0, 100)] = 0
    """Images held out for validation, not trained on."""
    seed: Annotated[int, Seed(*limits.SEED)] = 42
    """Random seed; the same seed gives the same LoRA."""
    expected_strength: Annotated[float, Real(0.05, limits.STRENGTH[1])] = 1.0
    """Strength at which the LoRA is expected to work; previews show 0, 1 and this one."""
    preview_every: Annotated[int, Whole(0, 100_000)] = 200
    """Steps between previews; 0 turns them off."""
    save_every: Annotated[int, Whole(1, 100_000)] = 200
    """Steps between saved LoRAs; the last one is always saved."""
    layout: Annotated[str, OneOf(LAYOUTS)] = "kohya"
    """File layout: kohya, which all programs read, or diffusers."""

    @property
    def total_batch_size(self) -> int:
        """Images for one optimizer step."""
        return self.batch * self.accumulation

    @property
    def effective_text_encoder_lr(self) -> float:
        """The learning rate of the text encoders.

        With Prodigy it is `learning_rate`: Prodigy finds one rate for all that it trains, and refuses a
        second.
        """
        return self.learning_rate if self.optimizer == "Prodigy" else self.text_encoder_lr

    @property
    def block_ranks(self) -> dict[str, int]:
        """Block -> rank; empty for all blocks alike."""
        return {
            name: int(number)
            for name, _, number in (
                part.strip().partition("=") for part in self.ranks.split(",") if part.strip()
            )
        }


OPTIONAL_SETTINGS = {field.name for field in fields(TrainingSettings) if field.default is None}  # type: ignore[arg-type]
"""Settings that `None` turns off."""


@cache
def read_field_help() -> dict[str, str]:
    """Return field -> the help below it in `TrainingSettings`."""
    return {name: help for name, help in read_help(TrainingSettings).items() if name not in ("title", "help")}


@cache
def load_recipes() -> dict[str, dict[str, Any]]:
    """Return the checked tables of `presets/training/` by name; nano's come first."""
    files = sorted(
        (presets.PRESETS_FOLDER / "training").glob("*.toml"),
        key=lambda file: (not file.stem.startswith("nano"), file.stem),
    )
    tables = {file.stem: presets.read_preset_toml(file) for file in files if file.stem != "example_run"}
    for name, table in tables.items():
        for small in (False, True):
            _build_settings(name, table, small)
    return tables


def resolve_settings(name: Any, model: Model, overrides: Mapping[str, Any] | None = None) -> TrainingSettings:
    """Return the settings of a recipe for a model, with overrides.

    For a model of nano's size, the recipe's `[nano]` table takes precedence. Raises `UserError` for
    a name, a field or a value that is not allowed.
    """
    if not isinstance(name, str) or name not in load_recipes():
        raise UserError("recipe", f"{str(name)[:40]!r} is unknown. Use one of: {', '.join(load_recipes())}.")
    made = _build_settings(name, load_recipes()[name], model.is_nano)
    return override_settings(made, overrides or {})


def override_settings(settings: TrainingSettings, overrides: Mapping[str, Any]) -> TrainingSettings:
    """Return the settings with some of them changed by name.

    Raises `UserError` for a name or a value that is not allowed.
    """
    changed = change_settings(settings, overrides)
    check_settings(changed, "overrides")
    return changed


def change_settings(settings: TrainingSettings, overrides: Any) -> TrainingSettings:
    """Return the settings with some of them changed, each checked by itself alone.

    `None` turns off what can be off, such as `ema`, and leaves any other setting as it is. Raises
    `UserError` for anything but a table of settings, and for a value that is not allowed.
    """
    if not isinstance(overrides, Mapping):
        raise UserError("overrides", 'use a table of settings such as {"rank": 8}.')
    given = replace_old_names(overrides, "overrides")
    known = {field.name for field in fields(TrainingSettings)} - {"title", "help"}
    if unknown := [str(name)[:40] for name in given if name not in known]:
        raise UserError(
            "overrides", f"{unknown[0]!r} is not a setting; the settings are {', '.join(sorted(known))}."
        )
    values = vars(settings) | {
        name: value for name, value in given.items() if value is not None or name in OPTIONAL_SETTINGS
    }
    return make_record(
        TrainingSettings, {name: value for name, value in values.items() if value is not None}, "overrides"
    )


def _build_settings(name: str, table: Mapping[str, Any], is_nano: bool) -> TrainingSettings:
    where = f"training/{name}.toml"
    values, own = {key: value for key, value in table.items() if key != "nano"}, table.get("nano", {})
    if not isinstance(own, Mapping):
        raise UserError(where, f"nano: {format_value(own)} is not a table; begin it with [nano].")
    values = replace_old_names(values, where) | replace_old_names(own if is_nano else {}, where)
    settings = make_record(TrainingSettings, values, where)
    check_settings(settings, where)
    return settings


def replace_old_names(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return settings by their present names.

    Raises `UserError` for the field `source` where a setting stands under both.
    """
    for old, new in OLD_NAMES.items():
        if old in table and new in table:
            raise UserError(source, f"{old!r} is the old name of {new!r}; give one of them.")
    return {OLD_NAMES.get(name, name): value for name, value in table.items()}


def check_settings(settings: TrainingSettings, source: str) -> None:
    """Raise `UserError` for the first setting that is not allowed."""
    if not all(0 <= beta < 1 for beta in settings.betas):
        pair = format_value(settings.betas)
        raise UserError(source, f"betas: {pair} is not valid. Use two numbers from 0 to less than 1.")
    given: set[str] = set()
    for part in (part.strip() for part in settings.ranks.split(",") if part.strip()):
        match = re.fullmatch(r"([A-Z0-9]+)=([0-9]{1,3})", part)
        if (
            not match
            or match[1] not in BLOCKS
            or match[1] in ("BASE", *given)
            or not 1 <= int(match[2]) <= limits.RANK[1]
        ):
            raise UserError(
                source,
                f"ranks: {part[:40]!r} is not valid. Use pairs such as OUT00=8, each block once; the blocks "
                f"are {', '.join(list(BLOCKS)[1:])}.",
            )
        given.add(match[1])
    if settings.ranks.strip() and not given:
        raise UserError(source, f"ranks: {settings.ranks[:40]!r} names no block. Use pairs such as OUT00=8.")
    if (settings.scheduler == "piecewise_constant") != bool(settings.step_rules):
        raise UserError(
            source,
            f"step_rules: {settings.step_rules[:40]!r} is not valid. piecewise_constant takes 1:100,0.1; "
            "other schedulers take none.",
        )
    if settings.step_rules and not _are_step_rules(settings.step_rules):
        raise UserError(
            source,
            f"step_rules: {settings.step_rules[:40]!r} is not valid. "
            "Use factors up to a step, the steps rising, such as 1:100,0.1:300,0.01.",
        )
    if settings.kind == "LoKr" and settings.layout == "diffusers":
        raise UserError(
            source, "layout: 'diffusers' has no LoKr. Use kohya, in which LyCORIS and Sweetspot read it."
        )
    if settings.text_encoders and settings.ranks:
        raise UserError(source, "ranks: they are for blocks of the U-Net; turn text_encoders off.")


def _are_step_rules(text: str) -> bool:
    """Whether diffusers' piecewise_constant can follow the rules as they are meant."""
    factor = r"(?:[0-9]{1,6}\.?[0-9]{0,9}|\.[0-9]{1,9})"
    steps = [int(step) for step in re.findall(r":([0-9]+)", text[:MAX_RULES_LENGTH])]
    fits = re.fullmatch(rf"(?:{factor}:[0-9]{{1,6}},)*{factor}", text)
    return len(text) <= MAX_RULES_LENGTH and bool(fits) and steps == sorted(set(steps))


def fit_to_machine(settings: TrainingSettings) -> tuple[TrainingSettings, list[str]]:
    """Return the settings as this machine can follow them, and a sentence for each change."""
    if detect_machine().device == "cpu" and settings.precision == "float16":
        return replace(settings, precision="float32"), [
            "precision: a CPU computes in float32 here; float16 is for GPUs."
        ]
    return settings, []
