"""A picture made with any sampler, size, seed and second pass is remade from its own PNG, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.generate import request as picture_request
from core.generate.picture_file import save_picture
from core.generate.pipeline import generate
from core.generate.request import PictureForm, fill_form
from core.models import lora_library
from core.prompts import choices, png_metadata
from core.schema.events import Picture
from core.schema.records import read_form
from core.schema.samplers import OLD_SCHEDULES, SAMPLERS, SCHEDULES
from core.schema.types import Cell, Request

SHARED = {
    "model": "nano", "prompt": "1girl, red hair", "negative": "low quality", "width": 64, "height": 64,
    "steps": 3, "cfg": 2.5, "cfg_rescale": 0.7, "seed": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    "prompt",
    [
        "[1girl:1boy:1] (red hair [a) b], \\solo",
        "[red|blue] hair AND smile :0.5",
        "{1girl|1boy|no humans}, __colour__ hair",
        "1girl <lora:{lora}:1.5:MIDD>",
        "1girl <lyco:{lora}:1:2:start=2> <lora:{lora}:-1:step=1-2>",
    ],
)
def test_a_picture_of_every_prompt_is_remade_from_its_own_png(
    prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what its seed chose, with joined prompts, and with a LoRA of a part of the steps."""
    (tmp_path / "colour.txt").write_text("red\nblue\n")
    monkeypatch.setattr(choices, "FOLDER", tmp_path)
    prompt = prompt.replace("{lora}", next(iter(lora_library.list_loras())))
    request = fill_form(PictureForm(**{**SHARED, "prompt": prompt}, sampler="Heun", preset="nano")).request
    save_picture(made := make_picture(request), request, tmp_path / "made.png")
    reading = png_metadata.read_infotext(tmp_path / "made.png")
    assert reading.unused.get("Template", prompt) == prompt
    again = fill_form(PictureForm(**reading.fields)).request
    assert make_picture(again).tobytes() == made.tobytes()
    assert make_picture(replace(request, prompt="1girl", loras=())).tobytes() != made.tobytes()


def test_a_lora_is_on_in_its_steps_alone() -> None:
    """`step=` was once ignored, with the LoRA on throughout."""

    def make(tag: str) -> bytes:
        form = PictureForm(**{**SHARED, "prompt": f"1girl {tag}"}, sampler="Euler", preset="nano")
        return make_picture(fill_form(form).request).tobytes()

    whole, without = make("<lora:nano-airbrush:2>"), make("<lora:nano-airbrush:0>")
    assert make("<lora:nano-airbrush:2:start=1>") == make("<lora:nano-airbrush:2:stop=9>") == whole
    assert make("<lora:nano-airbrush:2:stop=1>") == make("<lora:nano-airbrush:2:start=9>") == without
    assert (
        len({whole, without, make("<lora:nano-airbrush:2:stop=2>"), make("<lora:nano-airbrush:2:start=2>")})
        == 4
    )


def test_prompts_joined_by_and_pull_by_their_weights() -> None:
    """Each pulls away from the negative by itself: at weight 0 not at all, two halves as one whole."""

    def make(prompt: str, cfg: float = 2.5) -> np.ndarray:
        return np.asarray(
            make_picture(
                Request(**{**SHARED, "prompt": prompt, "cfg": cfg, "cfg_rescale": 0.0}, sampler="Euler")
            ),
            int,
        )

    assert np.abs(make("1girl AND 1boy :0") - make("1girl")).max() <= 1
    assert np.abs(make("1girl :0.5 AND 1girl :0.5") - make("1girl")).max() <= 1
    assert np.abs(make("1girl :0.5 AND 1girl :0.75", 2.0) - make("1girl")).max() <= 1
    assert np.abs(make("1girl AND 1boy") - make("1girl")).max() > 8


def make_picture(request: Request) -> Image.Image:
    (made,) = (e.image for e in generate([Cell(label="", request=request)]) if isinstance(e, Picture))
    return made


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_of_every_pair_is_remade_from_its_own_png(sampler: str, tmp_path: Path) -> None:
    """Equal settings make equal pictures; one of each sampler is made twice to show it."""
    pairs = [schedule for schedule in SCHEDULES if sampler in OLD_SCHEDULES.get(schedule, SAMPLERS)]
    for schedule in pairs:
        request = Request(**SHARED, sampler=sampler, schedule=schedule)
        save_picture(made := make_picture(request), request, tmp_path / "made.png")
        again = Request(**png_metadata.read_infotext(tmp_path / "made.png").fields)
        assert again == request
    assert make_picture(again).tobytes() == made.tobytes()


HIRES = {"upscaler": "Latent", "factor": 1.5, "denoise": 0.7, "steps": 2}
LORA = "<lora:nano-airbrush:1.5>"


@pytest.mark.parametrize(
    "values",
    [
        {"width": 72, "height": 88, "seed": 2**64 - 1, "detail": True},
        {"hires": {"upscaler": "nano DAT x2", "factor": 4, "denoise": 0.5, "steps": 1}},
        {"hires": {**HIRES, "prompt": "1girl,\nblue hair", "negative": "red: hair"}},
        {"hires": {**HIRES, "sampler": "DPM++ 2M Karras", "cfg": 3.25}},
        {"prompt": f"1girl {LORA}", "hires": {**HIRES, "prompt": "1girl"}},
        {"hires": {**HIRES, "prompt": f"1girl {LORA}"}, "detail": True},
        {
            "prompt": f"1girl, portrait {LORA}",
            "hires": {**HIRES, "prompt": f"{{1girl|1boy}} {LORA}"},
            "detail": {"prompt": f"smile {LORA}"},
        },
    ],
)
def test_sizes_seeds_and_the_second_passs_own_settings_come_back(values: dict, tmp_path: Path) -> None:
    first = build_request(**values)
    save_picture(made := make_picture(first), first, tmp_path / "made.png")
    again = build_request(**png_metadata.read_infotext(tmp_path / "made.png").fields)
    assert again == first
    assert make_picture(again).tobytes() == made.tobytes()


def test_loras_of_the_hires_prompt_are_those_of_the_second_pass() -> None:
    """As in A1111: without a prompt of its own it has the picture's, and with one only what that names."""
    prompts = {"": f"1girl {LORA}", "same": f"1girl {LORA}", "none": "1girl"}
    made = {
        name: make_picture(
            build_request(prompt=f"1girl {LORA}", hires={**HIRES, "prompt": prompt * bool(name)})
        )
        for name, prompt in prompts.items()
    }
    assert made[""].tobytes() == made["same"].tobytes() != made["none"].tobytes()


def build_request(**values: Any) -> Request:
    fields = {**SHARED, "sampler": "Euler a", "steps": 2, "detail": False, **values}
    return picture_request.build_cells(read_form(picture_request.PictureForm, fields))[0].request
