"""What a person filled in for a transfer study -> its plan; what is not allowed is said in one sentence before any work."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import limits, lora, models, presets, shelf
from core.blocks import BLOCKS, block_of
from core.data import dataset as datasets
from core.lorafile import LoraFile
from core.plan import neutral
from core.plan import plan as sweep_plan
from core.train import run as runs
from core.train.folder import Folder
from core.train.preview import called
from core.types import LoraUse, Row, Transfer, UserError

STRENGTHS = "0.65, 1"
"""As 'A Certain Theory for LoRA Transfer' shows its pictures."""
OWN_SWEEP = "0-3.5 (+0.5)"
"""Strengths by which each pair's own sweet spot is found."""
SEEDS = "1-3"
PROMPTS = 3
"""Of the preset's neutral ones."""


def plan(values: Mapping[str, Any]) -> Transfer:
    """The study that is asked for.

    `loras` is a list of tables with `lora` (a path) and, where they are known, `name`, `home`, `blocks`, `references` and
    `data`; `models` a list of names. `strengths`, `prompts`, `seeds`, `references`, `eye` and `preset` are as a sweep takes
    them, `clip_skip` is 2 or 1. Whatever is not said is the preset's. Raises `UserError` beginning with the field's name.
    """
    tables = values.get("loras")
    if not isinstance(tables, list | tuple) or not tables:
        raise UserError("loras: choose at least one.")
    if len(tables) > limits.ROWS:
        raise UserError(f"loras: {len(tables)} are too many; it takes up to {limits.ROWS}.")
    names = _models(values.get("models"))
    preset = values.get("preset") or _preset(names[0])
    prompts = values.get("prompts") or [called(prompt, _trigger(tables)) for prompt in _neutral(preset)]
    shared = {name: values.get(name) for name in ("seeds", "references", "eye")} | {"preset": preset, "prompts": prompts}
    shared["seeds"] = shared["seeds"] or SEEDS
    rows, common = [], None
    for table in tables:
        row = _row(table)
        common = sweep_plan({**shared, "lora": row.lora.path, "strengths": values.get("strengths") or STRENGTHS})
        named = row.name
        while any(other.name == named for other in rows):  # two files of one name
            named = f"{row.name} ({sum(other.name.startswith(row.name) for other in rows) + 1})"
        rows.append(replace(row, name=named, references=common.references or row.references))
    assert common is not None
    pictures = len(common.prompts) * len(common.seeds) * len(names) * (1 + len(rows) * (len(common.strengths) - 1))
    if pictures > limits.TRANSFER_CELLS:
        raise UserError(
            f"strengths: {len(rows)} LoRAs x {len(names)} models x {len(common.strengths) - 1} strengths x {len(common.prompts)} prompts x "
            f"{len(common.seeds)} seeds are {pictures:,} pictures with those of strength 0; up to {limits.TRANSFER_CELLS:,}."
        )
    settings = replace(common.settings, clip_skip=values.get("clip_skip") or 2)
    if problem := limits.problems({"clip_skip": settings.clip_skip}):
        raise UserError(problem["clip_skip"])
    axes = {"prompts": common.prompts, "seeds": common.seeds, "strengths": common.strengths, "eye": common.eye}
    return Transfer(rows=tuple(rows), models=tuple(names), settings=settings, **axes)


def of_run(folder: Folder) -> list[dict[str, Any]]:
    """The LoRAs of a run, the last one last, as `plan` takes them."""
    run, data = runs.read(folder), datasets.load(folder.dataset)
    own = [str(folder.dataset / sample.file) for sample in data.samples if not sample.regularisation][: limits.REFERENCES]
    files = sorted(folder.loras.glob("*.safetensors"), key=lambda file: (file.stem == run.name, file.stem))
    return [
        {"lora": str(file), "name": f"{file.stem} on {run.model}", "home": run.model, "references": own, "data": run.fingerprint, "trigger": run.trigger}
        for file in files
    ]


def apart(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same LoRA once for each of its blocks, as `plan` takes it: which of them carry style, and which content."""
    found = lora.file(str(table["lora"]))
    blocks = {"BASE" if module.component != "unet" else block_of(module.name) for module in found.modules}
    name = table.get("name") or Path(str(table["lora"])).stem
    return [{**table, "name": f"{name}: {block}", "blocks": ",".join(str(int(block == other)) for other in BLOCKS)} for block in BLOCKS if block in blocks]


def home(found: LoraFile) -> str | None:
    """The model of the table that a file says it was trained on."""
    said = shelf.slug(Path(found.metadata.get("ss_sd_model_name", "")).stem).lower()
    for model in presets.models().values():
        if said and said in (shelf.slug(model.name).lower(), shelf.slug(Path(model.source).stem).lower()):
            return model.name
    return None


def _row(table: Any) -> Row:
    if not isinstance(table, Mapping) or not table.get("lora"):
        raise UserError("loras: it takes LoRAs, or tables such as {'lora': 'name', 'home': 'nano'}.")
    path = str(table["lora"])
    found = lora.file(path)
    own = table.get("home") or home(found)
    own = models.named("home", own).name if own is not None else None
    blocks = table.get("blocks") or None
    shelf.checked([LoraUse(path=path, blocks=blocks)])
    data = table.get("data") or _data(found)
    named = str(table.get("name") or Path(path).stem)[:80]
    return Row(name=named, lora=LoraUse(path=path, blocks=blocks), home=own, references=tuple(table.get("references") or ()), data=data)


def _data(found: LoraFile) -> str | None:
    """What tells the training sets of two files apart, as far as kohya's metadata do."""
    told = "".join(found.metadata.get(key, "") for key in ("ss_dataset_dirs", "ss_tag_frequency"))
    return hashlib.sha256(told.encode()).hexdigest() if told else None


def _models(said: Any) -> list[str]:
    names = said.split("\n") if isinstance(said, str) else said
    if not isinstance(names, list | tuple) or not [name for name in names if str(name).strip()]:
        raise UserError("models: choose at least one.")
    found = list(dict.fromkeys(models.find(str(name).strip()).name for name in names if str(name).strip()))
    if len(found) > limits.COLUMNS:
        raise UserError(f"models: {len(found)} are too many; it takes up to {limits.COLUMNS}.")
    return found


def _preset(model: str) -> str:
    """The preset by whose settings all pictures are made: the first model's."""
    return next((recipe.name for recipe in presets.recipes().values() if recipe.model == model), "nano")


def _trigger(tables: Sequence[Any]) -> str:
    """The words that call all of the LoRAs; none if they are called by different ones, as all pictures of a base share one prompt."""
    said = {table.get("trigger", lora.file(str(table["lora"])).trigger) for table in tables if isinstance(table, Mapping) and table.get("lora")}
    return said.pop() or "" if len(said) == 1 else ""


def _neutral(preset: str) -> tuple[str, ...]:
    if preset not in presets.recipes():
        raise UserError(f"preset: {str(preset)[:40]!r} is unknown; it takes {', '.join(presets.recipes())}.")
    return neutral(presets.recipes()[preset])[:PROMPTS]
