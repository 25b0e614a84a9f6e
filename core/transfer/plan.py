"""Turn the form of a transfer study into its plan.

Whatever is not allowed becomes a `UserError` with one sentence, before any work starts.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from core.dataset import dataset as datasets
from core.generate.features import VAE
from core.lora import apply as lora
from core.lora.blocks import BLOCKS, find_block
from core.lora.file import LoraFile
from core.models import bases, lora_library
from core.models.preset_match import find_preset
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.schema import limits, presets
from core.schema.bounds import Whole, format_value
from core.schema.errors import UserError
from core.schema.records import record
from core.schema.types import LoraUse, Request
from core.sweep.plan import SweepForm, plan_sweep, read_numbers
from core.sweep.strengths import FIRST_STRENGTHS
from core.train.trainer import run_record
from core.train.trainer.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TransferLora:
    """A LoRA of a transfer study."""

    name: str
    lora: LoraUse
    """The LoRA itself; its strength is ignored."""
    home_model: str | None = None
    """The model that the LoRA was trained on; `None` if it is unknown."""
    references: tuple[str, ...] = ()
    """Files of the pictures that the LoRA was trained on."""
    training_set: str | None = None
    """What tells one training set from another; LoRAs of the same set can be compared."""


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """Several LoRAs, each on several base models."""

    loras: tuple[TransferLora, ...]
    models: tuple[str, ...]
    settings: Request
    """What all pictures share; its model, prompt, seed and LoRAs are ignored."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    """Those that every pair begins with, in rising order, including 0; empty where a probe finds each
    pair's own."""
    limit: float
    """The greatest strength, of either sign, to which a pair may go."""
    added_models: tuple[str, ...] = ()
    """Those of `models` that nobody chose: the home models of the LoRAs."""
    feature_extractor: str = "VAE"


DEFAULT_STRENGTHS = "0.5, 0.7, 1"
"""Strengths that a pair begins with; it goes on as far as its verdict needs."""
SWEET_SPOT_STRENGTHS = "auto"
"""Strengths over which each pair's own sweet spot is found: by a probe."""
DEFAULT_SEEDS = "1, 2"
MAX_NEUTRAL_PROMPTS = 8
"""How many of the preset's neutral prompts a study uses when none are given: enough for a verdict."""


@record
class TransferEntry:
    """A LoRA as a person names it for a study; `None` stands for what the LoRA's file tells."""

    lora: str
    """The path of the LoRA."""
    name: str | None = None
    home: str | None = None
    """The model that the LoRA was trained on."""
    blocks: str | None = None
    """The value of `lbw=`, such as 12 weights or `STYLE`."""
    references: tuple[str, ...] = ()
    """Files of the images that the LoRA was trained on."""
    data: str | None = None
    """What tells the LoRA's training set from others."""
    trigger: str | None = None


@record
class TransferForm:
    """What a person asks of a transfer study; `None` stands for the default or the preset's."""

    loras: Any
    """`TransferEntry` records."""
    models: Any
    """Names of base models, in a list or one per line."""
    strengths: Any = DEFAULT_STRENGTHS
    prompts: Any = None
    seeds: Any = DEFAULT_SEEDS
    references: Any = None
    clip_skip: Annotated[int, Whole(1, 2)] = 2
    feature_extractor: str = VAE
    preset: str | None = None
    """`None` for the preset of the first model."""


def plan_transfer(form: TransferForm) -> TransferPlan:
    """Plan the study that a form asks for. Raises `UserError` for whatever is not allowed."""
    if not isinstance(form.loras, list | tuple) or not form.loras:
        raise UserError("loras", "choose at least one LoRA.")
    if len(form.loras) > limits.TRANSFER_LORAS:
        raise UserError("loras", f"{len(form.loras)} are too many; the limit is {limits.TRANSFER_LORAS}.")
    entries = [_read_entry(each) for each in form.loras]
    names = _parse_models(form.models)
    preset = form.preset or find_preset(names[0]).name
    trigger = _find_common_trigger(entries)
    prompts = form.prompts
    if prompts is None or prompts == [] or (isinstance(prompts, str) and not prompts.strip()):
        prompts = [insert_trigger(prompt, trigger) for prompt in _list_default_prompts(preset)]
    rows, common = [], None
    for entry in entries:
        row = _build_row(entry)
        common = plan_sweep(
            SweepForm(
                lora=row.lora.path,
                preset=preset,
                prompts=prompts,
                seeds=read_numbers(form.seeds, DEFAULT_SEEDS),
                strengths=read_numbers(form.strengths, DEFAULT_STRENGTHS),
                references=form.references,
                feature_extractor=form.feature_extractor,
            )
        )
        name = row.name
        while any(other.name == name for other in rows):  # two files of one name
            name = f"{row.name} ({sum(other.name.startswith(row.name) for other in rows) + 1})"
        rows.append(replace(row, name=name, references=common.references or row.references))
    assert common is not None
    chosen = tuple(names)
    names += [home for home in dict.fromkeys(row.home_model for row in rows) if home and home not in names]
    if len(names) > limits.TRANSFER_MODELS:
        raise UserError(
            "models",
            f"{len(names)} with the home models of the LoRAs are too many; "
            f"the limit is {limits.TRANSFER_MODELS}.",
        )
    strengths = (len(common.strengths) or FIRST_STRENGTHS) - 1  # 0 is made once for all LoRAs
    pictures = len(common.prompts) * len(common.seeds) * len(names) * (1 + len(rows) * strengths)
    if pictures > limits.TRANSFER_CELLS:
        raise UserError(
            "strengths",
            f"{len(rows)} LoRAs x {len(names)} models x {strengths} strengths x "
            f"{len(common.prompts)} prompts x {len(common.seeds)} seeds are {pictures:,} images "
            "including those of strength 0; "
            f"the limit is {limits.TRANSFER_CELLS:,}.",
        )
    return TransferPlan(
        loras=tuple(rows),
        models=tuple(names),
        settings=replace(common.settings, clip_skip=form.clip_skip),
        prompts=common.prompts,
        seeds=common.seeds,
        strengths=common.strengths,
        limit=common.limit,
        added_models=tuple(names[len(chosen) :]),
        feature_extractor=common.feature_extractor,
    )


