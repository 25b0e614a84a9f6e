"""Draws the girl of a `Scene`, from the hair behind her to the halo above."""

import numpy as np

from core.nano.pen import INK, SCALE, Colour, Pen, shade_colour
from core.nano.world import Scene

SKIN = (255, 226, 208)
HAIR_RGB = {
    "blonde hair": (250, 214, 96),
    "pink hair": (250, 150, 190),
    "blue hair": (88, 140, 235),
    "black hair": (52, 48, 60),
    "white hair": (226, 230, 240),
    "red hair": (214, 60, 52),
    "green hair": (92, 186, 96),
    "purple hair": (150, 92, 205),
}
EYE_RGB = {
    "blue eyes": (40, 110, 240),
    "red eyes": (225, 30, 40),
    "green eyes": (30, 165, 70),
    "yellow eyes": (245, 180, 10),
    "purple eyes": (150, 50, 215),
}
OUTFIT_RGB = {
    "school uniform": ((250, 250, 252), (40, 60, 130), (40, 60, 130)),
    "hoodie": ((255, 150, 50), (240, 240, 240), (90, 92, 104)),
    "maid": ((44, 42, 52), (252, 252, 255), (44, 42, 52)),
    "kimono": ((60, 170, 170), (240, 100, 150), (60, 170, 170)),
    None: ((236, 236, 242), (190, 190, 205), (120, 120, 140)),
}
"""Colours of an outfit's top, trim and skirt."""
HALO_RGB = {"blue halo": (20, 80, 245), "pink halo": (255, 85, 170), "yellow halo": (255, 205, 30)}
FACE_BOX = (-0.92, -0.82, 0.92, 0.98)
"""Left, top, right and bottom of the face, in units of the head's radius."""


def draw_girl(scene: Scene, pen: Pen, rng: np.random.Generator) -> None:
    """Draw the girl of a scene; the pen's origin and unit stay those of her head."""
    w, h = scene.width * SCALE, scene.height * SCALE
    narrow = min(w, h)
    unit, high = {
        "portrait": (0.315 * narrow, 0.57),
        "upper body": (0.225 * narrow, 0.46),
        "full body": (min(0.182 * h, 0.25 * w), 0.335),
    }[scene.framing or "portrait"]
    unit *= rng.uniform(0.95, 1.04)
    side = {"on left": -0.24, "on right": 0.24, None: 0.0}[scene.side]
    pen.move_to(
        w * (0.5 + side + rng.uniform(-0.025, 0.025)), h * high + rng.uniform(-0.06, 0.06) * unit, unit
    )
    hair = HAIR_RGB[scene.hair or "blonde hair"]
    _draw_back_hair(scene, pen, hair, rng)
    _draw_body(scene, pen)
    _draw_face(scene, pen)
    _draw_front_hair(scene, pen, hair, rng)
    if scene.halo:
        colour = HALO_RGB[scene.halo]
        pen.draw_arc(0, -1.24, 0.72, 0.25, 0, 360, shade_colour(colour, -0.25) if pen.line else colour, 0.2)
        pen.draw_arc(0, -1.24, 0.69, 0.22, 0, 360, colour, 0.13)


