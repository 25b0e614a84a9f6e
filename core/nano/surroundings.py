"""Draws what is not a person: backgrounds, objects, buildings and abstract patterns."""

import numpy as np
from PIL import Image, ImageDraw

from core.nano.pen import SCALE, Colour, Pen
from core.nano.world import Scene


def _fill_gradient(
    canvas: Image.Image, stops: list[tuple[float, Colour]], left: float = 0, top: float = 0
) -> None:
    """Fill with colours that run from stop to stop, top to bottom (tilted by left/top in -1..1)."""
    w, h = canvas.size
    y = np.linspace(0, 1, h)[:, None] * (1 - abs(left)) + np.linspace(0, 1, w)[None] * left + top
    flat = [np.interp(y, [s for s, _ in stops], [c[k] for _, c in stops]) for k in range(3)]
    canvas.paste(Image.fromarray(np.stack(flat, -1).astype(np.uint8)))


def draw_background(scene: Scene, canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draw the background of a scene."""
    w, h = canvas.size
    pen = ImageDraw.Draw(canvas)
    match scene.background:
        case "blue sky":
            _fill_gradient(canvas, [(0, (96, 178, 250)), (1, (190, 228, 255))])
            for _ in range(4):
                x, y, r = rng.uniform(0, w), rng.uniform(0.05, 0.55) * h, rng.uniform(0.06, 0.11) * h
                for dx in (-1.1, 0, 1.1):
                    pen.ellipse((x + dx * r - r, y - r * 0.7, x + dx * r + r, y + r * 0.7), fill="white")
        case "night sky":
            _fill_gradient(canvas, [(0, (16, 18, 62)), (1, (50, 46, 112))])
            for _ in range(26):
                x, y, r = rng.uniform(0, w), rng.uniform(0, 0.9) * h, rng.uniform(2, 5.5)
                pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 210))
            x, y, r = rng.choice([0.15, 0.85]) * w, 0.16 * h, 0.09 * h
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 242, 170))
        case "sunset":
            _fill_gradient(canvas, [(0, (120, 66, 140)), (0.5, (250, 130, 96)), (1, (255, 206, 110))])
            x, y, r = rng.uniform(0.15, 0.85) * w, rng.uniform(0.6, 0.75) * h, 0.13 * h
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 170))
        case "classroom":
            _fill_gradient(
                canvas,
                [(0, (240, 222, 186)), (0.72, (232, 208, 168)), (0.72, (176, 122, 80)), (1, (160, 106, 66))],
            )
            x = rng.uniform(-0.05, 0.05) * w
            pen.rectangle(
                (x + 0.08 * w, 0.1 * h, x + 0.92 * w, 0.55 * h),
                fill=(46, 110, 84),
                outline=(140, 92, 56),
                width=10,
            )
        case "beach":
            _fill_gradient(
                canvas,
                [
                    (0, (140, 210, 250)),
                    (0.42, (200, 236, 255)),
                    (0.42, (20, 140, 200)),
                    (0.7, (60, 190, 215)),
                    (0.7, (246, 226, 170)),
                    (1, (238, 210, 150)),
                ],
            )
        case "forest":
            _fill_gradient(
                canvas,
                [(0, (176, 224, 160)), (0.75, (120, 190, 110)), (0.75, (70, 130, 60)), (1, (56, 110, 50))],
            )
            for i in range(6):
                x, r = (i + rng.uniform(0.2, 0.8)) * w / 6, rng.uniform(0.13, 0.2) * h
                pen.rectangle((x - 10, 0.4 * h, x + 10, 0.8 * h), fill=(104, 70, 44))
                pen.ellipse(
                    (x - r, 0.32 * h - r, x + r, 0.32 * h + r), fill=(40, int(rng.uniform(105, 140)), 56)
                )


def draw_abstract(scene: Scene, canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the abstract picture of a scene, such as a gradient."""
    w, h = canvas.size
    colours = [tuple(int(c) for c in rng.integers(20, 256, 3)) for _ in range(4)]
    if scene.thing == "gradient":
        grid = rng.integers(0, 256, (int(rng.integers(2, 5)), int(rng.integers(2, 5)), 3)).astype(np.uint8)
        return Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    canvas.paste(colours[0], (0, 0, w, h))
    if scene.thing == "stripes":
        width = int(rng.integers(36, 90))
        slope = int(rng.choice([-1, 0, 1])) * h
        for i, x in enumerate(range(-h, w + h, width)):
            if i % 2:
                pen.polygon(
                    [(x, 0), (x + width, 0), (x + width + slope, h), (x + slope, h)],
                    fill=colours[1 + i // 2 % 2],
                )
    else:
        for i in range(12):
            x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.06, 0.18) * h
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colours[1 + i % 3])
    return canvas


