"""The pen that nano's world is drawn with."""

from PIL import ImageDraw

SCALE = 4
"""Shapes are drawn at this many times the picture's size, then averaged down."""
INK = (60, 42, 58)

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws filled shapes with an outline, in a frame with its own origin and unit.

    The unit and the width of the outline `line` are in canvas pixels; 0 draws no outline.
    """

    def __init__(self, target: ImageDraw.ImageDraw, line: int):
        self.target, self.line = target, line
        self.x = self.y = 0.0
        self.unit = 1.0

    def move_to(self, x: float, y: float, unit: float) -> None:
        """Move the frame's origin to (x, y) and set its unit, all in canvas pixels."""
        self.x, self.y, self.unit = x, y, unit

    def _to_canvas(self, points: list[Point]) -> list[Point]:
        return [(self.x + u * self.unit, self.y + v * self.unit) for u, v in points]

    def draw_oval(self, u: float, v: float, a: float, b: float, fill: Colour, outline: bool = True) -> None:
        """Draw a filled oval around (u, v) with the half axes a and b."""
        box = self._to_canvas([(u - a, v - b), (u + a, v + b)])
        self.target.ellipse(box, fill=fill, outline=INK if outline and self.line else None, width=self.line)

    def draw_polygon(self, points: list[Point], fill: Colour, outline: bool = True) -> None:
        """Draw a filled polygon."""
        where = self._to_canvas(points)
        self.target.polygon(where, fill=fill)
        if outline and self.line:
            self.target.line([*where, where[0]], fill=INK, width=self.line, joint="curve")

    def draw_stroke(self, points: list[Point], colour: Colour, width: float) -> None:
        """Draw a line through the points, `width` units wide and at least one canvas pixel."""
        self.target.line(
            self._to_canvas(points), fill=colour, width=max(1, round(width * self.unit)), joint="curve"
        )

    def draw_arc(
        self, u: float, v: float, a: float, b: float, start: float, end: float, colour: Colour, width: float
    ) -> None:
        """Draw an arc of the oval around (u, v) with the half axes a and b.

        `start` and `end` are Pillow's degrees, clockwise from 3 o'clock; `width` is in units.
        """
        box = self._to_canvas([(u - a, v - b), (u + a, v + b)])
        self.target.arc(box, start, end, fill=colour, width=max(1, round(width * self.unit)))


def shade_colour(colour: Colour, amount: float) -> Colour:
    """Return the colour, lighter towards white for `amount` > 0, darker towards black for < 0."""
    goal = 255 if amount > 0 else 0
    return tuple(round(c + (goal - c) * abs(amount)) for c in colour)  # type: ignore[return-value]
