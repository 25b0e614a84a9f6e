"""Other settings than strength, one or two at once, with answers that are known beforehand."""

import json
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError, ValidationError
from PIL import Image

from core.runtime import gpu
from core.schema.events import Failed
from core.schema.records import read_form
from core.sweep.axes_report import build_axes_report
from core.sweep.axes_study import AxesForm, AxesStudy, plan_axes
from core.sweep.plateau import choose_best, find_plateau
from core.sweep.study import SweepStudy
from tabs.sweep.axes import _vary
from tests.sweep.conftest import EXAMPLE, PICTURES, PROMPTS

ALL_HOLD = {"composition": 0.8, "prompt": 1.0, "detail": 1.0, "saturation": 0.01}


def run_axes(**values: Any) -> AxesStudy:
    """Plan a study of axes over the six prompts and run it to its end."""
    form = read_form(AxesForm, {"preset": "nano", "prompts": PROMPTS, **values})
    study = AxesStudy(plan_axes(form))
    assert not [event for event in study.run(gpu.generate_on_gpu) if isinstance(event, Failed)]
    return study


def simulate(
    gains: list[float], seed: int = 0, noise: float = 0.02, **held: list[float]
) -> dict[str, np.ndarray]:
    """Return curves of 8 prompts x 2 seeds whose true means are known; prompts differ by `noise`."""
    rng, shape = np.random.default_rng(seed), (len(gains), 8, 2)
    means = {name: np.full(len(gains), value) for name, value in ALL_HOLD.items()}
    means |= {name: np.array(values) for name, values in held.items()}
    curves = {name: np.broadcast_to(mean[:, None, None], shape) for name, mean in means.items()}
    style = 0.3 + np.array(gains)[:, None, None] + noise * rng.normal(size=(len(gains), 8, 1))
    return {**curves, "effect": np.ones(shape), "style": style + noise / 2 * rng.normal(size=shape)}


FLOORS = np.full((8, 2), 0.1)


@pytest.mark.parametrize("wanted", [None, "style"])
def test_a_reference_whose_noise_floor_nobody_knows_is_judged(wanted: str | None) -> None:
    """It has the LoRA on, where CFG is varied: all images would have been made for an error."""
    found = find_plateau(simulate([0, 0.1, 0.1]), np.full((8, 2), np.nan), wanted)
    assert found.answer == ("works" if wanted else "holds")


def test_what_is_unclear_has_neither_plateau_nor_confidence() -> None:
    found = find_plateau(simulate([0, 0.0, 0.0], noise=0.1), FLOORS, "style")
    assert (found.answer, found.plateau, found.confidence) == ("unclear", (), {})


