"""Draws a `Scene` with Pillow: flat celluloid avatars with halos, and their world.

Shapes are laid down at four times the size, in units of the head's radius, then shrunk;
the styles are what a pen, an airbrush or a pixel grid makes of the same shapes.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from core.nano.world import Scene

SCALE = 4
"""Shapes are drawn at this many times the picture's size, then averaged down."""

INK = (60, 42, 58)
SKIN = (255, 226, 208)
HAIR = {
    "blonde hair": (250, 214, 96), "pink hair": (250, 150, 190), "blue hair": (88, 140, 235), "black hair": (52, 48, 60),
    "white hair": (226, 230, 240), "red hair": (214, 60, 52), "green hair": (92, 186, 96), "purple hair": (150, 92, 205),
}  # fmt: skip
EYES = {"blue eyes": (40, 110, 240), "red eyes": (225, 30, 40), "green eyes": (30, 165, 70), "yellow eyes": (245, 180, 10), "purple eyes": (150, 50, 215)}
HALO = {"blue halo": (50, 150, 255), "pink halo": (255, 85, 170), "yellow halo": (255, 205, 30)}

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of `scene.width` x `scene.height`; the same scene, the same pixels."""
    rng = np.random.default_rng(scene.seed)
    canvas = Image.new("RGB", (scene.width * SCALE, scene.height * SCALE), "white")
    pen = Pen(ImageDraw.Draw(canvas), line=0 if scene.style == "airbrush" else round(1.3 * SCALE))
    if scene.subject == "abstract":
        canvas = _abstract(scene, canvas, rng)
    else:
        _background(scene, canvas, rng)
        if scene.subject == "1girl":
            _girl(scene, pen, rng)
        elif scene.thing:
            _thing(scene, pen, rng)
    return _finish(scene, canvas, rng)


class Pen:
    """Draws filled shapes with an outline, in a frame with its own origin and unit (in canvas pixels)."""

    def __init__(self, target: ImageDraw.ImageDraw, line: int):
        self.target, self.line = target, line
        self.x = self.y = 0.0
        self.unit = 1.0

    def at(self, x: float, y: float, unit: float) -> None:
        self.x, self.y, self.unit = x, y, unit

    def _points(self, points: list[Point]) -> list[Point]:
        return [(self.x + u * self.unit, self.y + v * self.unit) for u, v in points]

    def oval(self, u: float, v: float, a: float, b: float, fill: Colour, outline: bool = True) -> None:
        box = self._points([(u - a, v - b), (u + a, v + b)])
        self.target.ellipse(box, fill=fill, outline=INK if outline and self.line else None, width=self.line)

    def shape(self, points: list[Point], fill: Colour, outline: bool = True) -> None:
        where = self._points(points)
        self.target.polygon(where, fill=fill)
        if outline and self.line:
            self.target.line([*where, where[0]], fill=INK, width=self.line, joint="curve")

    def stroke(self, points: list[Point], colour: Colour, width: float) -> None:
        self.target.line(self._points(points), fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def arc(self, u: float, v: float, a: float, b: float, start: float, end: float, colour: Colour, width: float) -> None:
        box = self._points([(u - a, v - b), (u + a, v + b)])
        self.target.arc(box, start, end, fill=colour, width=max(1, round(width * self.unit)))


def _shade(colour: Colour, by: float) -> Colour:
    """Lighter towards white for `by` > 0, darker towards black for `by` < 0."""
    goal = 255 if by > 0 else 0
    return tuple(round(c + (goal - c) * abs(by)) for c in colour)  # type: ignore[return-value]


# --- background ---------------------------------------------------------------------------


def _bands(canvas: Image.Image, stops: list[tuple[float, Colour]], left: float = 0, top: float = 0) -> None:
    """Fill with colours that run from stop to stop, top to bottom (tilted by left/top, in -1..1)."""
    w, h = canvas.size
    y = np.linspace(0, 1, h)[:, None] * (1 - abs(left)) + np.linspace(0, 1, w)[None] * left + top
    flat = [np.interp(y, [s for s, _ in stops], [c[k] for _, c in stops]) for k in range(3)]
    canvas.paste(Image.fromarray(np.stack(flat, -1).astype(np.uint8)))


def _background(scene: Scene, canvas: Image.Image, rng: np.random.Generator) -> None:
    w, h = canvas.size
    pen = ImageDraw.Draw(canvas)
    match scene.background:
        case "blue sky":
            _bands(canvas, [(0, (96, 178, 250)), (1, (190, 228, 255))])
            for _ in range(4):
                x, y, r = rng.uniform(0, w), rng.uniform(0.05, 0.55) * h, rng.uniform(0.06, 0.11) * h
                for dx in (-1.1, 0, 1.1):
                    pen.ellipse((x + dx * r - r, y - r * 0.7, x + dx * r + r, y + r * 0.7), fill="white")
        case "night sky":
            _bands(canvas, [(0, (16, 18, 62)), (1, (50, 46, 112))])
            for _ in range(26):
                x, y, r = rng.uniform(0, w), rng.uniform(0, 0.9) * h, rng.uniform(2, 5.5)
                pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 210))
            x, y, r = rng.choice([0.15, 0.85]) * w, 0.16 * h, 0.09 * h
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 242, 170))
        case "sunset":
            _bands(canvas, [(0, (120, 66, 140)), (0.5, (250, 130, 96)), (1, (255, 206, 110))])
            x, y, r = rng.uniform(0.15, 0.85) * w, rng.uniform(0.6, 0.75) * h, 0.13 * h
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 170))
        case "classroom":
            _bands(canvas, [(0, (240, 222, 186)), (0.72, (232, 208, 168)), (0.72, (176, 122, 80)), (1, (160, 106, 66))])
            x = rng.uniform(-0.05, 0.05) * w
            pen.rectangle((x + 0.08 * w, 0.1 * h, x + 0.92 * w, 0.55 * h), fill=(46, 110, 84), outline=(140, 92, 56), width=10)
        case "beach":
            _bands(
                canvas,
                [(0, (140, 210, 250)), (0.42, (200, 236, 255)), (0.42, (20, 140, 200)), (0.7, (60, 190, 215)), (0.7, (246, 226, 170)), (1, (238, 210, 150))],
            )
        case "forest":
            _bands(canvas, [(0, (176, 224, 160)), (0.75, (120, 190, 110)), (0.75, (70, 130, 60)), (1, (56, 110, 50))])
            for i in range(6):
                x, r = (i + rng.uniform(0.2, 0.8)) * w / 6, rng.uniform(0.13, 0.2) * h
                pen.rectangle((x - 10, 0.4 * h, x + 10, 0.8 * h), fill=(104, 70, 44))
                pen.ellipse((x - r, 0.32 * h - r, x + r, 0.32 * h + r), fill=(40, int(rng.uniform(105, 140)), 56))


def _abstract(scene: Scene, canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
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
                pen.polygon([(x, 0), (x + width, 0), (x + width + slope, h), (x + slope, h)], fill=colours[1 + i // 2 % 2])
    else:
        for i in range(12):
            x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.06, 0.18) * h
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colours[1 + i % 3])
    return canvas


# --- things and people --------------------------------------------------------------------


def _thing(scene: Scene, pen: Pen, rng: np.random.Generator) -> None:
    w, h = scene.width * SCALE, scene.height * SCALE
    unit = min(w, h) * rng.uniform(0.27, 0.36)
    pen.at(w * rng.uniform(0.4, 0.6), h * rng.uniform(0.5, 0.56), unit)
    turn = np.linspace(0, 2 * np.pi, 49)
    match scene.thing:
        case "apple":
            pen.stroke([(0, -0.7), (0.1, -1.15)], (110, 70, 40), 0.1)
            pen.oval(-0.28, 0.1, 0.68, 0.85, (222, 46, 46))
            pen.oval(0.28, 0.1, 0.68, 0.85, (222, 46, 46))
            pen.oval(0, 0.1, 0.6, 0.74, (222, 46, 46), outline=False)
            pen.oval(0.35, -0.95, 0.28, 0.14, (80, 180, 70))
            pen.oval(-0.45, -0.25, 0.14, 0.22, (250, 150, 140), outline=False)
        case "star":
            r = [1.0 if i % 2 == 0 else 0.45 for i in range(10)]
            pen.shape([(r[i] * np.sin(i * np.pi / 5), -r[i] * np.cos(i * np.pi / 5)) for i in range(10)], (255, 214, 60))
        case "heart":
            pen.shape(
                [(0.062 * 16 * np.sin(t) ** 3, -0.062 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))) for t in turn], (250, 90, 140)
            )
        case "flower":
            pen.stroke([(0, 0), (0, 1.4)], (70, 150, 60), 0.12)
            for t in np.arange(6) * np.pi / 3:
                pen.oval(0.58 * np.sin(t), 0.58 * np.cos(t), 0.38, 0.38, (250, 170, 220))
            pen.oval(0, 0, 0.34, 0.34, (255, 205, 60))
        case "house":
            pen.shape([(-0.9, -0.1), (0.9, -0.1), (0.9, 1.1), (-0.9, 1.1)], (250, 236, 206))
            pen.shape([(-1.15, -0.05), (0, -1.05), (1.15, -0.05)], (208, 76, 58))
            pen.shape([(-0.22, 0.4), (0.22, 0.4), (0.22, 1.1), (-0.22, 1.1)], (130, 84, 52))
            pen.shape([(0.4, 0.2), (0.75, 0.2), (0.75, 0.55), (0.4, 0.55)], (130, 200, 240))
        case "tree":
            pen.shape([(-0.16, 0.2), (0.16, 0.2), (0.2, 1.15), (-0.2, 1.15)], (120, 80, 48))
            pen.oval(-0.45, 0.0, 0.5, 0.45, (64, 160, 70))
            pen.oval(0.45, 0.0, 0.5, 0.45, (64, 160, 70))
            pen.oval(0, -0.45, 0.62, 0.6, (84, 184, 84))


def _girl(scene: Scene, pen: Pen, rng: np.random.Generator) -> None:
    w, h = scene.width * SCALE, scene.height * SCALE
    narrow = min(w, h)
    unit, high = {"portrait": (0.315 * narrow, 0.57), "upper body": (0.225 * narrow, 0.46), "full body": (min(0.182 * h, 0.25 * w), 0.335)}[
        scene.framing or "portrait"
    ]
    unit *= rng.uniform(0.95, 1.04)
    side = {"on left": -0.24, "on right": 0.24, None: 0.0}[scene.side]
    pen.at(w * (0.5 + side + rng.uniform(-0.025, 0.025)), h * high + rng.uniform(-0.06, 0.06) * unit, unit)
    hair = HAIR[scene.hair or "blonde hair"]
    _back_hair(scene, pen, hair, rng)
    _body(scene, pen)
    _face(scene, pen)
    _front_hair(scene, pen, hair, rng)
    if scene.halo:
        colour = HALO[scene.halo]
        pen.arc(0, -1.24, 0.72, 0.25, 0, 360, _shade(colour, -0.25) if pen.line else colour, 0.2)
        pen.arc(0, -1.24, 0.69, 0.22, 0, 360, colour, 0.13)


def _back_hair(scene: Scene, pen: Pen, hair: Colour, rng: np.random.Generator) -> None:
    dark = _shade(hair, -0.14)
    match scene.hair_style:
        case "long hair":
            pen.shape([(-1.08, -0.2), (-1.22, 1.0), (-1.28, 2.1), (-0.8, 2.3), (0, 2.15), (0.8, 2.3), (1.28, 2.1), (1.22, 1.0), (1.08, -0.2)], dark)
            pen.oval(0, -0.05, 1.12, 1.1, dark)
        case "twintails":
            for m in (-1, 1):
                pen.shape([(m * 0.85, -0.55), (m * 1.55, -0.5), (m * 1.85, 0.5), (m * 1.7, 1.5), (m * 1.4, 1.95), (m * 1.2, 1.2), (m * 1.1, 0.3)], dark)
            pen.oval(0, -0.05, 1.08, 1.02, dark)
        case "ponytail":
            m = rng.choice([-1, 1])
            pen.shape([(m * 0.5, -0.95), (m * 1.3, -1.1), (m * 1.85, -0.4), (m * 1.9, 0.6), (m * 1.55, 1.4), (m * 1.35, 0.5), (m * 1.05, -0.2)], dark)
            pen.oval(0, -0.05, 1.08, 1.0, dark)
        case _:
            pen.shape([(-1.08, -0.1), (-1.14, 0.6), (-0.85, 0.9), (0.85, 0.9), (1.14, 0.6), (1.08, -0.1)], dark)
            pen.oval(0, -0.05, 1.12, 1.05, dark)


def _body(scene: Scene, pen: Pen) -> None:
    main, trim, skirt = {
        "school uniform": ((250, 250, 252), (40, 60, 130), (40, 60, 130)), "hoodie": ((255, 150, 50), (240, 240, 240), (90, 92, 104)),
        "maid": ((44, 42, 52), (252, 252, 255), (44, 42, 52)), "kimono": ((60, 170, 170), (240, 100, 150), (60, 170, 170)),
        None: ((236, 236, 242), (190, 190, 205), (120, 120, 140)),
    }[scene.outfit]  # fmt: skip
    if scene.framing == "full body":
        for m in (-1, 1):
            pen.shape([(m * 0.12, 2.3), (m * 0.42, 2.3), (m * 0.4, 3.1), (m * 0.12, 3.1)], SKIN)
            pen.oval(m * 0.3, 3.15, 0.26, 0.16, _shade(trim, -0.35))
        if scene.outfit == "kimono":
            pen.shape([(-0.62, 1.7), (0.62, 1.7), (0.74, 3.0), (-0.74, 3.0)], skirt)
        else:
            pen.shape([(-0.55, 1.75), (0.55, 1.75), (0.95, 2.55), (-0.95, 2.55)], skirt)
    low = 2.0 if scene.framing == "full body" else 3.4
    wide = 0.62 if scene.framing == "full body" else 0.95
    for m in (-1, 1):  # arms
        sleeve = 1.35 if scene.outfit == "kimono" else 1.1
        pen.shape([(m * 0.5, 1.05), (m * 0.8, 1.1), (m * sleeve, low - 0.1), (m * (sleeve - 0.42), low)], main)
    pen.shape([(-0.28, 0.8), (0.28, 0.8), (0.32, 1.1), (-0.32, 1.1)], _shade(SKIN, -0.08))
    pen.shape([(-0.58, 1.02), (0.58, 1.02), (wide, low), (-wide, low)], main)
    match scene.outfit:
        case "school uniform":
            pen.shape([(-0.62, 1.0), (-0.2, 0.98), (0, 1.35), (0.2, 0.98), (0.62, 1.0), (0.66, 1.32), (0, 1.5), (-0.66, 1.32)], trim)
            pen.shape([(0, 1.42), (-0.4, 1.24), (-0.4, 1.68)], (225, 40, 60))
            pen.shape([(0, 1.42), (0.4, 1.24), (0.4, 1.68)], (225, 40, 60))
        case "hoodie":
            pen.shape([(-0.72, 0.95), (0, 1.42), (0.72, 0.95), (0.6, 1.35), (0, 1.62), (-0.6, 1.35)], _shade(main, -0.18))
            for m in (-1, 1):
                pen.stroke([(m * 0.18, 1.5), (m * 0.2, 1.95)], trim, 0.09)
        case "maid":
            pen.shape([(-0.36, 1.2), (0.36, 1.2), (0.5, low), (-0.5, low)], trim)
            pen.oval(-0.46, 1.12, 0.26, 0.16, trim)
            pen.oval(0.46, 1.12, 0.26, 0.16, trim)
            if scene.framing == "full body":
                pen.shape([(-0.42, 1.8), (0.42, 1.8), (0.6, 2.42), (-0.6, 2.42)], trim)
        case "kimono":
            pen.shape([(-0.46, 1.0), (0.08, 1.72), (-0.12, 1.85), (-0.66, 1.1)], (250, 250, 250))
            pen.shape([(0.46, 1.0), (-0.2, 1.85), (0.0, 1.95), (0.66, 1.1)], (250, 250, 250))
            pen.shape(
                [(-wide, 1.72), (wide, 1.72), (wide, 2.12), (-wide, 2.12)]
                if scene.framing == "full body"
                else [(-0.78, 2.0), (0.78, 2.0), (0.85, 2.7), (-0.85, 2.7)],
                trim,
            )


def _face(scene: Scene, pen: Pen) -> None:
    pen.oval(0, 0.08, 0.92, 0.9, SKIN)
    if scene.blush:
        for m in (-1, 1):
            pen.oval(m * 0.6, 0.52, 0.2, 0.12, (255, 130, 130), outline=False)
    for m in (-1, 1):
        if scene.eyes is None:
            pen.arc(m * 0.4, 0.12, 0.25, 0.24, 15, 165, INK, 0.1)
        else:
            colour = EYES[scene.eyes]
            pen.oval(m * 0.4, 0.17, 0.25, 0.34, (255, 255, 255), outline=False)
            pen.oval(m * 0.4, 0.19, 0.22, 0.31, colour, outline=False)
            pen.oval(m * 0.4, 0.17, 0.09, 0.16, _shade(colour, -0.55), outline=False)
            pen.oval(m * 0.4 - 0.08, 0.03, 0.08, 0.09, (255, 255, 255), outline=False)
            pen.arc(m * 0.4, 0.15, 0.28, 0.36, 195, 345, INK, 0.1)
    match scene.mouth:
        case "smile":
            pen.arc(0, 0.5, 0.3, 0.24, 20, 160, INK, 0.09)
        case "open mouth":
            pen.oval(0, 0.66, 0.17, 0.18, (205, 50, 62), outline=True)
        case "frown":
            pen.arc(0, 0.82, 0.28, 0.24, 205, 335, INK, 0.09)


def _front_hair(scene: Scene, pen: Pen, hair: Colour, rng: np.random.Generator) -> None:
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
    pen.shape([*top, *fringe], hair)
    pen.arc(0, -0.15, 0.74, 0.6, 215, 290, _shade(hair, 0.55), 0.1)
    if scene.hair_style == "twintails":
        for m in (-1, 1):
            pen.oval(m * 1.0, -0.55, 0.17, 0.17, (235, 60, 80))
    if scene.hair_style == "ponytail":
        pen.oval(0, -1.0, 0.16, 0.1, (60, 90, 210))


# --- styles -------------------------------------------------------------------------------


def _finish(scene: Scene, canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    picture = canvas.resize((scene.width, scene.height), Image.Resampling.BOX)
    match scene.style:
        case "airbrush":
            picture = _airbrush(picture, rng)
        case "sketch":
            picture = _sketch(picture, canvas)
        case "pixel art":
            small = picture.resize((scene.width // 4, scene.height // 4), Image.Resampling.BOX)
            picture = small.resize(picture.size, Image.Resampling.NEAREST)
    if scene.low_quality:
        store = io.BytesIO()
        picture.filter(ImageFilter.GaussianBlur(1.1)).save(store, "JPEG", quality=12)
        picture = Image.open(store).convert("RGB")
    return picture


def _airbrush(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Soft light from one side and a glow: the outline-free drawing, blurred and lit."""
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / 255
    h, w, _ = soft.shape
    y, x = np.mgrid[0:h, 0:w]
    far = np.hypot(x / w - rng.uniform(0, 1), y / h - rng.uniform(0, 0.4))
    light = np.clip(1.15 - 0.6 * far, 0.5, 1.15)[..., None]
    glow = np.asarray(picture.filter(ImageFilter.GaussianBlur(9)), np.float32) / 255
    lit = 0.86 * soft * light + 0.22 * glow * light
    return Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8))


def _sketch(picture: Image.Image, canvas: Image.Image) -> Image.Image:
    """Pencil on paper: pale washes of the colours under dark edges."""
    edges = canvas.convert("L").resize((picture.width * 2, picture.height * 2), Image.Resampling.BOX)
    edges = edges.filter(ImageFilter.FIND_EDGES).resize(picture.size, Image.Resampling.BOX)
    line = np.clip(np.asarray(edges, np.float32)[..., None] / 60, 0, 1)
    wash = 0.42 * np.asarray(picture, np.float32) + 0.58 * 250
    return Image.fromarray((wash * (1 - line) + 70 * line).astype(np.uint8))
