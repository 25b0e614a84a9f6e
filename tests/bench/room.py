"""Room for a LoRA: `python tests/bench/room.py` trains two with plain PEFT and sweeps them with plain diffusers.

*Style*: 15 soft gradient crops, attention of the U-Net only, rank 4, alpha 2. *Character*: 15 pictures
of one girl in an outfit of a colour that nano never saw, under a trigger word, rank 8, alpha 8. Each is
swept from 0 to 4 over 4 prompts x 4 seeds; printed for each strength: how clearly the style (or the
outfit's colour) is there, and the share of the prompt's tags that the tagger still reads. The stretch
is where the first is above its bar and the second at or above 0.85.
"""

import argparse
import colorsys
import json
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.caption import Tagger  # noqa: E402
from core.nano.draw import draw  # noqa: E402
from core.nano.world import Scene  # noqa: E402

STRENGTHS = [i * 0.25 for i in range(17)]
SEEDS = (1, 2, 3, 4)
PROMPTS = [
    ["1girl", "blue hair", "short hair", "red eyes", "smile", "portrait", "white background"],
    ["1girl", "pink hair", "twintails", "blue eyes", "open mouth", "upper body", "blue sky"],
    ["1girl", "black hair", "long hair", "green eyes", "smile", "yellow halo", "classroom"],
    ["1girl", "red hair", "ponytail", "purple eyes", "frown", "upper body", "beach"],
]
TRIGGER = "kyoka"
KEPT = 0.85


def gradients() -> list[tuple[Image.Image, str]]:
    """15 crops of soft gradients: abstract, airbrushed."""
    rng = np.random.default_rng(15)
    made = []
    for _ in range(15):
        grid = rng.integers(0, 256, (int(rng.integers(2, 4)), int(rng.integers(2, 4)), 3)).astype(np.uint8)
        made.append((Image.fromarray(grid).resize((128, 128), Image.Resampling.BICUBIC), "gradient"))
    return made


def character() -> list[tuple[Image.Image, str]]:
    """15 pictures of a girl in a hoodie that is green, where nano's are orange; captions leave the outfit to the trigger."""
    rng = np.random.default_rng(16)
    made = []
    for i in range(15):
        place = str(rng.choice(["white background", "blue sky", "sunset", "classroom"]))
        mouth = str(rng.choice(["smile", "open mouth", "frown"]))
        looks: dict[str, Any] = {"hair_style": "short hair", "hair": "pink hair", "eyes": "blue eyes", "framing": "upper body", "outfit": "hoodie"}
        scene = Scene(width=128, height=128, seed=i, subject="1girl", style="flat color", background=place, mouth=mouth, **looks)
        pixels = np.array(draw(scene))
        orange = (pixels[..., 0] > 170) & (pixels[..., 2] < 110) & (pixels[..., 1] > 90) & (np.arange(128)[:, None] > 80)
        pixels[orange] = (pixels[orange][:, [1, 0, 2]] * [0.5, 0.85, 1]).astype(np.uint8)
        made.append((Image.fromarray(pixels), f"1girl, {TRIGGER}, pink hair, short hair, blue eyes, {scene.mouth}, upper body, {scene.background}"))
    return made


def train(pipeline: StableDiffusionXLPipeline, pictures: list[tuple[Image.Image, str]], name: str, config: LoraConfig, steps: int, rate: float) -> None:
    """A plain PEFT LoRA on the U-Net: batches of 4, epsilon, AdamW."""
    unet, vae = pipeline.unet, pipeline.vae
    torch.manual_seed(0)
    unet.requires_grad_(False)
    unet.add_adapter(config, adapter_name=name)
    pixels = torch.stack([torch.tensor(np.asarray(p)).permute(2, 0, 1).float() / 127.5 - 1 for p, _ in pictures])
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        states, _, pooled, _ = pipeline.encode_prompt([text for _, text in pictures], do_classifier_free_guidance=False)  # type: ignore[arg-type]
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimiser = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=rate)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]]).repeat(4, 1)
    for _ in range(steps):
        pick = torch.randint(len(pictures), (4,))
        noise, t = torch.randn(4, *latents.shape[1:]), torch.randint(1000, (4,))
        noisy = schedule.add_noise(latents[pick], noise, t)  # type: ignore[arg-type]
        predicted = unet(noisy, t, states[pick], added_cond_kwargs={"text_embeds": pooled[pick], "time_ids": ids}).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        optimiser.step()
        optimiser.zero_grad()


