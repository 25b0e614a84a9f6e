"""Measure what the embedded family can do: `python tests/bench/nano.py`, with a contact sheet.

1. The tagger on 1,000 held-out drawings: the share of decisions (tag present or not) that are
   right, and the share of the present tags that it finds.
2. The pictures of 200 prompts of 5 to 8 tags, at square, 2:3 and 3:2: the share of the prompts'
   tags that this tagger reads in them, and how sharp they are beside drawings of the same scenes.
"""

import argparse
import json
import sys
import textwrap
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.generate.pipeline import generate  # noqa: E402
from core.models.tagger import Tagger  # noqa: E402
from core.nano.draw import draw_scene  # noqa: E402
from core.nano.pictures import FIRST_HELD_OUT, make_scene  # noqa: E402
from core.nano.world import SIZES, list_tags  # noqa: E402
from core.schema.events import Picture  # noqa: E402
from core.schema.types import Cell, Request  # noqa: E402

SHEET_FILE = ROOT / "docs" / "nano.png"
Prompts = list[tuple[list[str], tuple[int, int]]]
"""Tags, and width and height of the picture."""


def score_tagger(tagger: Tagger, count: int) -> dict[str, float]:
    """Score the tagger on drawings that it never saw, a third of each size."""
    right = present = found = 0
    for i in range(count):
        drawn = make_scene(FIRST_HELD_OUT + i, SIZES[i % len(SIZES)])
        (read,) = tagger.read_tags([draw_scene(drawn)])
        truth = set(list_tags(drawn))
        seen = {tag for tag, p in read.items() if p >= 0.5}
        right += sum((tag in truth) == (tag in seen) for tag in tagger.tags)
        present, found = present + len(truth), found + len(truth & seen)
    return {"decisions_right": right / (count * len(tagger.tags)), "present_tags_found": found / present}


def draw_prompts(count: int) -> tuple[Prompts, list[Image.Image]]:
    """Draw prompts of 5 to 8 tags of a scene, with a size, and the scenes themselves.

    The subject is always among the tags.
    """
    made, drawings = [], []
    for i in range(count * 4):
        size = SIZES[len(made) % len(SIZES)]
        rng = np.random.default_rng([7, i])
        scene = make_scene(FIRST_HELD_OUT * 2 + i, size)
        subject, *rest = list_tags(scene)
        if "low quality" in rest or len(rest) < 4:
            continue
        many = min(int(rng.integers(4, 8)), len(rest))
        made.append(([subject, *(rest[k] for k in sorted(rng.permutation(len(rest))[:many]))], size))
        drawings.append(draw_scene(scene))
        if len(made) == count:
            break
    return made, drawings


def measure_sharpness(pictures: list[Image.Image]) -> float:
    """Return the mean distance of a point of the grey pictures from the mean of its four neighbours."""
    found = []
    for picture in pictures:
        x = np.asarray(picture.convert("L"), np.float32)
        around = (x[1:-1, :-2] + x[1:-1, 2:] + x[:-2, 1:-1] + x[2:, 1:-1]) / 4
        found.append(np.abs(x[1:-1, 1:-1] - around).mean())
    return float(np.mean(found))


def generate_pictures(prompts: Prompts, seed: int) -> list[Image.Image]:
    """Generate at 25 steps, Euler a, CFG 5, each prompt with a seed of its own."""
    cells = [
        Cell(
            label="",
            request=Request(
                model="nano",
                prompt=", ".join(words),
                negative="low quality",
                width=w,
                height=h,
                steps=25,
                cfg=5.0,
                sampler="Euler a",
                seed=seed + i,
            ),
        )
        for i, (words, (w, h)) in enumerate(prompts)
    ]
    made = {e.index: e.image for e in generate(cells) if isinstance(e, Picture)}
    return [made[i] for i in range(len(cells))]


def find_missing_tags(tagger: Tagger, prompts: Prompts, pictures: list[Image.Image]) -> list[list[str]]:
    """Return for each picture the tags of its prompt that the tagger does not read in it."""
    read = [tagger.read_tags([picture])[0] for picture in pictures]
    return [
        [tag for tag in words if found[tag] < 0.5] for (words, _), found in zip(prompts, read, strict=True)
    ]


def draw_sheet(
    prompts: Prompts,
    pictures: list[Image.Image],
    columns: int = 8,
    rows: int = 3,
) -> Image.Image:
    """Draw the square pictures with their prompts under them."""
    chosen = [
        (words, picture)
        for (words, size), picture in zip(prompts, pictures, strict=True)
        if size == (128, 128)
    ][: columns * rows]
    out = Image.new("RGB", (columns * 140, rows * 200), "white")
    pen = ImageDraw.Draw(out)
    for i, (words, picture) in enumerate(chosen):
        x, y = i % columns * 140 + 6, i // columns * 200 + 6
        out.paste(picture, (x, y))
        pen.multiline_text(
            (x, y + 131),
            "\n".join(textwrap.wrap(", ".join(words), 24)[:5]),
            fill="black",
            spacing=1,
            font_size=10,
        )
    return out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prompts", type=int, default=200)
    options.add_argument("--drawings", type=int, default=1000)
    options.add_argument("--sheet", type=Path, default=SHEET_FILE)
    asked_for = options.parse_args()
    tagger = Tagger()
    report: dict[str, object] = {
        "date": date.today().isoformat(),
        "device": "cpu",
        "tagger": score_tagger(tagger, asked_for.drawings),
    }
    print("tagger on held-out drawings:", report["tagger"], flush=True)
    asked, drawings = draw_prompts(asked_for.prompts)
    for seed in (1000, 5000):
        made = generate_pictures(asked, seed)
        missing = find_missing_tags(tagger, asked, made)
        total = sum(len(words) for words, _ in asked)
        by_size = {}
        for size in SIZES:
            at = [i for i, (_, s) in enumerate(asked) if s == size]
            by_size[f"{size[0]}x{size[1]}"] = round(
                1 - sum(len(missing[i]) for i in at) / sum(len(asked[i][0]) for i in at), 4
            )
        lost: dict[str, int] = {}
        for words in missing:
            for tag in words:
                lost[tag] = lost.get(tag, 0) + 1
        share = 1 - sum(map(len, missing)) / total
        report[f"seeds from {seed}"] = {"tags_shown": round(share, 4), "by_size": by_size}
        print(
            f"tags shown in pictures, seeds from {seed}: {share:.4f} of {total}; by size {by_size};",
            f"most missed {sorted(lost.items(), key=lambda x: -x[1])[:12]}",
            flush=True,
        )
        if seed == 1000:
            ours, truth = measure_sharpness(made), measure_sharpness(drawings)
            report["sharpness"] = {
                "pictures": round(ours, 3),
                "drawings": round(truth, 3),
                "share": round(ours / truth, 4),
            }
            print("sharpness:", report["sharpness"], flush=True)
            draw_sheet(asked, made).save(asked_for.sheet)
    (ROOT / "tests" / "bench" / "results").mkdir(exist_ok=True)
    (ROOT / "tests" / "bench" / "results" / "nano.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
