"""Draw sweeps, transfers and trainings: contact sheets, curves and heat maps, as pictures."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from core.schema import limits

# Names of files, and of reports that a user uploads, are not formulas.
matplotlib.rcParams["text.parse_math"] = False
THUMBNAIL_SIDE = 160
"""Longest side in pixels of a picture in the sheet; smaller pictures keep their size."""
MAX_SHEET_SIDE = 9000
"""Longest side of a sheet in pixels; beyond it, thumbnails shrink so that any grid can be shown."""
GAP, MARGIN, LINE_HEIGHT = 4, 8, 18
MARK_COLOUR = "#2e9e5b"
COLOURS = {
    "effect": "#d9480f",
    "style": "#7048e8",
    "composition": "#1971c2",
    "prompt": "#2b2b2b",
    "detail": "#868e96",
}


def draw_contact_sheet(
    title: str,
    rows: Sequence[str],
    columns: Sequence[float | str],
    picture: Callable[[int, int], Path | None],
    frame: Sequence[float] | None,
) -> Image.Image:
    """Draw a contact sheet: a row for each label, a column for each strength (or word).

    Strengths from `frame[0]` to `frame[1]` stand in a frame. `picture(row, column)` returns a file,
    or `None` for a picture that is not made yet.
    """
    width, height = _fit_thumbnails(len(rows), len(columns), picture)
    top = 2 * MARGIN + 2 * LINE_HEIGHT
    out = Image.new(
        "RGB",
        (2 * MARGIN + len(columns) * (width + GAP), top + len(rows) * (height + GAP + LINE_HEIGHT) + MARGIN),
        "white",
    )
    pen, font, small = ImageDraw.Draw(out), ImageFont.load_default(14), ImageFont.load_default(11)
    pen.text(
        (MARGIN, MARGIN), _truncate_text(pen, title, out.width - 2 * MARGIN, font), fill="black", font=font
    )
    chosen = [
        c
        for c, strength in enumerate(columns)
        if frame and not isinstance(strength, str) and frame[0] <= strength <= frame[1]
    ]
    for c, strength in enumerate(columns):
        inside = c in chosen
        label = strength if isinstance(strength, str) else f"{strength:g}"
        pen.text(
            (MARGIN + c * (width + GAP), MARGIN + LINE_HEIGHT),
            _truncate_text(pen, label, width, font),
            fill=MARK_COLOUR if inside else "black",
            font=font,
        )
    for r, label in enumerate(rows):
        y = top + r * (height + GAP + LINE_HEIGHT)
        pen.text(
            (MARGIN, y), _truncate_text(pen, label, out.width - 2 * MARGIN, small), fill="#555", font=small
        )
        for c in range(len(columns)):
            if file := picture(r, c):
                out.paste(
                    _load_thumbnail(file, (width, height)), (MARGIN + c * (width + GAP), y + LINE_HEIGHT)
                )
    if chosen:
        left, right = (
            MARGIN + chosen[0] * (width + GAP) - GAP // 2 - 1,
            MARGIN + (chosen[-1] + 1) * (width + GAP) - GAP // 2,
        )
        pen.rectangle(
            (left, MARGIN + LINE_HEIGHT - 2, right, out.height - MARGIN + 2), outline=MARK_COLOUR, width=3
        )
    return out


def _fit_thumbnails(rows: int, columns: int, picture: Callable[[int, int], Path | None]) -> tuple[int, int]:
    """Return a thumbnail's width and height in a sheet, from the first picture that is made."""
    first = next((file for r in range(rows) for c in range(columns) if (file := picture(r, c))), None)
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    if first:
        with Image.open(first) as one:
            size = one.size
    shrink = min(
        1.0,
        THUMBNAIL_SIDE / max(size),
        MAX_SHEET_SIDE / (columns * size[0]),
        MAX_SHEET_SIDE / (rows * size[1]),
    )
    width, height = (max(8, round(side * shrink)) for side in size)
    return width, height


