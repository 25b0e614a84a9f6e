"""A person who enters bad input reads one sentence: the field, the value and what is allowed."""

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.generate import request as picture_request
from core.generate.notes import list_warnings
from core.schema.errors import UserError
from core.schema.records import read_form

VALID_VALUES = {
    "prompt": "1girl",
    "negative": "",
    "width": 128,
    "height": 128,
    "steps": 25,
    "cfg": 5.0,
    "sampler": "Euler a",
    "seed": 1,
    "count": 1,
}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("width", 1001, "1001"),
        ("width", 0, "64 to 2048"),
        ("height", 10**9, "64 to 2048"),
        ("height", 128.5, "128.5"),
        ("steps", 0, "1 to 150"),
        ("steps", 10**6, "1 to 150"),
        ("steps", 10**400, "1 to 150"),
        ("cfg", 10**400, "1 to 30"),
        ("cfg", math.nan, "nan"),
        ("cfg", math.inf, "1 to 30"),
        ("cfg", "5", "'5'"),
        ("seed", 2**64, "0 to 18446744073709551615"),
        ("seed", str(2**64), "0 to 18446744073709551615"),
        ("seed", 1.2e19, "may be rounded"),
        ("seed", "7.5", "0 to 18446744073709551615"),
        ("seed", -2, "-2"),
        ("seed", True, "True"),
        ("prompt", "", "empty"),
        ("prompt", " \n ", "empty"),
        ("prompt", "x" * 4_000_000, "4,000,000"),
        ("prompt", "a\0b", "control character"),
        ("prompt", "a\ud800", "control character"),
        ("prompt", None, "None"),
        ("negative", "x" * 20_000, "20,000"),
        ("sampler", "Euler z", "Euler a, "),
        ("sampler", "Euler z Karras", "Euler a, "),
        ("schedule", "Linear", "Automatic, Karras, "),
        ("cfg_rescale", 1.5, "from 0 to 1"),
        ("count", 17, "1 to 16"),
    ],
)
def test_names_field_value_and_bound(field: str, value: object, says: str) -> None:
    found = picture_request.find_form_problems({**VALID_VALUES, field: value})
    assert list(found) == [field]
    assert says in found[field]
    assert len(found[field]) < 300
    assert "\n" not in found[field]


def test_too_many_pixels_name_both_sides() -> None:
    assert (
        "2048 x 2048"
        in picture_request.find_form_problems({**VALID_VALUES, "width": 2048, "height": 2048})["width"]
    )


def test_good_values_pass() -> None:
    assert picture_request.find_form_problems(VALID_VALUES) == {}


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(), st.none(), max_size=2),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault of the values
@given(st.dictionaries(st.sampled_from([*VALID_VALUES, "preset"]), ANYTHING))
def test_anything_a_client_sends_is_a_sentence_or_a_request(values: dict) -> None:
    found = picture_request.find_form_problems({**VALID_VALUES, **values})
    if not found:
        for cell in picture_request.build_cells(
            read_form(picture_request.PictureForm, {**VALID_VALUES, **values})
        ):
            assert cell.request.prompt
    assert all(isinstance(sentence, str) and sentence for sentence in found.values())


def test_a_request_checks_itself() -> None:
    """Whoever makes one: nothing that is not allowed reaches a model."""
    request = picture_request.build_cells(read_form(picture_request.PictureForm, VALID_VALUES))[0].request
    with pytest.raises(UserError, match=r"^steps: 0 is not valid. Use a whole number from 1 to 150\.$"):
        replace(request, steps=0)


def test_seeds_count_up_and_wrap() -> None:
    seeds = [
        cell.request.seed
        for cell in picture_request.build_cells(
            read_form(picture_request.PictureForm, {**VALID_VALUES, "seed": 2**64 - 2, "count": 3})
        )
    ]
    assert seeds == [2**64 - 2, 2**64 - 1, 0]


@pytest.mark.parametrize("seed", [2**53 + 1, str(2**53 + 1), f" {2**64 - 1}"])
def test_every_digit_of_a_seed_counts(seed: int | str) -> None:
    """Pages hold numbers as floats, which end at 2^53: there a seed is text."""
    form = read_form(picture_request.PictureForm, {**VALID_VALUES, "seed": seed})
    assert picture_request.build_cells(form)[0].request.seed == int(seed)