def _draw_back_hair(scene: Scene, pen: Pen, hair: Colour, rng: np.random.Generator) -> None:
    dark = shade_colour(hair, -0.14)
    match scene.hair_style:
        case "long hair":
            pen.draw_polygon(
                [
                    (-1.08, -0.2),
                    (-1.22, 1.0),
                    (-1.28, 2.1),
                    (-0.8, 2.3),
                    (0, 2.15),
                    (0.8, 2.3),
                    (1.28, 2.1),
                    (1.22, 1.0),
                    (1.08, -0.2),
                ],
                dark,
            )
            pen.draw_oval(0, -0.05, 1.12, 1.1, dark)
        case "twintails":
            for m in (-1, 1):
                pen.draw_polygon(
                    [
                        (m * 0.85, -0.55),
                        (m * 1.55, -0.5),
                        (m * 1.85, 0.5),
                        (m * 1.7, 1.5),
                        (m * 1.4, 1.95),
                        (m * 1.2, 1.2),
                        (m * 1.1, 0.3),
                    ],
                    dark,
                )
            pen.draw_oval(0, -0.05, 1.08, 1.02, dark)
        case "ponytail":
            m = rng.choice([-1, 1])
            pen.draw_polygon(
                [
                    (m * 0.5, -0.95),
                    (m * 1.3, -1.1),
                    (m * 1.85, -0.4),
                    (m * 1.9, 0.6),
                    (m * 1.55, 1.4),
                    (m * 1.35, 0.5),
                    (m * 1.05, -0.2),
                ],
                dark,
            )
            pen.draw_oval(0, -0.05, 1.08, 1.0, dark)
        case _:
            pen.draw_polygon(
                [(-1.08, -0.1), (-1.14, 0.6), (-0.85, 0.9), (0.85, 0.9), (1.14, 0.6), (1.08, -0.1)], dark
            )
            pen.draw_oval(0, -0.05, 1.12, 1.05, dark)


def _draw_body(scene: Scene, pen: Pen) -> None:
    main, trim, skirt = OUTFIT_RGB[scene.outfit]
    if scene.framing == "full body":
        _draw_legs(scene, pen, trim, skirt)
    low = 2.0 if scene.framing == "full body" else 3.4
    wide = 0.62 if scene.framing == "full body" else 0.95
    for m in (-1, 1):  # arms
        sleeve = 1.35 if scene.outfit == "kimono" else 1.1
        pen.draw_polygon(
            [(m * 0.5, 1.05), (m * 0.8, 1.1), (m * sleeve, low - 0.1), (m * (sleeve - 0.42), low)], main
        )
    pen.draw_polygon([(-0.28, 0.8), (0.28, 0.8), (0.32, 1.1), (-0.32, 1.1)], shade_colour(SKIN, -0.08))
    pen.draw_polygon([(-0.58, 1.02), (0.58, 1.02), (wide, low), (-wide, low)], main)
    _draw_outfit_trim(scene, pen, low, wide)


def _draw_legs(scene: Scene, pen: Pen, trim: Colour, skirt: Colour) -> None:
    """Draw legs, shoes and the skirt over them."""
    for m in (-1, 1):
        pen.draw_polygon([(m * 0.12, 2.3), (m * 0.42, 2.3), (m * 0.4, 3.1), (m * 0.12, 3.1)], SKIN)
        pen.draw_oval(m * 0.3, 3.15, 0.26, 0.16, shade_colour(trim, -0.35))
    if scene.outfit == "kimono":
        pen.draw_polygon([(-0.62, 1.7), (0.62, 1.7), (0.74, 3.0), (-0.74, 3.0)], skirt)
    else:
        pen.draw_polygon([(-0.55, 1.75), (0.55, 1.75), (0.95, 2.55), (-0.95, 2.55)], skirt)


