"""The files of a publication by their paths in the repository.

LoRA, sidecar, card, pictures, reports.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.lora import edit
from core.prompts import png_metadata
from core.publish.card import render_card
from core.publish.plan import Publication
from core.sweep import cell_cache, charts
from core.system.atomic_files import link_or_copy, remove_on_error
from core.system.tensor_files import calculate_sha256

PRIVATE_PATTERN = re.compile(
    r"(?:^|[\"'\s=(])(?:/(?:home|root|Users|mnt|media|workspace|content|kaggle)/|[A-Za-z]:[\\/]|\\\\)"
    r"|hf_[A-Za-z0-9]{20}"
)
"""Matches a path on somebody's machine, or a token."""
MAX_STRIP_PICTURES = 12
"""Greatest number of pictures in the strip from strength 0 to breakdown."""


def build_bundle(publication: Publication, folder: Path) -> dict[str, Path]:
    """Write the files of a publication below `folder`; return path in the repository -> file.

    Nothing in them names a machine or a person.
    """
    p, files = publication, dict[str, Path]()
    best = p.sweeps[0] if p.sweeps else None

    def add(path: str) -> Path:
        """Add a file to the repository; return where to write it."""
        files[path] = folder / "repository" / path
        files[path].parent.mkdir(parents=True, exist_ok=True)
        return files[path]

    with remove_on_error(folder):
        made = edit.rewrite_lora(
            p.file,
            folder / "made",
            hint=edit.format_usage_hint(best) if best else None,
            metadata=_clean_metadata(p),
        )
        made.replace(add(p.name))
        if best:
            beside = edit.build_sidecar(p.file, best) | {"activation text": p.trigger}
            _write_json(add(f"{p.stem}.json"), beside)
        for number, report in enumerate(p.sweeps, 1):
            _write_json(add(f"{p.reports}/sweep-{number}.json"), report)
            charts.draw_curves(report).save(add(f"{p.reports}/curves-{number}.png"))
            if strip := _draw_strip(report):
                strip.save(add(f"{p.reports}/strip-{number}.png"))
        if p.transfer:
            _write_json(add(f"{p.reports}/transfer.json"), p.transfer)
        shown = {}
        for number, (picture, prompt) in enumerate(p.pictures, 1):
            path = f"{p.examples}/{number:02d}.png"
            link_or_copy(picture, add(path))
            png_metadata.read_infotext(files[path])  # raises if it no longer says how it was made
            shown[path] = prompt
        if p.dataset:
            for sample in p.dataset.samples:
                if not sample.regularisation:
                    file = add(f"dataset/{p.stem}/{Path(sample.file).name}")
                    link_or_copy(p.dataset.folder / sample.file, file)
                    caption = add(f"dataset/{p.stem}/{Path(sample.file).stem}.txt")  # as trainers read it
                    caption.write_text(sample.caption, encoding="utf-8")
        strips = [path for path in files if "/strip-" in path]
        card = render_card(p, shown, strips, sha256=calculate_sha256(files[p.name]))
        add("README.md").write_bytes(card.encode())
    return files


def _draw_strip(report: Mapping[str, Any]) -> Image.Image | None:
    """Draw one prompt and seed from strength 0 to breakdown, from pictures still in the cell cache.

    `None` if fewer than two of them are left.
    """
    cells_of = report["cells"]
    if not cells_of:
        return None
    first = cells_of[0]
    until = (
        report["breakdown"] if report["breakdown"] is not None else max(cell["strength"] for cell in cells_of)
    )
    own = [
        cell
        for cell in cells_of
        if (cell["prompt"], cell["seed"]) == (first["prompt"], first["seed"])
        and 0 <= cell["strength"] <= until
    ]
    chosen = [own[round(i)] for i in np.linspace(0, len(own) - 1, min(MAX_STRIP_PICTURES, len(own)))]
    there = [cell for cell in chosen if cell["key"] and cell_cache.picture_path(cell["key"]).exists()]
    if len(there) < 2:
        return None
    columns = [cell["strength"] for cell in there]
    return charts.draw_contact_sheet(
        f"on {report['model']}, seed {first['seed']}",
        [first["prompt"]],
        columns,
        lambda _, c: cell_cache.picture_path(there[c]["key"]),
        report["sweet_spot"],
    )


def _clean_metadata(p: Publication) -> dict[str, str]:
    """Return the metadata to publish: modelspec's keys, and nothing that names a machine."""
    kept = {name: value for name, value in p.file.metadata.items() if not PRIVATE_PATTERN.search(value)}
    kept |= {"modelspec.title": p.title, "modelspec.license": p.licence}
    return (
        kept
        | ({"modelspec.trigger_phrase": p.trigger} if p.trigger else {})
        | ({"modelspec.description": p.description} if p.description else {})
    )


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