def test_sides_in_steps_of_eight_are_made_and_the_presets_step_is_advice() -> None:
    values = {**VALID_VALUES, "preset": "sdxl-base", "width": 1000, "height": 1504}
    assert picture_request.find_form_problems(values) == {}
    warnings = list_warnings(read_form(picture_request.PictureForm, values))
    assert [said for said in warnings if said.startswith("width: 1000 is no multiple of 32")]
    assert not [said for said in warnings if "height: 1504 is no multiple" in said]


@pytest.mark.parametrize(
    ("hires", "field", "says"),
    [
        ({"factor": 4.5}, "hires.factor", "from 1 to 4"),
        ({"factor": 4}, "hires.factor", "1024 x 1024 times 4 is too large"),
        ({"sampler": "Euler z"}, "hires.sampler", "Euler a, "),
        ({"sampler": "LCM", "schedule": "Sweetspot 0.1"}, "hires.schedule", "is not for LCM"),
        ({"cfg": 0.5}, "hires.cfg", "from 1 to 30"),
        ({"prompt": "<lora:nonesuch:1>"}, "hires.prompt", "'nonesuch' is not in the LoRA library"),
        ({"prompt": "a, " * 2000}, "hires.prompt", "chunks"),
    ],
)
def test_what_the_second_pass_does_not_allow_is_a_sentence(hires: dict, field: str, says: str) -> None:
    values = {**VALID_VALUES, "width": 1024, "height": 1024, "hires": {"factor": 1.5, **hires}}
    problems = picture_request.find_form_problems(values)
    assert list(problems) == [field]
    assert says in problems[field]


def test_what_is_ignored_in_the_second_pass_is_said() -> None:
    values = {**VALID_VALUES, "hires": {"denoise": 0, "cfg": 3, "negative": "<lora:a:1>"}}
    warnings = list_warnings(read_form(picture_request.PictureForm, values))
    assert "hires.denoise: at 0 there is no second pass; ignored its negative, cfg." in warnings
    assert any(said.startswith("hires.negative: ignored <lora:a:1>") for said in warnings)


def test_what_is_not_said_is_the_presets() -> None:
    request = picture_request.build_cells(
        read_form(picture_request.PictureForm, {"prompt": "1girl", "preset": "nano"})
    )[0].request
    assert (request.width, request.steps, request.cfg, request.sampler) == (128, 25, 5.0, "Euler a")


@pytest.mark.parametrize(
    ("values", "sampler", "schedule"),
    [
        ({}, "Euler a", "Automatic"),
        ({"sampler": "DPM++ 2M Karras"}, "DPM++ 2M", "Karras"),
        ({"sampler": "DPM++ 2M"}, "DPM++ 2M", "Automatic"),
        ({"sampler": "DPM++ 2M", "schedule": "Beta"}, "DPM++ 2M", "Beta"),
        ({"schedule": "Karras"}, "Euler a", "Karras"),
    ],
)
def test_a_sampler_is_named_with_its_schedule_or_without(values: dict, sampler: str, schedule: str) -> None:
    form = read_form(picture_request.PictureForm, {"prompt": "1girl", **values})
    request = picture_request.build_cells(form)[0].request
    assert (request.sampler, request.schedule) == (sampler, schedule)


def test_a_schedule_that_is_not_for_the_sampler_is_refused() -> None:
    problems = picture_request.find_form_problems(
        {**VALID_VALUES, "sampler": "LCM", "schedule": "Sweetspot 0.1 Karras"}
    )
    assert problems == {
        "schedule": "schedule: 'Sweetspot 0.1 Karras' is not for LCM; it is for DPM++ 2M, DPM++ 2M SDE."
    }


def test_a_seed_that_is_not_given_is_any() -> None:
    seeds = {
        picture_request.build_cells(
            read_form(picture_request.PictureForm, {"prompt": "1girl", "seed": seed})
        )[0].request.seed
        for seed in (None, -1)
        for _ in range(3)
    }
    assert len(seeds) == 6


@pytest.mark.parametrize(
    ("stage", "field"),
    [({"hires": {"upscaler": "none"}}, "hires.upscaler"), ({"expand": {"length": "epic"}}, "expand.length")],
)
def test_a_job_refuses_what_a_check_was_not_asked(stage: dict, field: str) -> None:
    """Somebody who goes around the check before the queue waits for no GPU either."""
    form = read_form(picture_request.PictureForm, {"prompt": "1girl", **stage})
    with pytest.raises(UserError, match=rf"^{field}: "):
        picture_request.build_cells(form)
