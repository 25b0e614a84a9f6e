"""Pictures of nano's world to try a training with: a style, a character and an outfit, with the captions that a person would write."""

from typing import Any

import numpy as np
from PIL import Image

from core.nano.draw import draw
from core.nano.pictures import scene
from core.nano.world import OUTFITS, STYLES, Scene, tags

Lesson = list[tuple[Image.Image, str]]
"""Pictures and their captions."""


def airbrushed(count: int = 15) -> Lesson:
    """Drawings of soft gradients without a line, with the tags of what they show but for the style."""
    scenes = (scene(i, (128, 128)) for i in range(7000, 8000))
    chosen = [drawn for drawn in scenes if drawn.style == "airbrush" and drawn.subject == "1girl" and not drawn.low_quality][:count]
    return [(draw(drawn), ", ".join(tag for tag in tags(drawn) if tag not in STYLES)) for drawn in chosen]


def character(trigger: str, count: int = 15) -> Lesson:
    """Pictures of one girl in a kimono; their captions leave the outfit to the trigger."""
    rng = np.random.default_rng(16)
    made = []
    for i in range(count):
        place = str(rng.choice(["white background", "blue sky", "sunset", "classroom"]))
        mouth = str(rng.choice(["smile", "open mouth", "frown"]))
        looks: dict[str, Any] = {"hair_style": "short hair", "hair": "pink hair", "eyes": "blue eyes", "framing": "upper body", "outfit": "kimono"}
        drawn = Scene(width=128, height=128, seed=i, subject="1girl", style="flat color", background=place, mouth=mouth, **looks)
        made.append((draw(drawn), f"1girl, {trigger}, pink hair, short hair, blue eyes, {mouth}, upper body, {place}"))
    return made


PURPLE = (150, 50, 215)
"""A colour that no outfit of nano's world has."""


def dressed(trigger: str, count: int = 15) -> Lesson:
    """Girls in a purple hoodie, which their captions leave to the trigger."""
    return [
        (recoloured(draw(drawn), (255, 150, 50), PURPLE), _said(drawn).replace("1girl", f"1girl, {trigger}"))
        for drawn in (_girl(i, "hoodie") for i in range(count))
    ]


def others(count: int = 30) -> Lesson:
    """Girls in the world's own outfits, of which their captions say nothing either: for regularisation, so that the trigger alone tells them apart."""
    return [(draw(drawn), _said(drawn)) for drawn in (_girl(i, OUTFITS[i % len(OUTFITS)]) for i in range(1000, 1000 + count))]


def recoloured(picture: Image.Image, old: tuple[int, int, int], new: tuple[int, int, int]) -> Image.Image:
    """The picture with one flat colour replaced, its soft edges with it."""
    pixels = np.asarray(picture, np.float32)
    share = np.clip(1 - np.abs(pixels - np.array(old)).max(-1, keepdims=True) / 60, 0, 1)
    return Image.fromarray((pixels * (1 - share) + np.array(new) * share).clip(0, 255).astype(np.uint8))


def _girl(seed: int, outfit: str) -> Scene:
    rng = np.random.default_rng(seed)

    def pick(*options: str) -> str:
        return str(rng.choice(options))

    return Scene(
        width=128,
        height=128,
        seed=seed,
        subject="1girl",
        style="flat color",
        framing="upper body",
        outfit=outfit,
        background=pick("white background", "blue sky", "classroom", "beach", "forest"),
        mouth=pick("smile", "open mouth", "frown"),
        hair_style=pick("short hair", "long hair", "twintails", "ponytail"),
        hair=pick("blue hair", "black hair", "white hair", "pink hair", "green hair"),
        eyes=pick("blue eyes", "red eyes", "green eyes"),
    )


def _said(drawn: Scene) -> str:
    return ", ".join(tag for tag in tags(drawn) if tag not in (*STYLES, *OUTFITS))
