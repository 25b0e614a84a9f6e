"""Measure the room of a LoRA: train two with plain PEFT and sweep them with plain diffusers.

Run `python tests/bench/room.py`. *Style*: 15 airbrushed drawings, soft gradients without a line,
whose captions do not name the style; attention of the U-Net only, rank 4, alpha 2. *Character*: 15
pictures of one girl in a kimono that only the trigger word stands for, rank 8, alpha 4. Each is
swept from 0 to 4 over 4 prompts x 4 seeds, without a word of style or outfit. Prints for each
strength how much softer the pictures are (or the share in which the tagger reads the kimono), and
the share of the prompt's tags that the tagger still reads. The stretch is where the first is above
its bar and the second at or above 0.85.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.models.tagger import Tagger  # noqa: E402
from core.nano.lessons import make_airbrush_set, make_character_set  # noqa: E402
from tests.lora.example import ATTENTION, STYLE_CONFIG, train_lora  # noqa: E402

STRENGTHS = [i * 0.25 for i in range(17)]
SEEDS = (1, 2, 3, 4)
PROMPTS = [
    ["1girl", "blue hair", "short hair", "red eyes", "smile", "upper body", "white background"],
    ["1girl", "pink hair", "twintails", "blue eyes", "open mouth", "upper body", "blue sky"],
    ["1girl", "black hair", "long hair", "green eyes", "smile", "yellow halo", "upper body", "classroom"],
    ["1girl", "red hair", "ponytail", "purple eyes", "frown", "upper body", "beach"],
]
TRIGGER = "kyoka"
MIN_TAGS_READ = 0.85


def softness(picture: Image.Image) -> float:
    """Return the mean step between neighbouring pixels, 0..1.

    Lines and flat fills give much, soft gradients little.
    """
    x = np.asarray(picture, np.float32) / 255
    return float(np.abs(np.diff(x, axis=0)).mean() + np.abs(np.diff(x, axis=1)).mean())


def draw_sweep(
    pipeline: StableDiffusionXLPipeline, name: str, prompt: Callable[[list[str]], str]
) -> dict[float, list[list[Image.Image]]]:
    """Return strength -> the pictures of each prompt."""
    found = {}
    for strength in STRENGTHS:
        pipeline.unet.set_adapters([name], weights=[strength])
        found[strength] = [
            pipeline(
                prompt(words), negative_prompt="low quality", width=128, height=128, num_inference_steps=25,
                guidance_scale=5.0, num_images_per_prompt=len(SEEDS),
                generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            ).images
            for words in PROMPTS
        ]  # fmt: skip
    return found


def judge_cells(name: str, cells: dict[float, list[list[Image.Image]]], tagger: Tagger) -> dict[str, object]:
    """Return the curve and the stretch of strengths at which the LoRA works."""
    curve = []
    flat = np.mean([softness(p) for row in cells[0.0] for p in row])
    for strength, rows in cells.items():
        read = [tagger.read_tags(row) for row in rows]
        if name == "style":
            there = 1 - float(np.mean([softness(p) for row in rows for p in row]) / flat)
        else:
            there = float(np.mean([found["kimono"] >= 0.5 for row in read for found in row]))
        share = float(
            np.mean(
                [
                    found[tag] >= 0.5
                    for words, row in zip(PROMPTS, read, strict=True)
                    for found in row
                    for tag in words
                ]
            )
        )
        curve.append({"strength": strength, "there": round(there, 3), "tags_read": round(share, 3)})
        print(name, curve[-1], flush=True)
    bar = 0.2 if name == "style" else 0.8
    works = [c["strength"] for c in curve if c["there"] >= bar and c["tags_read"] >= MIN_TAGS_READ]
    return {
        "bar": bar,
        "works_from": min(works, default=None),
        "works_to": max(works, default=None),
        "curve": curve,
    }


def draw_sheet(cells: dict[float, list[list[Image.Image]]]) -> Image.Image:
    """Draw a row for each prompt (its first seed) and a column for every second strength."""
    chosen = STRENGTHS[::2]
    out = Image.new("RGB", (len(chosen) * 130, len(PROMPTS) * 130 + 16), "white")
    pen = ImageDraw.Draw(out)
    for x, strength in enumerate(chosen):
        pen.text((x * 130 + 4, 1), f"{strength:g}", fill="black")
        for y, row in enumerate(cells[strength]):
            out.paste(row[0], (x * 130, y * 130 + 16))
    return out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sheets", type=Path, default=ROOT / "docs")
    asked = options.parse_args()
    tagger = Tagger()
    report: dict[str, object] = {"date": date.today().isoformat(), "device": "cpu"}
    jobs = {
        "style": (make_airbrush_set(), STYLE_CONFIG, ", ".join),
        "character": (
            make_character_set(TRIGGER),
            LoraConfig(r=8, lora_alpha=4, target_modules=ATTENTION),
            lambda words: ", ".join([words[0], TRIGGER, *words[1:]]),
        ),
    }
    for name, (pictures, config, prompt) in jobs.items():
        pipeline = StableDiffusionXLPipeline.from_pretrained(ROOT / "core" / "nano" / "weights" / "nano")
        pipeline.set_progress_bar_config(disable=True)
        begin = time.perf_counter()
        train_lora(pipeline, pictures, name, config)
        print(f"{name}: trained in {time.perf_counter() - begin:.0f} s", flush=True)
        cells = draw_sweep(pipeline, name, prompt)
        report[name] = judge_cells(name, cells, tagger)
        asked.sheets.mkdir(exist_ok=True)
        draw_sheet(cells).save(asked.sheets / f"room-{name}.png")
    (ROOT / "tests" / "bench" / "results").mkdir(exist_ok=True)
    (ROOT / "tests" / "bench" / "results" / "room.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
