"""kohya's aspect buckets: at which size a picture is trained, so that little of it is cut off and no batch mixes sizes.

As `BucketManager` of kohya-ss/sd-scripts chooses them, so that a dataset is trained at the sizes its author knows.
"""

import math
from dataclasses import dataclass

from core.limits import BUCKET
from core.types import UserError


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one picture becomes a training picture: resized until it covers its bucket, then cut evenly. All in pixels."""

    bucket: tuple[int, int]
    """Width and height that the model sees."""
    resized: tuple[int, int]
    """Width and height before the cut."""
    crop: tuple[int, int]
    """Left and top of the bucket in the resized picture."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Which sizes there are. Raises `UserError` for settings that do not go together."""

    resolution: int
    """Side in pixels of the square whose area no bucket exceeds."""
    least: int = 256
    """The shortest side of a bucket."""
    most: int = 2048
    """The longest side."""
    step: int = 64
    """Sides are multiples of this many pixels."""
    upscale: bool = True
    """Whether pictures are enlarged to their bucket; if not, buckets are made to measure and `least` and `most` do not count."""

    def __post_init__(self) -> None:
        for name in ("resolution", "least", "most"):
            if type(side := getattr(self, name)) is not int or not BUCKET[0] <= side <= BUCKET[1]:
                raise UserError(f"buckets.{name}: {side!r:.40} is not allowed; it takes a whole number from {BUCKET[0]} to {BUCKET[1]}.")
        if type(self.step) is not int or not 8 <= self.step <= self.resolution or self.step % 8:  # one latent is 8 pixels
            raise UserError(f"buckets.step: {self.step!r:.40} is not allowed; it takes a multiple of 8 up to the resolution of {self.resolution}.")
        for name in ("least", "most"):
            if (side := getattr(self, name)) % self.step:
                raise UserError(f"buckets.{name}: {side} is not allowed; it takes a multiple of the step of {self.step}.")
        if not self.least <= self.resolution <= self.most:
            raise UserError(f"buckets.resolution: {self.resolution} is not allowed; it takes a number from buckets.least, {self.least}, to most, {self.most}.")

    def sizes(self) -> list[tuple[int, int]]:
        """Every width and height that a picture may be enlarged or shrunk to, rising."""
        area = self.resolution**2
        square = self.resolution - self.resolution % self.step
        found = {(square, square)}
        for side in range(self.least, self.most + 1, self.step):
            other = area // side
            other = min(self.most, other - other % self.step)
            if other >= self.least:
                found |= {(side, other), (other, side)}
        return sorted(found)

    def fit(self, width: int, height: int) -> Fit:
        """Where a picture of that size goes. Raises `UserError` for one that is too small or too thin to fill a bucket unenlarged."""
        bucket, resized = self._enlarged(width, height) if self.upscale else self._measured(width, height)
        if 0 in bucket:
            raise UserError(f"buckets.upscale: a picture of {width} x {height} cannot fill {self.step} pixels both ways; switch it on or leave it out.")
        return Fit(bucket=bucket, resized=resized, crop=((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2))

    def _enlarged(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The bucket of the picture's own size, else the one nearest in aspect; and the picture covering it."""
        sizes, aspect = self.sizes(), width / height
        bucket = (width, height) if (width, height) in sizes else min(sizes, key=lambda size: abs(size[0] / size[1] - aspect))
        scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
        return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))

    def _measured(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The picture, shrunk if its area is too large, and what of it is a multiple of the step."""
        resized, aspect = (width, height), width / height
        if width * height > self.resolution**2:
            exact = math.sqrt(self.resolution**2 * aspect)
            across, down = self._stepped(exact), self._stepped(self.resolution**2 / exact)
            if not (along := (across, self._stepped(across / aspect)))[1] or not down:
                return (0, 0), resized
            # One side becomes a multiple of the step: that which, with the other rounded as well, keeps the aspect better.
            if abs(along[0] / along[1] - aspect) < abs(self._stepped(down * aspect) / down - aspect):
                resized = (across, int(across / aspect + 0.5))
            else:
                resized = (int(down * aspect + 0.5), down)
        return (resized[0] - resized[0] % self.step, resized[1] - resized[1] % self.step), resized

    def _stepped(self, side: float) -> int:
        """To whole pixels, then down to a multiple of the step."""
        whole = int(side + 0.5)
        return whole - whole % self.step
