"""The pen that nano's world is drawn with: filled, outlined shapes in a frame with its own origin and unit."""

from PIL import ImageDraw

SCALE = 4
"""Shapes are drawn at this many times the picture's size, then averaged down."""
INK = (60, 42, 58)

Colour = tuple[int, int, int]
Point = tuple[float, float]


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


def shade(colour: Colour, by: float) -> Colour:
    """Lighter towards white for `by` > 0, darker towards black for `by` < 0."""
    goal = 255 if by > 0 else 0
    return tuple(round(c + (goal - c) * abs(by)) for c in colour)  # type: ignore[return-value]
