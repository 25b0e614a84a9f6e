"""Export a transfer study: its files in one folder and one zip.

Pictures at full size, heat map, sheet, table, report, HTML page.
"""

import base64
import io
import json
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.models import lora_library
from core.sweep import charts
from core.system.atomic_files import link_or_copy, remove_on_error
from core.transfer.report import build_transfer_report, format_cells_csv
from core.transfer.study import TransferStudy

THUMBNAIL_SIDE = 224  # pixels
SHEET_PROMPTS = 3  # of the contact sheet: with eight, no picture could be made out
CELL_MEASURES = ("effect", "style_kept", "base_style_kept", "composition", "prompt")
PAGE_CSS = (
    "body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222 } "
    "table { border-collapse: collapse; margin: 1rem 0 }\n"
    "td, th { border: 1px solid #ddd; padding: 4px 8px; text-align: left } "
    "td.number { text-align: right } img { max-width: 100%; border-radius: 3px }\n"
    ".full { background: #d3f0dd } .partial { background: #fdf1cc } .none { background: #f7d9d6 } "
    "pre { background: #f6f6f6; padding: 8px }\n"
    ".strip { display: flex; flex-wrap: wrap; gap: 4px } figure { margin: 0; width: 140px } "
    "figcaption { font-size: 11px; color: #555 }"
)
HEAT_MAP_PANELS = {
    "effect": "effect (1 = as much as another seed)",
    "style_kept": "trained style",
    "base_style_kept": "base's own style",
}


@dataclass(frozen=True, kw_only=True)
class TransferFiles:
    """The files of an exported study, and its report, whose pictures are named as in the zip."""

    sheet: Path
    heat: Path
    archive: Path
    table: Path
    page: Path
    report: dict[str, Any]
    folder: Path


