"""Pictures of nano's world to try a training with: a style and a character, each with the captions that a person would write."""

from typing import Any

import numpy as np
from PIL import Image

from core.nano.draw import draw
from core.nano.pictures import scene
from core.nano.world import STYLES, Scene, tags

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
