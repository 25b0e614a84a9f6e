"""Every number of a training, with its unit, its bounds and its help; recipes are `presets/training/*.toml`."""

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
from typing import Any

from core import limits, presets
from core.blocks import BLOCKS
from core.device import this_machine
from core.types import Model, UserError

KINDS = ("LoRA", "DoRA", "LoKr")
TARGETS = ("attention", "attention + feed-forward", "attention + feed-forward + convolution")
OPTIMIZERS = ("AdamW", "AdamW8bit", "Lion8bit", "Adafactor", "Prodigy")
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant")
PRECISIONS = ("float32", "bfloat16", "float16")
LAYOUTS = ("kohya", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a LoRA is trained: one file of `presets/training/`."""

    title: str
    help: str
    """What it is for, in Markdown."""
    kind: str = "LoRA"
    """LoRA, DoRA or LoKr."""
    rank: int = 16
    """Columns of each of the two matrices; more can learn more, and more of what is not wanted."""
    alpha: float = 8.0
    """The change is multiplied by alpha / rank: half of it needs twice the strength."""
    dropout: float = 0.0
    """Share of a layer's input that the LoRA does not see, 0 to 0.9."""
    targets: str = "attention"
    """Layers that are changed: attention, + feed-forward, + convolution."""
    ranks: str = ""
    """Ranks block by block, such as OUT00=64, OUT01=64; blocks that are not named are not trained. Empty: `rank` for all."""
    text_encoders: bool = False
    """Whether both text encoders are trained, too."""
    resolution: int = 1024
    """Pixels: a picture is scaled to about the area of a square of this side."""
    least_side: int = 256
    """Pixels: the shortest side of a bucket."""
    most_side: int = 2048
    """Pixels: the longest side of a bucket."""
    bucket_step: int = 64
    """Pixels: sides of buckets are multiples of it."""
    upscale: bool = True
    """Whether pictures smaller than the resolution are enlarged."""
    flip: bool = False
    """Whether half of the pictures are seen mirrored."""
    steps: int = 1000
    """Times that the weights are changed."""
    batch: int = 1
    """Pictures that go through the model together."""
    accumulation: int = 1
    """Batches whose gradients are added up for one step."""
    rate: float = 1e-4
    """Learning rate of the U-Net."""
    text_rate: float = 5e-5
    """Learning rate of the text encoders; Prodigy, which has one rate for all, takes `rate`."""
    optimizer: str = "AdamW8bit"
    """AdamW, AdamW8bit, Lion8bit, Adafactor or Prodigy."""
    weight_decay: float = 0.01
    """Share of a weight that is taken away for each unit of rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How long the optimiser remembers gradients and their squares."""
    scheduler: str = "constant"
    """How the rate goes over the steps: one of diffusers'."""
    warmup: int = 0
    """Steps over which the rate rises from 0."""
    cycles: int = 1
    """Of cosine_with_restarts: how often it begins anew."""
    step_rules: str = ""
    """Of piecewise_constant: factors up to a step, such as 1:100,0.1:300,0.01."""
    clip: float = 1.0
    """Longest gradient that is not shortened; 0 shortens none."""
    min_snr: float | None = None
    """Gamma of min-SNR weighting, usually 5: steps with little noise count less. Empty: all count alike."""
    noise_offset: float = 0.0
    """Share of noise that is the same all over a picture: darker darks, lighter lights."""
    prior_weight: float = 1.0
    """What a regularisation picture counts beside a picture of the training set."""
    ema: float | None = None
    """Decay of the running mean of the weights that is saved instead of them, such as 0.99. Empty: the weights themselves."""
    precision: str = "bfloat16"
    """What is computed in: float32, bfloat16 or float16; the LoRA itself is kept in float32. float16 needs a GPU."""
    clip_skip: int = 2
    """2: the layer before the text encoders' last, as SDXL is made; 1: the last."""
    shuffle: bool = False
    """Whether a caption's tags are seen in another order each time."""
    keep_tokens: int = 0
    """Tags at the start of a caption that stay where they are."""
    tag_dropout: float = 0.0
    """Share of tags that are left out, each time others."""
    caption_dropout: float = 0.0
    """Share of pictures that are seen without their caption."""
    wildcards: bool = False
    """Whether {a|b} in a caption is one of them, and a caption of several lines one line."""
    held_out: int = 0
    """Pictures that are not trained on, but measured against."""
    seed: int = 42
    """Of everything that is left to chance; the same seed, the same LoRA."""
    expected_strength: float = 1.0
    """At which the LoRA is expected to work; previews show it at 0, 1 and this."""
    preview_every: int = 200
    """Steps between previews; 0 makes none."""
    save_every: int = 200
    """Steps between LoRAs that are kept; the last is always."""
    layout: str = "kohya"
    """kohya, which all programs read, or diffusers."""

    @property
    def pictures_a_step(self) -> int:
        return self.batch * self.accumulation

    @property
    def own_text_rate(self) -> float:
        """The rate at which the text encoders are trained: Prodigy finds one for all that it trains, and refuses a second."""
        return self.rate if self.optimizer == "Prodigy" else self.text_rate

    @property
    def block_ranks(self) -> dict[str, int]:
        """Block -> rank; empty for all blocks alike."""
        return {name: int(number) for name, _, number in (part.strip().partition("=") for part in self.ranks.split(",") if part.strip())}


@cache
def explained() -> dict[str, str]:
    """Field -> the line of help that stands under it in `Training`."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(Training)).body if isinstance(node, ast.ClassDef))
    pairs = pairwise(body)
    return {
        a.target.id: ast.literal_eval(b.value) for a, b in pairs if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name) and isinstance(b, ast.Expr)
    }


@cache
def recipes() -> dict[str, dict[str, Any]]:
    """The tables of `presets/training/` by name, checked; nano's comes first."""
    files = sorted((presets.FOLDER / "training").glob("*.toml"), key=lambda file: (not file.stem.startswith("nano"), file.stem))
    tables = {file.stem: presets.read_toml(file) for file in files if file.stem != "example_run"}
    for name, table in tables.items():
        for small in (False, True):
            _made(name, table, small)
    return tables


def settings(name: str, model: Model, overrides: Mapping[str, Any] | None = None) -> Training:
    """A recipe's settings for a model: those of its `[nano]` table for one of nano's size; then what is overridden.

    Raises `UserError` for a name, a field or a value that is not allowed.
    """
    if name not in recipes():
        raise UserError(f"recipe: {str(name)[:40]!r} is unknown; it takes {', '.join(recipes())}.")
    made = _made(name, recipes()[name], model.native_size == 128)
    return overridden(made, overrides or {})


def overridden(made: Training, overrides: Mapping[str, Any]) -> Training:
    """The settings with some of them changed by name. Raises `UserError`."""
    if not isinstance(overrides, Mapping):
        raise UserError('overrides: it takes a table of settings, such as {"rank": 8}.')
    known = {field.name for field in fields(Training)} - {"title", "help"}
    if unknown := [str(name)[:40] for name in overrides if name not in known]:
        raise UserError(f"overrides: {unknown[0]!r} is not a setting; the settings are {', '.join(sorted(known))}.")
    values = {**asdict(made), **overrides}  # `None`, which TOML does not have, is what a field that may be off falls back to
    changed = presets.record(Training, {name: _plain(name, value) for name, value in values.items() if value is not None}, "overrides")
    check(changed, "overrides")
    return changed


def _plain(name: str, value: Any) -> Any:
    """What JSON gives, as the record keeps it: 8.0 is 8 where a whole number is asked for; pairs are lists."""
    if isinstance(value, tuple):
        return list(value)
    whole = {field.name for field in fields(Training) if field.type is int}
    return int(value) if name in whole and isinstance(value, float) and value.is_integer() else value


def _made(name: str, table: Mapping[str, Any], small: bool) -> Training:
    where = f"training/{name}.toml"
    plain = {key: value for key, value in table.items() if key != "nano"}
    made = presets.record(Training, {**plain, **(table.get("nano", {}) if small else {})}, where)
    check(made, where)
    return made


def check(made: Training, where: str) -> None:
    """Raise `UserError` with the first setting that is not allowed."""
    choices = {"kind": KINDS, "targets": TARGETS, "optimizer": OPTIMIZERS, "scheduler": SCHEDULERS, "precision": PRECISIONS, "layout": LAYOUTS}
    for name, allowed in choices.items():
        if getattr(made, name) not in allowed:
            raise UserError(f"{where}: {name}: {str(getattr(made, name))[:40]!r} is unknown; it takes {', '.join(allowed)}.")
    for name, problem in limits.training_problems(vars(made)).items():
        raise UserError(f"{where}: {problem}" if name else problem)
    for part in (part.strip() for part in made.ranks.split(",") if part.strip()):
        match = re.fullmatch(r"([A-Z0-9]+)=(\d{1,3})", part)
        if not match or match[1] not in BLOCKS or match[1] == "BASE" or not 1 <= int(match[2]) <= limits.RANK[1]:
            raise UserError(f"{where}: ranks: {part[:40]!r} is not allowed; it takes OUT00=8, of {', '.join(list(BLOCKS)[1:])}.")
    if (made.scheduler == "piecewise_constant") != bool(made.step_rules):
        raise UserError(f"{where}: step_rules: {made.step_rules[:40]!r} is not allowed; piecewise_constant takes 1:100,0.1, and no other scheduler takes any.")
    if made.step_rules and not re.fullmatch(r"([0-9.]+:\d+,)*[0-9.]+", made.step_rules):
        raise UserError(f"{where}: step_rules: {made.step_rules[:40]!r} is not allowed; it takes a factor up to a step, such as 1:100,0.1:300,0.01.")
    if made.kind == "LoKr" and made.layout == "diffusers":
        raise UserError(f"{where}: layout: 'diffusers' has no LoKr; it takes kohya, in which LyCORIS and the studio read it.")
    if made.text_encoders and made.ranks:
        raise UserError(f"{where}: ranks: they are for blocks of the U-Net; switch text_encoders off.")


def fitted(made: Training) -> tuple[Training, list[str]]:
    """The settings as this machine can follow them, and what was changed, said."""
    if this_machine().device == "cpu" and made.precision == "float16":
        return replace(made, precision="float32"), ["precision: a CPU computes in float32 here; float16 is for GPUs."]
    return made, []
