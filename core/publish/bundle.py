"""The files of a publication, by their paths in the repository: LoRA, sidecar, card, pictures, reports."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core import cells, charts, edit, record
from core.atomic import filling, placed
from core.digest import content
from core.publish.card import card
from core.publish.plan import Publication

PRIVATE = re.compile(r"(?:^|[\"'\s=(])(?:/(?:home|root|Users|mnt|media|workspace|content|kaggle)/|[A-Za-z]:[\\/]|\\\\)|hf_[A-Za-z0-9]{20}")
"""A path of somebody's machine, or a token."""
STRENGTHS = 12
"""Pictures in the strip from 0 to breakdown."""


def bundle(publication: Publication, folder: Path) -> dict[str, Path]:
    """Write all of them below `folder`; path in the repository -> file. Nothing that they hold names a machine or a person."""
    p, files = publication, dict[str, Path]()
    best = p.sweeps[0] if p.sweeps else None
    with filling(folder):
        made = edit.edited(p.file, folder / "made", hint=edit.hint(best) if best else None, metadata=_told(p))
        files[p.name] = _at(folder, p.name)
        made.replace(files[p.name])
        if best:
            beside = edit.sidecar(p.file, best) | {"activation text": p.trigger}
            files[f"{p.name.removesuffix('.safetensors')}.json"] = _json(folder, f"{p.name.removesuffix('.safetensors')}.json", beside)
        for number, report in enumerate(p.sweeps, 1):
            files[f"reports/sweep-{number}.json"] = _json(folder, f"reports/sweep-{number}.json", report)
            files[f"reports/curves-{number}.png"] = _at(folder, f"reports/curves-{number}.png")
            charts.curves(report).save(files[f"reports/curves-{number}.png"])
            if strip := _strip(report):
                files[f"reports/strip-{number}.png"] = _at(folder, f"reports/strip-{number}.png")
                strip.save(files[f"reports/strip-{number}.png"])
        if p.transfer:
            files["reports/transfer.json"] = _json(folder, "reports/transfer.json", p.transfer)
        shown = {}
        for number, (picture, prompt) in enumerate(p.pictures, 1):
            path = f"images/{number:02d}.png"
            files[path] = _at(folder, path)
            placed(picture, files[path])
            record.read_picture(files[path])  # it still says how it was made
            shown[path] = prompt
        if p.dataset:
            for sample in p.dataset.samples:
                files |= {} if sample.regularisation else _shown(p.dataset.folder / sample.file, sample.caption, folder)
        files["README.md"] = _at(folder, "README.md")
        files["README.md"].write_text(card(p, shown, strips=[path for path in files if "/strip-" in path], sha256=content(files[p.name])), encoding="utf-8")
    return files


def _shown(picture: Path, caption: str, folder: Path) -> dict[str, Path]:
    """A training picture and its caption, as trainers read them."""
    path, words = f"dataset/{picture.name}", f"dataset/{picture.stem}.txt"
    files = {path: _at(folder, path), words: _at(folder, words)}
    placed(picture, files[path])
    files[words].write_text(caption, encoding="utf-8")
    return files


def _strip(report: Mapping[str, Any]) -> Image.Image | None:
    """One prompt and seed from 0 to breakdown, from the pictures that are still kept here; `None` if they are not."""
    cells_of = report["cells"]
    if not cells_of:
        return None
    first = cells_of[0]
    until = report["breakdown"] if report["breakdown"] is not None else max(cell["strength"] for cell in cells_of)
    own = [cell for cell in cells_of if (cell["prompt"], cell["seed"]) == (first["prompt"], first["seed"]) and 0 <= cell["strength"] <= until]
    chosen = [own[round(i)] for i in np.linspace(0, len(own) - 1, min(STRENGTHS, len(own)))]
    there = [cell for cell in chosen if cell["key"] and cells.picture(cell["key"]).exists()]
    if len(there) < 2:
        return None
    columns = [cell["strength"] for cell in there]
    return charts.sheet(
        f"on {report['model']}, seed {first['seed']}", [first["prompt"]], columns, lambda _, c: cells.picture(there[c]["key"]), report["sweet_spot"]
    )


def _told(p: Publication) -> dict[str, str]:
    """The file's metadata for the world: modelspec's keys, and nothing that names a machine."""
    kept = {name: value for name, value in p.file.metadata.items() if not PRIVATE.search(value)}
    kept |= {"modelspec.title": p.title, "modelspec.license": p.licence}
    return kept | ({"modelspec.trigger_phrase": p.trigger} if p.trigger else {}) | ({"modelspec.description": p.description} if p.description else {})


def _json(folder: Path, path: str, told: Mapping[str, Any]) -> Path:
    file = _at(folder, path)
    file.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return file


def _at(folder: Path, path: str) -> Path:
    file = folder / "repository" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