def draw_thing(scene: Scene, pen: Pen, rng: np.random.Generator) -> None:
    """Draw the thing of a scene, such as an apple."""
    w, h = scene.width * SCALE, scene.height * SCALE
    unit = min(w, h) * rng.uniform(0.27, 0.36)
    pen.move_to(w * rng.uniform(0.4, 0.6), h * rng.uniform(0.5, 0.56), unit)
    turn = np.linspace(0, 2 * np.pi, 49)
    match scene.thing:
        case "apple":
            pen.draw_stroke([(0, -0.7), (0.1, -1.15)], (110, 70, 40), 0.1)
            pen.draw_oval(-0.28, 0.1, 0.68, 0.85, (222, 46, 46))
            pen.draw_oval(0.28, 0.1, 0.68, 0.85, (222, 46, 46))
            pen.draw_oval(0, 0.1, 0.6, 0.74, (222, 46, 46), outline=False)
            pen.draw_oval(0.35, -0.95, 0.28, 0.14, (80, 180, 70))
            pen.draw_oval(-0.45, -0.25, 0.14, 0.22, (250, 150, 140), outline=False)
        case "star":
            r = [1.0 if i % 2 == 0 else 0.45 for i in range(10)]
            pen.draw_polygon(
                [(r[i] * np.sin(i * np.pi / 5), -r[i] * np.cos(i * np.pi / 5)) for i in range(10)],
                (255, 214, 60),
            )
        case "heart":
            pen.draw_polygon(
                [
                    (
                        0.062 * 16 * np.sin(t) ** 3,
                        -0.062 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)),
                    )
                    for t in turn
                ],
                (250, 90, 140),
            )
        case "flower":
            pen.draw_stroke([(0, 0), (0, 1.4)], (70, 150, 60), 0.12)
            for t in np.arange(6) * np.pi / 3:
                pen.draw_oval(0.58 * np.sin(t), 0.58 * np.cos(t), 0.38, 0.38, (250, 170, 220))
            pen.draw_oval(0, 0, 0.34, 0.34, (255, 205, 60))
        case "house":
            pen.draw_polygon([(-0.9, -0.1), (0.9, -0.1), (0.9, 1.1), (-0.9, 1.1)], (250, 236, 206))
            pen.draw_polygon([(-1.15, -0.05), (0, -1.05), (1.15, -0.05)], (208, 76, 58))
            pen.draw_polygon([(-0.22, 0.4), (0.22, 0.4), (0.22, 1.1), (-0.22, 1.1)], (130, 84, 52))
            pen.draw_polygon([(0.4, 0.2), (0.75, 0.2), (0.75, 0.55), (0.4, 0.55)], (130, 200, 240))
        case "tree":
            pen.draw_polygon([(-0.16, 0.2), (0.16, 0.2), (0.2, 1.15), (-0.2, 1.15)], (120, 80, 48))
            pen.draw_oval(-0.45, 0.0, 0.5, 0.45, (64, 160, 70))
            pen.draw_oval(0.45, 0.0, 0.5, 0.45, (64, 160, 70))
            pen.draw_oval(0, -0.45, 0.62, 0.6, (84, 184, 84))
