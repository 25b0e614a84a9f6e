"""Draws a `Scene` with Pillow: flat celluloid avatars with halos, and their world.

Shapes are drawn at four times the size, in units of the head's radius, then shrunk; the styles are
what a pen, an airbrush or a pixel grid makes of the same shapes.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from core.nano.pen import SCALE, Pen
from core.nano.person import FACE_BOX, draw_girl
from core.nano.surroundings import draw_abstract, draw_background, draw_thing
from core.nano.world import Scene


class Drawing(NamedTuple):
    """A drawn scene, and where its face is."""

    picture: Image.Image
    """RGB, `scene.width` x `scene.height` times the scale."""
    face: tuple[float, float, float, float] | None
    """Left, top, right and bottom of the face in pixels of the scene's size; `None` without a
    person."""


def draw_scene(scene: Scene) -> Image.Image:
    """Return the scene as a picture; the same scene always gives the same pixels."""
    return draw_with_face(scene).picture


def draw_with_face(scene: Scene, scale: int = 1) -> Drawing:
    """Return the scene as a picture and where its face is.

    The picture is `scale` times the scene's size in pixels, 1 or 2.
    """
    rng = np.random.default_rng(scene.seed)
    canvas = Image.new("RGB", (scene.width * SCALE, scene.height * SCALE), "white")
    pen = Pen(ImageDraw.Draw(canvas), line=0 if scene.style == "airbrush" else round(1.3 * SCALE))
    face = None
    if scene.subject == "abstract":
        canvas = draw_abstract(scene, canvas, rng)
    else:
        draw_background(scene, canvas, rng)
        if scene.subject == "1girl":
            draw_girl(scene, pen, rng)
            left, top, right, bottom = FACE_BOX
            x, y, unit = pen.x / SCALE, pen.y / SCALE, pen.unit / SCALE
            face = (x + left * unit, y + top * unit, x + right * unit, y + bottom * unit)
        elif scene.thing:
            draw_thing(scene, pen, rng)
    picture = _apply_style(scene, canvas, rng, scale)
    return Drawing(_degrade(picture, scale) if scene.low_quality else picture, face)


def _apply_style(scene: Scene, canvas: Image.Image, rng: np.random.Generator, scale: int) -> Image.Image:
    picture = canvas.resize((scene.width * scale, scene.height * scale), Image.Resampling.BOX)
    match scene.style:
        case "airbrush":
            return _draw_airbrush(picture, rng, scale)
        case "sketch":
            return _draw_sketch(picture, canvas)
        case "pixel art":
            small = picture.resize((scene.width // 4, scene.height // 4), Image.Resampling.BOX)
            return small.resize(picture.size, Image.Resampling.NEAREST)
    return picture


def _degrade(picture: Image.Image, scale: int) -> Image.Image:
    """Blur a picture and leave the blocks of a small JPEG in it."""
    store = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(1.1 * scale)).save(store, "JPEG", quality=12)
    return Image.open(store).convert("RGB")


def _draw_airbrush(picture: Image.Image, rng: np.random.Generator, scale: int) -> Image.Image:
    """Add soft light from one side and a glow: the drawing without outlines, blurred and lit."""
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8 * scale)), np.float32) / 255
    h, w, _ = soft.shape
    y, x = np.mgrid[0:h, 0:w]
    far = np.hypot(x / w - rng.uniform(0, 1), y / h - rng.uniform(0, 0.4))
    light = np.clip(1.15 - 0.6 * far, 0.5, 1.15)[..., None]
    glow = np.asarray(picture.filter(ImageFilter.GaussianBlur(9 * scale)), np.float32) / 255
    lit = 0.86 * soft * light + 0.22 * glow * light
    return Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8))


def _draw_sketch(picture: Image.Image, canvas: Image.Image) -> Image.Image:
    """Draw pencil on paper: pale washes of the colours under dark edges."""
    edges = canvas.convert("L").resize((picture.width * 2, picture.height * 2), Image.Resampling.BOX)
    edges = edges.filter(ImageFilter.FIND_EDGES).resize(picture.size, Image.Resampling.BOX)
    line = np.clip(np.asarray(edges, np.float32)[..., None] / 60, 0, 1)
    wash = 0.42 * np.asarray(picture, np.float32) + 0.58 * 250
    return Image.fromarray((wash * (1 - line) + 70 * line).astype(np.uint8))
