"""kohya's aspect buckets: the size each picture is trained at, so that little is cropped.

No batch mixes sizes. Chooses as `BucketManager` of kohya-ss/sd-scripts does, so that a dataset is
trained at the sizes its author knows.
"""

import math
from dataclasses import dataclass

from core.schema.errors import UserError
from core.schema.limits import BUCKET_SIDE


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one picture becomes a training picture: resized to cover its bucket, then cropped evenly.

    All values are in pixels.
    """

    bucket: tuple[int, int]
    """Width and height that the model sees."""
    resized: tuple[int, int]
    """Width and height before the crop."""
    crop: tuple[int, int]
    """Left and top of the bucket in the resized picture."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The sizes that pictures are trained at.

    Raises `UserError` for settings that do not go together.
    """

    resolution: int
    """Side in pixels of the square whose area no bucket exceeds."""
    least: int = 256
    """The shortest side of a bucket, in pixels."""
    most: int = 2048
    """The longest side of a bucket, in pixels."""
    step: int = 64
    """Sides are multiples of this many pixels."""
    upscale: bool = True
    """Whether pictures are enlarged to their bucket; if not, each gets a bucket of its own size,
    and `least` and `most` do not count."""

    def __post_init__(self) -> None:
        for name in ("resolution", "least", "most"):
            if type(side := getattr(self, name)) is not int or not BUCKET_SIDE[0] <= side <= BUCKET_SIDE[1]:
                raise UserError(
                    f"buckets.{name}",
                    f"{side!r:.40} is not valid. "
                    f"Use a whole number from {BUCKET_SIDE[0]} to {BUCKET_SIDE[1]}.",
                )
        # One latent is 8 pixels.
        if type(self.step) is not int or not 8 <= self.step <= self.resolution or self.step % 8:
            raise UserError(
                "buckets.step",
                f"{self.step!r:.40} is not valid. "
                f"Use a multiple of 8 up to the resolution of {self.resolution}.",
            )
        for name in ("least", "most"):
            if (side := getattr(self, name)) % self.step:
                raise UserError(
                    f"buckets.{name}", f"{side} is not valid. Use a multiple of the step of {self.step}."
                )
        if not self.least <= self.resolution <= self.most:
            raise UserError(
                "buckets.resolution",
                f"{self.resolution} is not valid. "
                f"Use a number from buckets.least, {self.least}, to most, {self.most}.",
            )

    def sizes(self) -> list[tuple[int, int]]:
        """List every width and height that a picture may be resized to, in ascending order."""
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
        """Return how a picture of this width and height, in pixels, is resized and cropped.

        Raises `UserError` if the picture is too small or too thin to fill a bucket without being
        enlarged.
        """
        bucket, resized = (
            self._fit_predefined(width, height) if self.upscale else self._fit_exact(width, height)
        )
        if 0 in bucket:
            raise UserError(
                "buckets.upscale",
                f"an image of {width} x {height} cannot fill {self.step} pixels "
                "both ways. Turn upscaling on or remove it.",
            )
        return Fit(
            bucket=bucket,
            resized=resized,
            crop=((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2),
        )

    def _fit_predefined(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Choose the picture's own size as bucket, else the one nearest in aspect; resize to cover
        it."""
        sizes, aspect = self.sizes(), width / height
        bucket = (
            (width, height)
            if (width, height) in sizes
            else min(sizes, key=lambda size: abs(size[0] / size[1] - aspect))
        )
        scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
        return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))

    def _fit_exact(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shrink the picture if its area is too large; crop its sides to multiples of the step."""
        resized, aspect = (width, height), width / height
        if width * height > self.resolution**2:
            exact = math.sqrt(self.resolution**2 * aspect)
            across, down = self._round_to_step(exact), self._round_to_step(self.resolution**2 / exact)
            if not (along := (across, self._round_to_step(across / aspect)))[1] or not down:
                return (0, 0), resized
            # One side becomes a multiple of the step: the one that keeps the aspect better
            # once the other is rounded too.
            if abs(along[0] / along[1] - aspect) < abs(self._round_to_step(down * aspect) / down - aspect):
                resized = (across, int(across / aspect + 0.5))
            else:
                resized = (int(down * aspect + 0.5), down)
        return (resized[0] - resized[0] % self.step, resized[1] - resized[1] % self.step), resized

    def _round_to_step(self, side: float) -> int:
        """Round to whole pixels, then down to a multiple of the step."""
        whole = int(side + 0.5)
        return whole - whole % self.step