def list_run_loras(folder: RunFolder) -> list[TransferEntry]:
    """Return the LoRAs that a run has kept, the final one last."""
    run, data = run_record.read_run(folder), datasets.load_dataset(folder.dataset)
    own = [str(folder.dataset / sample.file) for sample in data.samples if not sample.regularisation]
    files = sorted(folder.loras.glob("*.safetensors"), key=lambda file: (file.stem == run.name, file.stem))
    return [
        TransferEntry(
            lora=str(file),
            name=f"{file.stem} on {run.model}",
            home=run.model,
            references=tuple(own[: limits.REFERENCES]),
            data=run.fingerprint,
            trigger=run.trigger,
        )
        for file in files
    ]


def split_by_block(entry: TransferEntry) -> list[TransferEntry]:
    """Return one entry for each block of a LoRA, to see which carry style and which content."""
    found = lora.get_lora_file(entry.lora)
    blocks = {"BASE" if module.component != "unet" else find_block(module.name) for module in found.modules}
    name = entry.name or Path(entry.lora).stem
    return [
        replace(entry, name=f"{name}: {block}", blocks=",".join(str(int(block == other)) for other in BLOCKS))
        for block in BLOCKS
        if block in blocks
    ]


def find_home_model(found: LoraFile) -> str | None:
    """Return the name of the model that a file says it was trained on.

    PEFT's settings say it, then kohya's metadata: a Hub id, or the file's name as trainers had it. `None` if
    neither does, or the model is not in `presets/models.toml`.
    """
    told = (found.base, found.metadata.get("ss_sd_model_name", ""))
    for said in (_simplify_model_name(name) for name in told):
        for model in presets.get_models().values():
            known = (model.name, model.source, model.file or "", *model.file_names)
            if said and said in map(_simplify_model_name, known):
                return model.name
    return None


def _simplify_model_name(name: str) -> str:
    """Return the last part of a path or Hub id in small letters and digits, without a weights' ending."""
    last = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9.]+", "", re.sub(r"\.(safetensors|ckpt)$", "", last.lower()))


def _read_entry(value: Any) -> TransferEntry:
    if isinstance(value, TransferEntry):
        return value
    if not isinstance(value, Mapping) or not value.get("lora"):
        raise UserError("loras", "use LoRAs, or tables such as {'lora': 'name', 'home': 'nano'}.")
    return TransferEntry(**{**value, "references": tuple(value.get("references") or ())})


def _build_row(entry: TransferEntry) -> TransferLora:
    found = lora.get_lora_file(entry.lora)
    home = entry.home or find_home_model(found)
    blocks = entry.blocks or None
    lora_library.check_loras([LoraUse(path=entry.lora, blocks=blocks)])
    return TransferLora(
        name=(entry.name or Path(entry.lora).stem)[:80],
        lora=LoraUse(path=entry.lora, blocks=blocks),
        home_model=bases.find_model_for_field("home", home).name if home is not None else None,
        references=entry.references,
        training_set=entry.data or _hash_training_set(found),
    )


def _hash_training_set(found: LoraFile) -> str | None:
    """Return a hash of kohya's metadata about a training set; `None` if there are none."""
    told = "".join(found.metadata.get(key, "") for key in ("ss_dataset_dirs", "ss_tag_frequency"))
    return hashlib.sha256(told.encode()).hexdigest() if told else None


def _parse_models(value: Any) -> list[str]:
    names = value.split("\n") if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise UserError("models", f"{format_value(names)} is not a list of models.")
    given = [name.strip() if isinstance(name, str) else name for name in names]
    if not any(given):
        raise UserError("models", "choose at least one model.")
    known = (bases.find_model_for_field("models", name).name for name in given if name != "")
    found = list(dict.fromkeys(known))
    if len(found) > limits.TRANSFER_MODELS:
        raise UserError("models", f"{len(found)} are too many; the limit is {limits.TRANSFER_MODELS}.")
    return found


def _find_common_trigger(entries: Sequence[TransferEntry]) -> str:
    """Return the trigger that all LoRAs share.

    It is empty where they differ, since all images of a base model share their prompts.
    """
    triggers = {
        lora.get_lora_file(entry.lora).trigger if entry.trigger is None else entry.trigger
        for entry in entries
    }
    return triggers.pop() or "" if len(triggers) == 1 else ""


def _list_default_prompts(preset: str) -> tuple[str, ...]:
    return compose_neutral_prompts(presets.get_prompt_preset(preset))[:MAX_NEUTRAL_PROMPTS]