def _draw_outfit_trim(scene: Scene, pen: Pen, low: float, wide: float) -> None:
    """Draw collar, apron, sash or strings on a top that ends at `low`, `wide` to each side."""
    main, trim, _ = OUTFIT_RGB[scene.outfit]
    match scene.outfit:
        case "school uniform":
            pen.draw_polygon(
                [
                    (-0.62, 1.0),
                    (-0.2, 0.98),
                    (0, 1.35),
                    (0.2, 0.98),
                    (0.62, 1.0),
                    (0.66, 1.32),
                    (0, 1.5),
                    (-0.66, 1.32),
                ],
                trim,
            )
            pen.draw_polygon([(0, 1.42), (-0.4, 1.24), (-0.4, 1.68)], (225, 40, 60))
            pen.draw_polygon([(0, 1.42), (0.4, 1.24), (0.4, 1.68)], (225, 40, 60))
        case "hoodie":
            pen.draw_polygon(
                [(-0.72, 0.95), (0, 1.42), (0.72, 0.95), (0.6, 1.35), (0, 1.62), (-0.6, 1.35)],
                shade_colour(main, -0.18),
            )
            for m in (-1, 1):
                pen.draw_stroke([(m * 0.18, 1.5), (m * 0.2, 1.95)], trim, 0.09)
        case "maid":
            pen.draw_polygon([(-0.36, 1.2), (0.36, 1.2), (0.5, low), (-0.5, low)], trim)
            pen.draw_oval(-0.46, 1.12, 0.26, 0.16, trim)
            pen.draw_oval(0.46, 1.12, 0.26, 0.16, trim)
            if scene.framing == "full body":
                pen.draw_polygon([(-0.42, 1.8), (0.42, 1.8), (0.6, 2.42), (-0.6, 2.42)], trim)
        case "kimono":
            pen.draw_polygon([(-0.46, 1.0), (0.08, 1.72), (-0.12, 1.85), (-0.66, 1.1)], (250, 250, 250))
            pen.draw_polygon([(0.46, 1.0), (-0.2, 1.85), (0.0, 1.95), (0.66, 1.1)], (250, 250, 250))
            pen.draw_polygon(
                [(-wide, 1.72), (wide, 1.72), (wide, 2.12), (-wide, 2.12)]
                if scene.framing == "full body"
                else [(-0.78, 2.0), (0.78, 2.0), (0.85, 2.7), (-0.85, 2.7)],
                trim,
            )


def _draw_face(scene: Scene, pen: Pen) -> None:
    left, top, right, bottom = FACE_BOX
    pen.draw_oval((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2, SKIN)
    if scene.blush:
        for m in (-1, 1):
            pen.draw_oval(m * 0.58, 0.56, 0.27, 0.15, (255, 112, 122), outline=False)
    for m in (-1, 1):
        if scene.eyes is None:
            pen.draw_arc(m * 0.4, 0.12, 0.25, 0.24, 15, 165, INK, 0.1)
        else:
            colour = EYE_RGB[scene.eyes]
            pen.draw_oval(m * 0.4, 0.17, 0.25, 0.34, (255, 255, 255), outline=False)
            pen.draw_oval(m * 0.4, 0.19, 0.22, 0.31, colour, outline=False)
            pen.draw_oval(m * 0.4, 0.17, 0.09, 0.16, shade_colour(colour, -0.55), outline=False)
            pen.draw_oval(m * 0.4 - 0.08, 0.03, 0.08, 0.09, (255, 255, 255), outline=False)
            pen.draw_arc(m * 0.4, 0.15, 0.28, 0.36, 195, 345, INK, 0.1)
    match scene.mouth:
        case "smile":
            pen.draw_arc(0, 0.48, 0.34, 0.31, 15, 165, INK, 0.13)
        case "open mouth":
            pen.draw_oval(0, 0.66, 0.21, 0.2, (205, 50, 62), outline=True)
        case "frown":
            pen.draw_arc(0, 0.86, 0.34, 0.31, 195, 345, INK, 0.13)


def _draw_front_hair(scene: Scene, pen: Pen, hair: Colour, rng: np.random.Generator) -> None:
    dip = rng.uniform(-0.06, 0.06)
    top = [(1.04 * np.cos(t), -0.04 - 1.04 * np.sin(t)) for t in np.linspace(0.0, np.pi, 25)]
    fringe = [
        (-0.98, 0.42),
        (-0.78, -0.12),
        (-0.55, -0.22),
        (-0.42, -0.02 + dip),
        (-0.2, -0.3),
        (0.02, -0.06 - dip),
        (0.22, -0.32),
        (0.45, 0.0),
        (0.58, -0.22),
        (0.78, -0.12),
        (0.98, 0.42),
    ]
    pen.draw_polygon([*top, *fringe], hair)
    pen.draw_arc(0, -0.15, 0.74, 0.6, 215, 290, shade_colour(hair, 0.55), 0.1)
    if scene.hair_style == "twintails":
        for m in (-1, 1):
            pen.draw_oval(m * 1.0, -0.55, 0.17, 0.17, (235, 60, 80))
    if scene.hair_style == "ponytail":
        pen.draw_oval(0, -1.0, 0.16, 0.1, (60, 90, 210))
