"""Computes the knees of a sweep again, with numpy alone: python docs/verdict_from_report.py report.json"""

import json
import sys
from pathlib import Path

import numpy as np


def average(x):  # (..., prompts, seeds) -> (...): the mean over prompts of their means over seeds
    for _ in range(2):
        x = np.where(np.isnan(x), 0, x).sum(-1) / np.where(known := (~np.isnan(x)).sum(-1), known, np.nan)
    return x


def find_knees(tried, means, floor, rules):  # measure -> (strengths,); infinity is beyond what was tried
    at = np.interp(np.arange(20 * len(tried) - 19) / 20, np.arange(len(tried)), tried)
    means = {name: np.interp(at, tried, mean) for name, mean in means.items()}
    lost, wanted = np.zeros(len(at), bool), next(name for name in rules["gains"] if name in means)
    for name in rules["holds"].keys() & means.keys():
        least, most = rules["holds"][name]
        lost |= False if least is None else means[name] < least
        lost |= False if most is None else means[name] > most
    end = next((i for i in range(1, len(at)) if lost[i : i + 21].all()), len(at))  # for a step, or to the end
    onset = max([i + 1 for i in range(end) if means["effect"][i] <= floor], default=1)
    gain, place = means[wanted] - means[wanted][0], np.arange(len(at))
    free = (place >= onset) & (place < end) & ~lost
    reach = gain[free].max(initial=-np.inf)
    works = free & (gain >= rules["most"] * reach)
    low = works.argmax() if reach > 0 and reach >= rules["gains"][wanted] else len(at)
    high = next((i - 1 for i in range(low, len(at)) if not works[i]), len(at))
    return [*at, np.inf][onset if onset < end else -1], *(np.append(at, np.inf)[[low, high, end]])


def compute_knees(report):  # knee -> its place by the means, and the ends of its interval
    rules, side = report["thresholds"], -1 if max(report["strengths"]) <= 0 else 1
    strengths = side * np.array(report["measured"]["strengths"])
    order = [i for i in strengths.argsort() if strengths[i] >= 0]
    values = {name: np.array(x, float)[order] for name, x in report["measured"]["values"].items()}
    values["floor"] = np.array([report["measured"]["noise_floors"]], float)
    prompts, seeds = values["floor"].shape[1:]
    count = {name: int((~np.isnan(x)).any((0, 2)).sum()) for name, x in values.items()}
    means = {name: average(x) for name, x in values.items() if count[name] >= min(2, prompts)}

    many, rng = rules["resamples"], np.random.default_rng(0)
    p = rng.integers(prompts, size=(many, prompts))[:, :, None]  # prompts are drawn first, then their seeds
    s = rng.integers(seeds, size=(many, prompts, seeds))
    wide = {n: np.sqrt(n / rng.chisquare(n - 1, many))[:, None] for n in range(2, prompts + 1)}
    drawn = {
        n: m + np.nan_to_num(average(values[n][:, p, s]).T - m) * wide[count[n]] for n, m in means.items()
    }

    floor, floors, tried = means.pop("floor")[0], drawn.pop("floor")[:, 0].clip(0), strengths[order]
    knees = [
        find_knees(tried, {name: x[i] for name, x in drawn.items()}, floors[i], rules) for i in range(many)
    ]
    tail = (1 - rules["level"]) / 2
    ends = np.quantile(knees, [tail, 1 - tail], axis=0, method="nearest").T  # outwards to strengths tried:
    ends = [(tried[tried <= a + 1e-9].max(), min(tried[tried >= b - 1e-9], default=np.inf)) for a, b in ends]
    names = ("onset", "sweet_spot_low", "sweet_spot_high", "breakdown")
    means = find_knees(tried, means, floor, rules)
    return {
        name: tuple(side * float(x) for x in (m, *e)) for name, m, e in zip(names, means, ends, strict=True)
    }


if __name__ == "__main__":
    for name, (place, near, far) in compute_knees(json.loads(Path(sys.argv[1]).read_text())).items():
        print(f"{name:16} {place:5.3g}   from {near:g} to {far:g}")
