"""Draws a `Scene` with Pillow: flat celluloid avatars with halos, and their world.

Shapes are laid down at four times the size, in units of the head's radius, then shrunk;
the styles are what a pen, an airbrush or a pixel grid makes of the same shapes.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from core.nano.pen import SCALE, Pen
from core.nano.person import FACE, girl
from core.nano.surroundings import abstract, background, thing
from core.nano.world import Scene


class Drawing(NamedTuple):
    picture: Image.Image
    """RGB, `scene.width` x `scene.height` times the scale."""
    face: tuple[float, float, float, float] | None
    """Left, top, right and bottom of the face in pixels of the scene's size; `None` without a person."""


def draw(scene: Scene) -> Image.Image:
    """The scene as a picture; the same scene, the same pixels."""
    return drawing(scene).picture


def drawing(scene: Scene, scale: int = 1) -> Drawing:
    """The scene and its face, at once or twice its size in pixels."""
    rng = np.random.default_rng(scene.seed)
    canvas = Image.new("RGB", (scene.width * SCALE, scene.height * SCALE), "white")
    pen = Pen(ImageDraw.Draw(canvas), line=0 if scene.style == "airbrush" else round(1.3 * SCALE))
    face = None
    if scene.subject == "abstract":
        canvas = abstract(scene, canvas, rng)
    else:
        background(scene, canvas, rng)
        if scene.subject == "1girl":
            girl(scene, pen, rng)
            left, top, right, bottom = FACE
            x, y, unit = pen.x / SCALE, pen.y / SCALE, pen.unit / SCALE
            face = (x + left * unit, y + top * unit, x + right * unit, y + bottom * unit)
        elif scene.thing:
            thing(scene, pen, rng)
    return Drawing(_finish(scene, canvas, rng, scale), face)


def _finish(scene: Scene, canvas: Image.Image, rng: np.random.Generator, scale: int) -> Image.Image:
    picture = canvas.resize((scene.width * scale, scene.height * scale), Image.Resampling.BOX)
    match scene.style:
        case "airbrush":
            picture = _airbrush(picture, rng, scale)
        case "sketch":
            picture = _sketch(picture, canvas)
        case "pixel art":
            small = picture.resize((scene.width // 4, scene.height // 4), Image.Resampling.BOX)
            picture = small.resize(picture.size, Image.Resampling.NEAREST)
    if scene.low_quality:
        store = io.BytesIO()
        picture.filter(ImageFilter.GaussianBlur(1.1 * scale)).save(store, "JPEG", quality=12)
        picture = Image.open(store).convert("RGB")
    return picture


def _airbrush(picture: Image.Image, rng: np.random.Generator, scale: int) -> Image.Image:
    """Soft light from one side and a glow: the outline-free drawing, blurred and lit."""
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8 * scale)), np.float32) / 255
    h, w, _ = soft.shape
    y, x = np.mgrid[0:h, 0:w]
    far = np.hypot(x / w - rng.uniform(0, 1), y / h - rng.uniform(0, 0.4))
    light = np.clip(1.15 - 0.6 * far, 0.5, 1.15)[..., None]
    glow = np.asarray(picture.filter(ImageFilter.GaussianBlur(9 * scale)), np.float32) / 255
    lit = 0.86 * soft * light + 0.22 * glow * light
    return Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8))


def _sketch(picture: Image.Image, canvas: Image.Image) -> Image.Image:
    """Pencil on paper: pale washes of the colours under dark edges."""
    edges = canvas.convert("L").resize((picture.width * 2, picture.height * 2), Image.Resampling.BOX)
    edges = edges.filter(ImageFilter.FIND_EDGES).resize(picture.size, Image.Resampling.BOX)
    line = np.clip(np.asarray(edges, np.float32)[..., None] / 60, 0, 1)
    wash = 0.42 * np.asarray(picture, np.float32) + 0.58 * 250
    return Image.fromarray((wash * (1 - line) + 70 * line).astype(np.uint8))
