"""Draw a study of axes: the points of one axis as marks with intervals, those of two as a map."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from core.sweep.axes import format_value
from core.sweep.axes_words import WANTED
from core.sweep.charts import COLOURS, MARK_COLOUR, draw_heat_maps, render_figure

KEPT = ("composition", "prompt", "detail")
"""Measures of a chart's lower part."""
MAX_TITLE = 110
"""Characters of a line of a chart's title."""
MAX_MAP_TITLE = 60
"""Characters of a line of a map's title, which is as wide as its columns."""


def draw_points(report: Mapping[str, Any]) -> Image.Image:
    """Draw the points of a report: a chart for one axis, a map for two, the plateau marked."""
    return _draw_chart(report) if len(report["axes"]) == 1 else _draw_map(report)


def _sort_values(report: Mapping[str, Any], place: int) -> list[Any]:
    """Return the values of an axis: numbers in rising order, names in the order of the study."""
    values = list(dict.fromkeys(point["point"][place] for point in report["points"]))
    return values if any(isinstance(value, str) for value in values) else sorted(values)


def _name_gain(report: Mapping[str, Any]) -> str:
    """Return what the upper part shows: the gain, or the effect where nothing else says what is wanted."""
    wanted = report["wanted"]
    return (
        "effect (1 = as much as another seed)" if wanted in (None, "effect") else f"gain in {WANTED[wanted]}"
    )


def _title(report: Mapping[str, Any], width: int = MAX_TITLE) -> str:
    return "\n".join(textwrap.wrap(report["why"], width))


def _draw_chart(report: Mapping[str, Any]) -> Image.Image:
    values = _sort_values(report, 0)
    points = {point["point"][0]: point for point in report["points"]}
    rows = [points[value] for value in values]
    figure = Figure(figsize=(9, 5.2), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    at = np.arange(len(rows))
    column = "gain" if report["wanted"] else "effect"
    shown = np.array([np.nan if row[column] is None else row[column] for row in rows], float)
    above.plot(at, shown, "o", color=COLOURS["effect"])
    for place, row in zip(at, rows, strict=True):
        if row["gain_low"] is not None:
            above.plot(
                [place] * 2, [row["gain_low"], row["gain_high"]], color=COLOURS["effect"], linewidth=1.2
            )
    above.axhline(0, color="#999", linestyle=":", linewidth=1)
    above.set_ylabel(_name_gain(report), fontsize=9)
    for name in KEPT:
        kept = np.array([np.nan if row[name] is None else row[name] for row in rows], float)
        if not np.isnan(kept).all():
            below.plot(at, kept, "o", color=COLOURS[name], label=name, markersize=4)
    below.set_ylabel("kept (1 = as at the reference)", fontsize=9)
    below.set_xticks(at, [format_value(value) for value in values], rotation=20, ha="right", fontsize=9)
    below.set_xlabel(report["axes"][0]["label"])
    for axes in (above, below):
        for place, value in zip(at, values, strict=True):
            if [value] in report["plateau"]:
                axes.axvspan(place - 0.5, place + 0.5, color=MARK_COLOUR, alpha=0.16, linewidth=0)
        axes.axvline(values.index(report["reference"][0]), color="#444", linestyle="--", linewidth=0.8)
        axes.grid(alpha=0.2)
    if below.get_legend_handles_labels()[1]:
        below.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    above.set_title(_title(report), fontsize=9, loc="left")
    return render_figure(figure)


def _draw_map(report: Mapping[str, Any]) -> Image.Image:
    rows, columns = _sort_values(report, 0), _sort_values(report, 1)
    names = ["gain" if report["wanted"] else "effect", "composition", "prompt"]
    titles = [_name_gain(report), "composition kept", "prompt kept"]
    panels = {title: np.full((len(rows), len(columns)), np.nan) for title in titles}
    labels, outlined = {}, []
    for point in report["points"]:
        place = rows.index(point["point"][0]), columns.index(point["point"][1])
        for name, title in zip(names, titles, strict=True):
            if point[name] is not None:
                panels[title][place] = point[name]
        if point["point"] == report["recommended"]:
            labels[place] = "best" if report["answer"] == "works" else "middle"
        if point["point"] in report["plateau"]:
            outlined.append(place)
    first, second = (axis["label"] for axis in report["axes"])
    return draw_heat_maps(
        f"{first} (rows) x {second} (columns)\n{_title(report, MAX_MAP_TITLE)}",
        [format_value(value) for value in rows],
        [format_value(value) for value in columns],
        {title: values for title, values in panels.items() if not np.isnan(values).all()} or panels,
        labels,
        outlined,
    )