def draw_curves(report: Mapping[str, Any]) -> Image.Image:
    """Draw the curves of a sweep's report: the effect above, what is kept below.

    The effect has its interval and the noise floor; the sweet spot is shaded, onset and breakdown
    are marked.
    """
    figure = Figure(figsize=(9, 5.2), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rows = report["curve"]
    at = [row["strength"] for row in rows]

    def draw_curve(axes: Any, name: str) -> None:
        values = [np.nan if row[name] is None else row[name] for row in rows]
        if not np.isnan(values).all():
            axes.plot(at, values, "o-", color=COLOURS[name], label=name, markersize=3.5, linewidth=1.6)

    draw_curve(above, "effect")
    if rows:
        above.fill_between(
            at,
            [row["effect_low"] for row in rows],
            [row["effect_high"] for row in rows],
            color=COLOURS["effect"],
            alpha=0.15,
            linewidth=0,
        )
    if report["noise_floor"] is not None:
        above.axhline(report["noise_floor"], color="#999", linestyle=":", linewidth=1, label="noise floor")
    above.set_ylabel("effect (1 = as much as another seed)")
    for name in ("style", "composition", "prompt", "detail"):
        draw_curve(below, name)
    below.set_ylabel("kept (1 = as at strength 0)")
    below.set_xlabel("strength")
    for axes in (above, below):
        if report["sweet_spot"]:
            axes.axvspan(
                *report["sweet_spot"], color=MARK_COLOUR, alpha=0.16, linewidth=0, label="sweet spot"
            )
        for knee, line in (("onset", "--"), ("breakdown", "-.")):
            if report[knee] is not None:
                axes.axvline(report[knee], color="#444", linestyle=line, linewidth=1, label=knee)
        axes.grid(alpha=0.2)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    above.set_title(f"{report['lora']} on {report['model']}"[:120], fontsize=11, loc="left")
    return render_figure(figure)


def draw_heat_maps(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    panels: Mapping[str, np.ndarray],
    cell_labels: Mapping[tuple[int, int], str],
    outlined: Collection[tuple[int, int]] = (),
) -> Image.Image:
    """Draw heat maps above each other, one for each measure in `panels`.

    Each panel is (rows, columns), NaN where there is no value; `cell_labels` are words for the
    cells of the first panel. The `outlined` cells, (row, column), have a frame in each.
    """
    heights = [1.0 if place == 0 else 0.7 for place in range(len(panels))]
    widest = max(map(len, title.splitlines()))  # at 11 points, 14 characters need an inch at most
    size = (
        max(2.2 + 1.15 * len(columns), widest / 12),
        1.2 + 0.2 * title.count("\n") + sum(0.35 + 0.5 * height * len(rows) for height in heights),
    )
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    drawn = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for place, (axes, (name, values)) in enumerate(zip(drawn, panels.items(), strict=True)):
        greatest = max(1.0, float(np.nanmax(values))) if not np.isnan(values).all() else 1.0
        axes.imshow(np.ma.masked_invalid(values), cmap="YlGn", vmin=0, vmax=greatest, aspect="auto")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right", fontsize=9)
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        for r, c in np.ndindex(values.shape):
            number = "-" if np.isnan(values[r, c]) else f"{values[r, c]:.2f}"
            text = f"{cell_labels[r, c]}\n{number}" if place == 0 and (r, c) in cell_labels else number
            axes.text(
                c,
                r,
                text,
                ha="center",
                va="center",
                fontsize=9,
                color="white" if values[r, c] > 0.7 * greatest else "black",
            )
        for r, c in outlined:
            frame = Rectangle(
                (c - 0.47, r - 0.47), 0.94, 0.94, fill=False, edgecolor=MARK_COLOUR, linewidth=3
            )
            axes.add_patch(frame)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return render_figure(figure)


def draw_losses(
    title: str, steps: int, lines: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """Draw a training so far: losses above, learning rate and gradient norm below.

    The losses are those of each step, smoothed, and on held-out pictures.
    """
    figure = Figure(figsize=(9, 4.4), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    at, loss = [line["step"] for line in lines], [line["loss"] for line in lines]
    above.plot(at, loss, color=COLOURS["effect"], alpha=0.25, linewidth=0.8, label="each step")
    above.plot(at, smooth_curve(loss), color=COLOURS["effect"], linewidth=1.8, label="smoothed")
    if held_out:
        above.plot(
            [line["step"] for line in held_out],
            [line["loss"] for line in held_out],
            "o--",
            color=COLOURS["composition"],
            markersize=4,
            label="held out",
        )
    above.set_ylabel("loss")
    above.set_ylim(0, 1.15 * float(np.quantile(loss, 0.98)) if loss else 1)
    below.plot(at, [line["rate"] for line in lines], color=COLOURS["style"], label="rate")
    below.set_ylabel("learning rate")
    beside = below.twinx()
    beside.plot(
        at,
        [line["norm"] for line in lines],
        color=COLOURS["detail"],
        alpha=0.5,
        linewidth=0.8,
        label="gradient",
    )
    beside.set_ylabel("gradient")
    below.set_xlabel("step")
    below.set_xlim(0, steps)
    above.set_title(title, fontsize=11, loc="left")
    for axes in (above, below):
        axes.grid(alpha=0.2)
    above.legend(fontsize=8, loc="upper right", frameon=False)
    return render_figure(figure)


def smooth_curve(values: Sequence[float], window: int = 20) -> np.ndarray:
    """Return for each step the mean of the last values, at most `window` of them."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)


def render_figure(figure: Figure) -> Image.Image:
    """Return a figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


@lru_cache(limits.SWEEP_CELLS)  # a sheet is drawn again and again while it fills
def _load_thumbnail(file: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(file) as one:
        return one.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _truncate_text(pen: ImageDraw.ImageDraw, text: str, width: int, font: Any) -> str:
    """Return the text, cut to `width` pixels."""
    text = " ".join(text.split())
    while text and pen.textlength(text, font=font) > width:
        text = text[: -max(2, len(text) // 20)].rstrip() + "…"
    return text