def export_transfer(study: TransferStudy, folder: Path) -> TransferFiles:
    """Write what is finished so far into `folder`; after an error nothing is left."""
    report = build_transfer_report(study)
    with remove_on_error(folder):
        for told in report["pictures"]:
            own = f"{lora_library.slugify(told['lora'])}/{told['strength']:g}" if told["lora"] else "base"
            name = (
                f"cells/{lora_library.slugify(told['model'])}/{own}"
                f"/prompt{study.plan.prompts.index(told['prompt']) + 1}-seed{told['seed']}.png"
            )
            link_or_copy(Path(told["picture"]), folder / name)
            told["picture"] = name
        files = {
            "sheet": folder / "sheet.png",
            "heat": folder / "heat.png",
            "table": folder / "cells.csv",
            "page": folder / "study.html",
        }
        draw_transfer_sheet(study).save(files["sheet"])
        draw_transfer_heat_map(study, report).save(files["heat"])
        files["table"].write_text(format_cells_csv(study), encoding="utf-8")
        files["page"].write_text(render_page(report, folder, files["heat"]), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        archive = folder / "transfer.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:  # PNG does not get smaller
            for file in [*files.values(), folder / "report.json"]:
                out.write(file, file.name)
            for told in report["pictures"]:
                out.write(folder / told["picture"], told["picture"])
    return TransferFiles(archive=archive, report=report, folder=folder, **files)


def draw_transfer_heat_map(study: TransferStudy, report: dict[str, Any]) -> Image.Image:
    """Draw effect, trained style and the base's own style by LoRA and base.

    Each pair is shown at the strength at which it adds what it adds at home, or most; one without a
    verdict of that at its greatest, which the first panel says beside its verdict.
    """
    plan = study.plan
    cells = {(cell["lora"], cell["model"], cell["strength"]): cell for cell in report["cells"]}
    shown = {
        (pair["lora"], pair["model"]): cells.get(
            (pair["lora"], pair["model"], _find_shown_strength(study, pair))
        )
        for pair in report["per_pair"]
    }
    values = {
        title: np.array(
            [
                [_number_or_nan(shown.get((row.name, model)), name) for model in plan.models]
                for row in plan.loras
            ],
            float,
        )
        for name, title in HEAT_MAP_PANELS.items()
    }
    told = {
        (
            plan.loras.index(next(r for r in plan.loras if r.name == pair["lora"])),
            plan.models.index(pair["model"]),
        ): _format_judgement(pair, _find_shown_strength(study, pair))
        for pair in report["per_pair"]
    }
    return charts.draw_heat_maps(
        "Each pair at the strength that comes nearest to home, or at its greatest",
        [_format_row_label(row.name, row.home_model) for row in plan.loras],
        list(plan.models),
        values,
        told,
    )


def _format_row_label(name: str, home: str | None) -> str:
    return textwrap.fill(name[:60], 22) + (f"\n(home: {home})" if home and home not in name else "")


def _format_judgement(pair: dict[str, Any], shown: float | None) -> str:
    """Return the verdict, how much more strength than at home is needed, and the strength that is shown.

    Marks home itself.
    """
    mark = "⌂ " if pair["relation"] == "home" else ""
    times = f" x{pair['needs_times']:.2g}" if pair["needs_times"] else ""
    return f"{mark}{pair['verdict'] or '?'}{times}" + ("" if shown is None else f"\nat {shown:g}")


def _find_shown_strength(study: TransferStudy, pair: dict[str, Any]) -> float | None:
    """Return the strength at which a pair is shown; `None` where a probe found none worth a picture."""
    tried = study.pairs[pair["lora"], pair["model"]].sweep.strengths
    return pair["strength"] or max(tried, key=abs, default=None)


def draw_transfer_sheet(study: TransferStudy) -> Image.Image:
    """Draw a row for each LoRA and strength, a column for each prompt and base.

    Of the first few prompts and of the first seed.
    """
    plan = study.plan
    rows = [
        (plan.loras[0].name, 0.0),
        *(
            (row.name, strength)
            for strength in study.strengths
            for row in plan.loras
            if strength
            and any(strength in study.pairs[row.name, model].sweep.strengths for model in plan.models)
        ),
    ]
    columns = [(prompt, model) for prompt in plan.prompts[:SHEET_PROMPTS] for model in plan.models]

    def picture(r: int, c: int) -> Path | None:
        (lora, strength), (prompt, model) = rows[r], columns[c]
        return study.pairs[lora, model].sweep.pictures.get((strength, (prompt, plan.seeds[0])))

    labels = ["without a LoRA", *(f"{name} at {strength:g}" for name, strength in rows[1:])]
    return charts.draw_contact_sheet(
        "LoRAs on other base models", labels, [model for _, model in columns], picture, None
    )


def _number_or_nan(cell: Mapping[str, Any] | None, name: str) -> float:
    """Return a cell's number; NaN if it was not measured."""
    return np.nan if cell is None or cell[name] is None else cell[name]


def render_page(report: dict[str, Any], folder: Path, heat_map: Path) -> str:
    """Return the HTML page; the report's pictures lie in `folder`."""
    parts = [
        f"<h1>LoRAs on other base models</h1><p>{escape(report['why'])}</p>",
        _render_picture(heat_map, "heat map"),
    ]
    parts += ["<h2>Verdicts</h2>", _render_judgements(report), f"<p>{escape(report['rule'])}</p>"]
    parts += [f"<p>{escape(claim['why'])}</p>" for claim in report["lineage"]["claims"]]
    parts += [f"<p>{escape(line)}</p>" for line in report["blocks"]]
    parts += [f"<h2>Lineage</h2><pre>{escape(chr(10).join(report['lineage']['tree']))}</pre>"]
    for strength in [0.0, *(strength for strength in report["strengths"] if strength)]:
        parts.append(f"<h2>{'Without a LoRA' if strength == 0 else f'At strength {strength:g}'}</h2>")
        parts += [_render_cells(report, strength)] if strength else []
        parts += [
            _render_strip(report, folder, lora, model, strength)
            for lora in (report["loras"] if strength else [None])
            for model in report["models"]
        ]
    told = (
        f"{len(report['prompts'])} prompts, seeds {', '.join(map(str, report['seeds']))}, "
        f"clip skip {report['clip_skip']}, measured with {report['eye']}"
    )
    parts.append(f"<p>{escape(told)}. {escape(' '.join(report['unmeasured'].values()))}</p>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>LoRA transfer</title>'
        f"<style>{PAGE_CSS}</style>\n{body}\n</html>\n"
    )


def _render_judgements(report: dict[str, Any]) -> str:
    by = {(pair["lora"], pair["model"]): pair for pair in report["per_pair"]}
    head = "".join(f"<th>{escape(model)}</th>" for model in report["models"])
    rows = []
    for lora in report["loras"]:
        cells = []
        for model in report["models"]:
            pair = by[lora, model]
            times = f" x{pair['needs_times']:.2g}" if pair["needs_times"] else ""
            mark = "⌂ " if pair["relation"] == "home" else ""
            cells.append(
                f'<td class="{pair["verdict"] or ""}" title="{escape(pair["why"], quote=True)}">'
                f"{mark}{pair['verdict'] or '?'}{times}</td>"
            )
        rows.append(f"<tr><th>{escape(lora)}</th>{''.join(cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _render_cells(report: dict[str, Any], strength: float) -> str:
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in CELL_MEASURES)
    rows = []
    for cell in report["cells"]:
        if cell["strength"] == strength:
            numbers = "".join(
                f'<td class="number">{"-" if cell[name] is None else format(cell[name], ".3f")}</td>'
                for name in CELL_MEASURES
            )
            rows.append(
                f"<tr><td>{escape(cell['lora'])}</td><td>{escape(cell['model'])}</td>{numbers}"
                f"<td>{escape(cell['why'])}</td></tr>"
            )
    return f"<table><tr><th>LoRA</th><th>base</th>{head}<th>why</th></tr>{''.join(rows)}</table>"


def _render_strip(report: dict[str, Any], folder: Path, lora: str | None, model: str, strength: float) -> str:
    chosen = [
        told
        for told in report["pictures"]
        if (told["lora"], told["model"], told["strength"]) == (lora, model, strength)
    ]
    figures = "".join(
        f"<figure>{_render_picture(folder / told['picture'], told['prompt'])}"
        f"<figcaption>seed {told['seed']}</figcaption></figure>"
        for told in chosen
    )
    return (
        f'<p>{escape(f"{lora} on {model}" if lora else model)}</p><div class="strip">{figures}</div>'
        if chosen
        else ""
    )


def _render_picture(file: Path, alt: str) -> str:
    """Return an `img` with the picture inside it, scaled down unless it is the heat map."""
    with Image.open(file) as opened:
        picture, out = opened.convert("RGB"), io.BytesIO()
    if file.name != "heat.png":
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    picture.save(out, "JPEG", quality=88)
    return (
        f'<img alt="{escape(alt, quote=True)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">'
    )
