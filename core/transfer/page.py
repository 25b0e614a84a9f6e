"""A transfer study as one HTML page that needs nothing else: tables with their colours, and small pictures; the zip has the large ones."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

THUMBNAIL = 224  # pixels
SHOWN = ("effect", "style_kept", "base_style_kept", "composition", "prompt")
STYLE = """body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222 } table { border-collapse: collapse; margin: 1rem 0 }
td, th { border: 1px solid #ddd; padding: 4px 8px; text-align: left } td.number { text-align: right } img { max-width: 100%; border-radius: 3px }
.full { background: #d3f0dd } .partial { background: #fdf1cc } .none { background: #f7d9d6 } pre { background: #f6f6f6; padding: 8px }
.strip { display: flex; flex-wrap: wrap; gap: 4px } figure { margin: 0; width: 140px } figcaption { font-size: 11px; color: #555 }"""


def page(report: dict[str, Any], folder: Path, heat: Path) -> str:
    """The whole page; the report's pictures lie in `folder`."""
    parts = [f"<h1>LoRAs over base models</h1><p>{escape(report['why'])}</p>", _inlined(heat, "heat map")]
    parts += ["<h2>Verdicts</h2>", _verdicts(report), f"<p>{escape(report['rule'])}</p>"]
    parts += [f"<p>{escape(claim['why'])}</p>" for claim in report["lineage"]["claims"]]
    parts += [f"<p>{escape(line)}</p>" for line in report["blocks"]]
    parts += [f"<h2>Lineage</h2><pre>{escape(chr(10).join(report['lineage']['tree']))}</pre>"]
    for strength in [0.0, *(strength for strength in report["strengths"] if strength)]:
        parts.append(f"<h2>{'Without a LoRA' if strength == 0 else f'At strength {strength:g}'}</h2>")
        parts += [_cells(report, strength)] if strength else []
        parts += [_strip(report, folder, lora, model, strength) for lora in (report["loras"] if strength else [None]) for model in report["models"]]
    told = f"{len(report['prompts'])} prompts, seeds {', '.join(map(str, report['seeds']))}, clip skip {report['clip_skip']}, seen by {report['eye']}"
    parts.append(f"<p>{escape(told)}. {escape(' '.join(report['unmeasured'].values()))}</p>")
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>LoRA transfer</title><style>{STYLE}</style>\n{body}\n</html>\n'


def _verdicts(report: dict[str, Any]) -> str:
    by = {(pair["lora"], pair["model"]): pair for pair in report["per_pair"]}
    head = "".join(f"<th>{escape(model)}</th>" for model in report["models"])
    rows = []
    for lora in report["loras"]:
        cells = []
        for model in report["models"]:
            pair = by[lora, model]
            times = f" x{pair['needs_times']:.2g}" if pair["needs_times"] else ""
            mark = "⌂ " if pair["relation"] == "home" else ""
            cells.append(f'<td class="{pair["verdict"] or ""}" title="{escape(pair["why"], quote=True)}">{mark}{pair["verdict"] or "?"}{times}</td>')
        rows.append(f"<tr><th>{escape(lora)}</th>{''.join(cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _cells(report: dict[str, Any], strength: float) -> str:
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in SHOWN)
    rows = []
    for cell in report["cells"]:
        if cell["strength"] == strength:
            numbers = "".join(f'<td class="number">{"-" if cell[name] is None else format(cell[name], ".3f")}</td>' for name in SHOWN)
            rows.append(f"<tr><td>{escape(cell['lora'])}</td><td>{escape(cell['model'])}</td>{numbers}<td>{escape(cell['why'])}</td></tr>")
    return f"<table><tr><th>LoRA</th><th>base</th>{head}<th>why</th></tr>{''.join(rows)}</table>"


def _strip(report: dict[str, Any], folder: Path, lora: str | None, model: str, strength: float) -> str:
    chosen = [told for told in report["pictures"] if (told["lora"], told["model"], told["strength"]) == (lora, model, strength)]
    figures = "".join(f"<figure>{_inlined(folder / told['picture'], told['prompt'])}<figcaption>seed {told['seed']}</figcaption></figure>" for told in chosen)
    return f'<p>{escape(f"{lora} on {model}" if lora else model)}</p><div class="strip">{figures}</div>' if chosen else ""


def _inlined(file: Path, said: str) -> str:
    """A picture inside the page, made smaller; the heat map as it is."""
    with Image.open(file) as opened:
        picture, out = opened.convert("RGB"), io.BytesIO()
    if file.name != "heat.png":
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(out, "JPEG", quality=88)
    return f'<img alt="{escape(said, quote=True)}" src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">'