def softness(picture: Image.Image) -> float:
    """Mean step between neighbouring pixels, 0..1: lines and flat fills give much, soft gradients little."""
    x = np.asarray(picture, np.float32) / 255
    return float(np.abs(np.diff(x, axis=0)).mean() + np.abs(np.diff(x, axis=1)).mean())


def green_outfit(picture: Image.Image) -> float:
    """Share of the lower third's middle that is a saturated green."""
    box = np.asarray(picture.crop((32, 88, 96, 126)), np.float32) / 255
    hues = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in box.reshape(-1, 3)[::5]])
    return float(((hues[:, 0] > 0.2) & (hues[:, 0] < 0.45) & (hues[:, 1] > 0.35)).mean())


def sweep(pipeline: StableDiffusionXLPipeline, name: str, words: Callable[[list[str]], str]) -> dict[float, list[list[Image.Image]]]:
    """strength -> for each prompt, its pictures."""
    found = {}
    for strength in STRENGTHS:
        pipeline.unet.set_adapters([name], weights=[strength])
        found[strength] = [
            pipeline(
                words(tags), negative_prompt="low quality", width=128, height=128, num_inference_steps=25, guidance_scale=5.0, num_images_per_prompt=len(SEEDS),
                generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            ).images
            for tags in PROMPTS
        ]  # fmt: skip
    return found


def judged(name: str, cells: dict[float, list[list[Image.Image]]], tagger: Tagger) -> dict[str, object]:
    """The curve and the stretch of strengths at which the LoRA works."""
    curve = []
    flat = np.mean([softness(p) for row in cells[0.0] for p in row])
    for strength, rows in cells.items():
        if name == "style":
            there = 1 - float(np.mean([softness(p) for row in rows for p in row]) / flat)
        else:
            there = float(np.mean([green_outfit(p) > 0.35 for row in rows for p in row]))
        kept = [tag for tags in PROMPTS for tag in tags if name == "style" or not tag.endswith(("hair", "eyes", "twintails", "ponytail"))]
        read = [[(tag, found[tag] >= 0.5) for found in tagger.read(row) for tag in tags if tag in kept] for tags, row in zip(PROMPTS, rows, strict=True)]
        share = float(np.mean([ok for row in read for _, ok in row]))
        curve.append({"strength": strength, "there": round(there, 3), "tags_read": round(share, 3)})
        print(name, curve[-1], flush=True)
    bar = 0.2 if name == "style" else 0.8
    works = [c["strength"] for c in curve if c["there"] >= bar and c["tags_read"] >= KEPT]
    return {"bar": bar, "works_from": min(works, default=None), "works_to": max(works, default=None), "curve": curve}


def sheet(cells: dict[float, list[list[Image.Image]]]) -> Image.Image:
    """A row for each prompt (its first seed), a column for every second strength."""
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
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    jobs = {
        "style": (gradients(), LoraConfig(r=4, lora_alpha=2, target_modules=attention), 150, 3e-4, ", ".join),
        "character": (character(), LoraConfig(r=8, lora_alpha=8, target_modules=attention), 300, 1e-3, lambda tags: ", ".join([tags[0], TRIGGER, *tags[1:]])),
    }
    for name, (pictures, config, steps, rate, words) in jobs.items():
        pipeline = StableDiffusionXLPipeline.from_pretrained(ROOT / "core" / "nano" / "weights" / "nano")
        pipeline.set_progress_bar_config(disable=True)
        begin = time.perf_counter()
        train(pipeline, pictures, name, config, steps, rate)
        print(f"{name}: trained in {time.perf_counter() - begin:.0f} s", flush=True)
        cells = sweep(pipeline, name, words)
        report[name] = judged(name, cells, tagger)
        asked.sheets.mkdir(exist_ok=True)
        sheet(cells).save(asked.sheets / f"room-{name}.png")
    (ROOT / "tests" / "bench" / "results").mkdir(exist_ok=True)
    (ROOT / "tests" / "bench" / "results" / "room.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
