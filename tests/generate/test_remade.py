"""A picture made with any sampler and schedule is remade from its own PNG, bit for bit."""

from pathlib import Path

import pytest
from PIL import Image

from core.generate.picture_file import save_picture
from core.generate.pipeline import generate
from core.prompts import png_metadata
from core.schema.events import Picture
from core.schema.samplers import OLD_SCHEDULES, SAMPLERS, SCHEDULES
from core.schema.types import Cell, Request

SHARED = {
    "model": "nano", "prompt": "1girl, red hair", "negative": "low quality", "width": 64, "height": 64,
    "steps": 3, "cfg": 2.5, "cfg_rescale": 0.7, "seed": 7,
}  # fmt: skip


def make_picture(request: Request) -> Image.Image:
    (made,) = (e.image for e in generate([Cell(label="", request=request)]) if isinstance(e, Picture))
    return made


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_of_every_pair_is_remade_from_its_own_png(sampler: str, tmp_path: Path) -> None:
    pairs = [schedule for schedule in SCHEDULES if sampler in OLD_SCHEDULES.get(schedule, SAMPLERS)]
    for schedule in pairs:
        request = Request(**SHARED, sampler=sampler, schedule=schedule)
        save_picture(made := make_picture(request), request, tmp_path / "made.png")
        again = Request(**png_metadata.read_infotext(tmp_path / "made.png").fields)
        assert again == request
        assert make_picture(again).tobytes() == made.tobytes(), schedule
