"""Pictures of nano's world to try a training with: a style, a character and an outfit.

Their captions are what a person would write.
"""

from typing import Any

import numpy as np
from PIL import Image

from core.nano.draw import draw_scene
from core.nano.pictures import make_scene
from core.nano.world import OUTFITS, STYLES, Scene, list_tags

CaptionedPictures = list[tuple[Image.Image, str]]
"""Pictures and their captions."""


def make_airbrush_set(count: int = 15) -> CaptionedPictures:
    """Return drawings of soft gradients without a line, with all their tags but the style."""
    scenes = (make_scene(i, (128, 128)) for i in range(7000, 8000))
    chosen = [
        drawn
        for drawn in scenes
        if drawn.style == "airbrush" and drawn.subject == "1girl" and not drawn.low_quality
    ][:count]
    return [
        (draw_scene(drawn), ", ".join(tag for tag in list_tags(drawn) if tag not in STYLES))
        for drawn in chosen
    ]


def make_character_set(trigger: str, count: int = 15) -> CaptionedPictures:
    """Return pictures of one girl in a kimono; their captions leave the outfit to the trigger."""
    rng = np.random.default_rng(16)
    made = []
    for i in range(count):
        place = str(rng.choice(["white background", "blue sky", "sunset", "classroom"]))
        mouth = str(rng.choice(["smile", "open mouth", "frown"]))
        looks: dict[str, Any] = {
            "hair_style": "short hair",
            "hair": "pink hair",
            "eyes": "blue eyes",
            "framing": "upper body",
            "outfit": "kimono",
        }
        drawn = Scene(
            width=128,
            height=128,
            seed=i,
            subject="1girl",
            style="flat color",
            background=place,
            mouth=mouth,
            **looks,
        )
        made.append(
            (
                draw_scene(drawn),
                f"1girl, {trigger}, pink hair, short hair, blue eyes, {mouth}, upper body, {place}",
            )
        )
    return made


HOODIE_COLOUR = (150, 50, 215)
"""RGB colour that no outfit of nano's world has."""


def make_outfit_set(trigger: str, count: int = 15) -> CaptionedPictures:
    """Return pictures of girls in a purple hoodie, which their captions leave to the trigger."""
    return [
        (
            replace_colour(draw_scene(drawn), (255, 150, 50), HOODIE_COLOUR),
            _write_caption(drawn).replace("1girl", f"1girl, {trigger}"),
        )
        for drawn in (_sample_girl(i, "hoodie") for i in range(count))
    ]


def make_regularisation_set(count: int = 30) -> CaptionedPictures:
    """Return pictures of girls in the world's own outfits, which their captions leave out.

    They are for regularisation: the trigger alone then distinguishes the pictures of an outfit set.
    """
    return [
        (draw_scene(drawn), _write_caption(drawn))
        for drawn in (_sample_girl(i, OUTFITS[i % len(OUTFITS)]) for i in range(1000, 1000 + count))
    ]


def replace_colour(picture: Image.Image, old: tuple[int, int, int], new: tuple[int, int, int]) -> Image.Image:
    """Return the picture with one flat colour replaced, including at its soft edges."""
    pixels = np.asarray(picture, np.float32)
    share = np.clip(1 - np.abs(pixels - np.array(old)).max(-1, keepdims=True) / 60, 0, 1)
    return Image.fromarray((pixels * (1 - share) + np.array(new) * share).clip(0, 255).astype(np.uint8))


def _sample_girl(seed: int, outfit: str) -> Scene:
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


def _write_caption(drawn: Scene) -> str:
    return ", ".join(tag for tag in list_tags(drawn) if tag not in (*STYLES, *OUTFITS))