def test_a_plateau_has_what_gains_as_much_and_holds() -> None:
    """The point with the greatest gain of all is left out: its prompt falls."""
    prompt = [1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    found = find_plateau(simulate([0, 0.01, 0.1, 0.1, 0.1, 0.2], prompt=prompt), FLOORS, "style")
    assert (found.answer, found.plateau) == ("works", (2, 3, 4))
    assert found.points[5].lost == ("prompt falls",)
    low, high = found.points[3].interval or (0, 0)
    assert low < 0.1 < high
    assert choose_best(found, [(float(i),) for i in range(6)]) == 3, "the middle"
    assert all(chance > 0.9 for chance in found.confidence.values())


def test_of_eighteen_alike_none_is_the_best() -> None:
    """Whoever tries all samplers is not told that one is better by luck."""
    found = [find_plateau(simulate([0.0] * 18, seed), FLOORS, "style").answer for seed in range(40)]
    assert found.count("works") <= 3, found


def test_without_references_another_cfg_is_not_better_for_changing_more() -> None:
    curves = {name: curve for name, curve in simulate([0, 0, 0], detail=[1, 1, 3]).items() if name != "style"}
    found = find_plateau(curves, FLOORS, None)
    assert (found.answer, found.plateau, found.points[1].gain) == ("holds", (0, 1), None)
    assert found.points[2].lost == ("detail rises",)


def test_cfg_is_held_against_the_presets() -> None:
    """Far from the preset's 5, prompts are lost or colours burn; near to it, all holds."""
    study = run_axes(axis="cfg", values="1, 4, 6, 30")
    report = build_axes_report(study)
    assert report["reference"] == [5]
    assert report["answer"] == "holds", report["why"]
    points = {point["point"][0]: point for point in report["points"]}
    assert {4, 5, 6} <= {value for (value,) in report["plateau"]}
    assert points[30]["lost"]
    assert points[5]["effect"] == 0 < points[4]["effect"] < points[30]["effect"]
    assert report["why"].startswith("Everything holds at CFG ")
    assert "compared with CFG 5; at 30 " in report["why"]


def test_a_map_of_strength_and_steps_shares_its_images_with_a_sweep(study: SweepStudy) -> None:
    found = run_axes(axis="strength", values="0.5, 1.5, 2.5", axis2="steps", values2="25", lora=str(EXAMPLE))
    assert found.cells_found == 4 * PICTURES
    report = build_axes_report(found)
    assert (report["reference"], report["wanted"], report["answer"]) == ([0, 25], "effect", "changes")
    assert report["recommended"] == [1.5, 25], report["why"]
    row = next(point for point in report["points"] if point["point"] == [1.5, 25])
    sweep = np.nanmean(study.columns[1.5].values["effect"])
    assert row["effect"] == row["gain"] == pytest.approx(sweep, abs=1e-4)
    assert next(point for point in report["points"] if point["point"] == [2.5, 25])["lost"]


def test_blocks_are_ranked_by_what_they_change() -> None:
    """All blocks together change more than those that hold B-LoRA's content."""
    report = build_axes_report(
        run_axes(axis="blocks", values="whole, OUT01, CONTENT", lora=str(EXAMPLE), strength=1.25)
    )
    effect = {point["point"][0]: point["effect"] for point in report["points"]}
    assert effect["none"] == 0 < effect["CONTENT"] < effect["whole"]
    assert ["whole"] in report["plateau"]


def test_other_axes_change_what_they_name() -> None:
    cases: list[tuple[str, str, Any]] = [
        ("steps", "10", lambda request: request.steps == 10),
        ("cfg_rescale", "0.5", lambda request: request.cfg_rescale == 0.5),
        ("clip_skip", "1", lambda request: request.clip_skip == 1),
        (
            "sampler",
            "DPM++ 2M Karras",
            lambda request: (request.sampler, request.schedule) == ("DPM++ 2M", "Karras"),
        ),
        ("schedule", "Karras", lambda request: request.schedule == "Karras"),
        ("hires_denoise", "0.6", lambda request: request.hires.denoise == 0.6),
    ]
    for axis, value, is_changed in cases:
        study = AxesStudy(plan_axes(AxesForm(axis=axis, values=value, preset="nano")))
        first, other = (study.build_request(number, study.items[0]) for number in (0.0, 1.0))
        assert is_changed(other), axis
        assert not is_changed(first), axis
        same = {
            "steps": 25,
            "cfg_rescale": 0.0,
            "clip_skip": 2,
            "sampler": "Euler a",
            "schedule": "Automatic",
        }
        assert replace(other, **same, hires=None) == replace(first, **same, hires=None), axis


def test_sweep_axes_returns_map_sheet_points_and_report(client: Client) -> None:
    chart, sheet, points, archive, report = client.predict(
        axis="strength", values="0, 2", axis2="cfg", values2="3, 5", lora="nano-airbrush", seeds="1, 2",
        prompts="1girl, blue hair, smile, white background\n1girl, red hair, frown, beach",
        api_name="/sweep_axes",
    )  # fmt: skip
    for file in (chart, sheet):
        with Image.open(file) as picture:
            assert picture.width > 300
    assert [point["point"] for point in points] == [[0, 5], [0, 3], [2, 3], [2, 5]]
    assert (report["answer"], report["plateau"]) == ("provisional", [])
    with zipfile.ZipFile(archive) as found:
        names = set(found.namelist())
        assert names >= {
            "chart.png",
            "sheet.png",
            "points.csv",
            *(cell["picture"] for cell in report["cells"]),
        }
        assert json.loads(found.read("report.json")) == report


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"axis": "hue"}, "axis: 'hue' is unknown. Use one of: cfg, steps"),
        ({"axis": "cfg", "values": "40"}, "values: cfg: 40.0 is not valid. Use a number from 1 to 30"),
        ({"axis": "cfg", "values": "much"}, "values: 'much' is neither a number"),
        ({"axis": "cfg", "values": "5"}, "values: nothing differs from what it is compared with"),
        ({"axis": "steps", "values": "2.5"}, "values: steps: 2.5 is not valid"),
        ({"axis": "sampler", "values": "Eule"}, "values: sampler: 'Eule' is unknown"),
        ({"axis": "sampler", "values": 5}, "values: use a list of names"),
        ({"axis": "blocks", "values": "OUT77"}, "lora: LoRA's blocks needs a LoRA"),
        ({"axis": "blocks", "values": "OUT77", "lora": "nano-airbrush"}, "'OUT77' is unknown. Use whole"),
        ({"axis": "strength", "values": "9", "lora": "nano-airbrush"}, "values: strength: 9.0 is not valid"),
        ({"axis": "strength2", "lora": "nano-airbrush"}, "lora2: Second LoRA's strength needs a second LoRA"),
        ({"axis": "strength2", "lora2": "nano-airbrush"}, "lora: Second LoRA's strength needs a first LoRA"),
        ({"axis": "cfg", "axis2": "cfg"}, "axis2: 'cfg' is the first axis, too"),
        ({"axis": "sampler", "values": "LCM", "axis2": "schedule", "values2": "Sweetspot 0.1"}, "for LCM"),
        ({"axis": "cfg", "values": "1-30 [60]", "axis2": "steps"}, "images; the limit is 1024"),
        ({"axis": "cfg", "lora": "owner/name"}, "lora: owner/name cannot be downloaded"),
        ({"axis": "cfg", "strength": 7}, "strength: 7 is not valid. Use a number from -5 to 5"),
    ],
)  # fmt: skip
def test_sweep_axes_refuses_before_any_work(client: Client, asked: dict[str, Any], why: str) -> None:
    with pytest.raises((AppError, ValidationError, ValueError)) as refused:
        client.predict(**asked, api_name="/sweep_axes")
    assert why in str(refused.value)


def test_the_panel_shows_chart_and_answer() -> None:
    shared = {"preset": "nano", "model": "", "budget": "Quick", "prompts": "1girl, beach", "seeds": "1, 2"}
    *_, last = _vary(
        **shared, lora_file=None, shelf=None, shelf2=None, strength="", strength2="", references=None,
        feature_extractor="VAE", axis="steps", values="1, 2", axis2="", values2="",
    )  # fmt: skip
    assert last["answer"].startswith("### Provisional: 1 prompt is too few")
    assert last["chart"]["visible"]
    assert last["status"].startswith("6 images")
