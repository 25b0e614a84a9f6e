"""Buckets are the same as kohya's for every picture."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.buckets import Buckets, Fit
from core.schema.errors import UserError

KOHYA_TABLES = json.loads((Path(__file__).parent / "kohya_buckets.json").read_text())["tables"]


def table_id(table: dict) -> str:
    return "{resolution}-{least}-{most}-{step}-{upscale}".format(**table)


@pytest.mark.parametrize("table", KOHYA_TABLES, ids=table_id)
def test_every_picture_goes_where_kohya_puts_it(table: dict) -> None:
    buckets = Buckets(**{name: table[name] for name in ("resolution", "least", "most", "step", "upscale")})
    if table["upscale"]:
        assert buckets.sizes() == [tuple(size) for size in table["sizes"]]
    for width, height, *numbers in table["rows"]:
        if numbers:
            bucket, resized, crop = zip(numbers[::2], numbers[1::2], strict=True)
            assert buckets.fit(width, height) == Fit(bucket=bucket, resized=resized, crop=crop), (
                width,
                height,
            )
        else:
            with pytest.raises(
                UserError,
                match=rf"^buckets\.upscale: an image of {width} x {height} cannot fill {buckets.step} pixels",
            ):
                buckets.fit(width, height)


def test_sdxl_has_193_sizes() -> None:
    sizes = Buckets(resolution=1024, least=256, most=4096, step=32).sizes()
    assert len(sizes) == 193
    assert {(1024, 1024), (832, 1216), (1216, 832), (256, 4096)} <= set(sizes)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([8, 16, 32, 64]), st.booleans())
def test_the_bucket_lies_inside_the_resized_picture(
    width: int, height: int, step: int, upscale: bool
) -> None:
    try:
        fit = Buckets(resolution=512, least=256, most=1024, step=step, upscale=upscale).fit(width, height)
    except UserError:
        assert not upscale
        return
    for side, resized, start in zip(fit.bucket, fit.resized, fit.crop, strict=True):
        assert side > 0
        assert side % step == 0
        assert 0 <= start <= start + side <= resized
        assert abs(resized - side - 2 * start) <= 1, "what is cut off is even"
    # kohya rounds one side to whole pixels and takes the other from it:
    # each may be half a pixel too long.
    ratio = width / height
    assert (fit.bucket[0] - 0.5 - ratio / 2) * (fit.bucket[1] - 0.5 - 1 / ratio / 2) <= 512 * 512
    if not upscale:
        assert fit.resized[0] <= width
        assert fit.resized[1] <= height


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": 12}, r"^buckets\.step: 12 is not valid. Use a multiple of 8"),
        ({"step": 0}, r"^buckets\.step: 0 is not valid"),
        ({"least": 250}, r"^buckets\.least: 250 is not valid. Use a multiple of the step of 64\."),
        ({"most": 1000}, r"^buckets\.most: 1000 is not valid. Use a multiple"),
        (
            {"most": 2**40},
            r"^buckets\.most: 1099511627776 is not valid. Use a whole number from 32 to 8192\.",
        ),
        ({"resolution": float("nan")}, r"^buckets\.resolution: nan is not valid. Use a whole number"),
        ({"resolution": True}, r"^buckets\.resolution: True is not valid"),
        (
            {"most": 960},
            r"^buckets\.resolution: 1024 is not valid. Use a number from buckets\.least, 256, to most, 960\.",
        ),
        ({"least": 1088}, r"^buckets\.resolution: 1024 is not valid"),
    ],
)
def test_settings_that_do_not_go_together_are_a_sentence(change: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Buckets(**{"resolution": 1024, **change})
