"""Computes the knees of a sweep again, with numpy alone: python docs/verdict_from_report.py report.json"""

import json
import sys
from pathlib import Path

import numpy as np


def average(x):  # (..., prompts, seeds) -> (...): the mean over prompts of their means over seeds
    for _ in range(2):
        x = np.nansum(x, -1) / np.where(known := (~np.isnan(x)).sum(-1), known, np.nan)
    return x


def find_knees(tried, means, floor, rules):  # measure -> (strengths,); infinity is beyond what was tried
    at = np.interp(np.arange(20 * len(tried) - 19) / 20, np.arange(len(tried)), tried)
    y = {name: np.interp(at, tried, mean) for name, mean in means.items()}
    holds = {name: np.array(ends, float) for name, ends in rules["holds"].items() if name in y}
    lost = np.any([(y[name] < least) | (y[name] > most) for name, (least, most) in holds.items()], 0)
    end = next((i for i in range(1, len(at)) if lost[i : i + 21].all()), len(at))  # for a step, or to the end
    onset = max([i + 1 for i in range(end) if y["effect"][i] <= floor], default=1)
    wanted = next(name for name in rules["gains"] if name in y)
    place = np.arange(len(at))
    gain = np.where((place >= onset) & (place < end) & ~lost, y[wanted] - y[wanted][0], -np.inf)
    least = rules["gains"][wanted] * (y[wanted][0] if wanted == "style" else 1)
    works = (gain >= rules["most"] * gain.max()) & (gain.max() >= max(least, 1e-12))
    low = works.argmax() if works.any() else len(at)
    high = next((i - 1 for i in range(low, len(at)) if not works[i]), len(at))
    return np.append(at, np.inf)[[onset if onset < end else -1, low, high, end]]


def compute_knees(report):  # knee -> its place by the means, and the ends of its interval
    rules, measured = report["thresholds"], report["measured"]
    side = -1 if max(measured["strengths"]) <= 0 else 1
    tried = side * np.array(measured["strengths"])
    order = [i for i in tried.argsort() if tried[i] >= 0]
    x = {name: np.array(values, float)[order] for name, values in measured["values"].items()}
    x["floor"] = np.array([measured["noise_floors"]], float)
    many, (prompts, seeds), rng = rules["resamples"], x["floor"].shape[1:], np.random.default_rng(0)
    p = rng.integers(prompts, size=(many, prompts))[:, :, None]  # prompts are drawn first, then their seeds
    s = rng.integers(seeds, size=(many, prompts, seeds))
    wide = {1: 0.0} | {n: np.sqrt(n / rng.chisquare(n - 1, many))[:, None] for n in range(2, prompts + 1)}
    known = {name: int((~np.isnan(values)).any((0, 2)).sum()) for name, values in x.items()}
    means = {name: average(values) for name, values in x.items() if known[name] >= min(2, prompts)}
    far = {n: np.nan_to_num(average(x[n][:, p, s]).T - mean) * wide[known[n]] for n, mean in means.items()}
    floor, off, tried = means.pop("floor")[0], far.pop("floor")[:, 0], tried[order]
    draws = [
        ({n: mean + far[n][i] for n, mean in means.items()}, max(0, floor + off[i])) for i in range(many)
    ]
    places, tail = np.array([find_knees(tried, *draw, rules) for draw in draws]), (1 - rules["level"]) / 2
    ends = np.quantile(places, [tail, 1 - tail], axis=0, method="nearest").T
    if (
        report["breakdown"] is None
    ):  # not sure, so its interval is open; and so is the spot's, if it often breaks
        ends[3, 1] = np.inf
        ends[2, 1] = np.inf if np.isfinite(places[:, 3]).mean() >= rules["often"] else ends[2, 1]
    rounded = [
        (knee, max(t for t in tried if t <= near), min((t for t in tried if t >= far), default=np.inf))
        for knee, (near, far) in zip(find_knees(tried, means, floor, rules), ends, strict=True)
    ]
    names = ("onset", "sweet_spot_low", "sweet_spot_high", "breakdown")
    return dict(zip(names, (tuple(side * float(x) for x in each) for each in rounded), strict=True))


if __name__ == "__main__":
    for name, (place, near, far) in compute_knees(json.loads(Path(sys.argv[1]).read_text())).items():
        print(f"{name:16} {place:5.3g}   from {near:g} to {far:g}")
