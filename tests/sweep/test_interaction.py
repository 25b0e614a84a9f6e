"""Two LoRAs together, with answers that are known beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError, ValidationError
from safetensors.torch import load_file, save_file

from core.runtime import gpu
from core.schema.events import Failed
from core.schema.records import read_form
from core.sweep.axes_report import build_pair_report
from core.sweep.axes_study import AxesStudy, PairForm, plan_pair
from core.sweep.interaction import find_interaction
from core.sweep.plateau import PointVerdict
from tests.sweep.conftest import EXAMPLE

HOLDS = PointVerdict(lost=(), holds=1.0, chance=1.0)


def compare(first: Path, second: Path, strength: float) -> dict[str, Any]:
    """Compare two files at one strength over eight neutral prompts, and return the report."""
    asked = {"preset": "nano", "strength": strength, "strength2": strength}
    form = read_form(PairForm, {"lora": str(first), "lora2": str(second), **asked})
    study = AxesStudy(plan_pair(form))
    assert not [event for event in study.run(gpu.generate_on_gpu) if isinstance(event, Failed)]
    return build_pair_report(study)


def save_changed(folder: Path, name: str, change: Any) -> Path:
    """Save a copy of the example; `change` returns a tensor by its name, or `None` to leave it out."""
    tensors = {key: change(key, value) for key, value in load_file(EXAMPLE).items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, folder / name)
    return folder / name


def simulate(bend: float, opposite: bool = False, seed: int = 0) -> np.ndarray:
    """Return shifts of 8 prompts x 2 seeds, (3, 8, 2, 40), with this much beyond the sum.

    Prompts answer more or less, and each seed adds chance of its own.
    """
    rng = np.random.default_rng(seed)
    first, second, third = np.linalg.qr(rng.normal(size=(40, 3)))[0].T
    second = -first if opposite else second
    means = np.stack([first, second, first + second + bend * third])
    return means[:, None, None] * rng.uniform(0.3, 2, (1, 8, 1, 1)) + 0.1 * rng.normal(size=(3, 8, 2, 40))


def test_a_sum_has_nothing_beyond_it() -> None:
    """The chance of each picture, as long as half of the shifts, is not taken for interaction."""
    found = find_interaction(simulate(0), (HOLDS, HOLDS), HOLDS)
    assert found.beyond_sum
    assert found.kept
    middle, low, high = found.beyond_sum
    assert low < 0 < high or abs(middle) < 0.1
    assert found.answer == "get along"
    assert [share[0] for share in found.kept] == pytest.approx([1, 1], abs=0.1)
    assert abs(found.alike or 1) < 0.2


def test_the_interval_holds_what_is_beyond_the_sum() -> None:
    within = 0
    for seed in range(40):
        share = find_interaction(simulate(1.0, seed=seed), (HOLDS, HOLDS), HOLDS).beyond_sum
        assert share
        within += share[1] <= 0.5 <= share[2]
    assert within >= 37


def test_what_cancels_fights_though_it_adds_up() -> None:
    found = find_interaction(simulate(0, opposite=True), (HOLDS, HOLDS), HOLDS)
    assert found.answer == "fight"
    assert found.kept
    assert all(high < 0.6 for _, _, high in found.kept)
    assert found.beyond_sum
    assert found.beyond_sum[0] < 0.1


def test_what_only_both_lose_is_a_fight() -> None:
    broken = PointVerdict(lost=("prompt falls",), holds=0.0, chance=0.0)
    assert find_interaction(simulate(0), (HOLDS, HOLDS), broken).lost == ("prompt falls",)
    assert find_interaction(simulate(0), (broken, HOLDS), broken).answer == "unclear", (
        "the first loses it alone"
    )


def test_halves_of_a_lora_show_no_interaction(tmp_path: Path) -> None:
    """Disjoint blocks add up."""
    halves = [
        save_changed(
            tmp_path,
            f"{name}.safetensors",
            lambda key, value, own=own: value if is_first(key) == own else None,
        )
        for name, own in (("first", True), ("second", False))
    ]
    report = compare(halves[0], halves[1], 1.0)
    _, low, high = report["interaction"]["beyond_sum"]
    assert low <= 0 <= high, report["why"]
    assert report["answer"] == "get along", report["why"]


def is_first(key: str) -> bool:
    """Whether a tensor belongs to the first half."""
    return "output_blocks_5_" in key


def test_a_lora_twice_is_the_sum(tmp_path: Path) -> None:
    """At half of its strength, twice: all that one does, twice, and no quarrel."""
    copy = save_changed(tmp_path, "copy.safetensors", lambda _, value: value)
    report = compare(EXAMPLE, copy, 0.6)
    (kept, low, high), second = report["interaction"]["kept"]
    assert kept == pytest.approx(second[0], abs=0.01)
    assert low < 2 < high, report["why"]
    assert low > 0.6, report["why"]
    assert report["interaction"]["alike"] == pytest.approx(1)
    assert report["answer"] != "fight", report["why"]


def test_a_lora_and_its_negation_fight(tmp_path: Path) -> None:
    negated = save_changed(
        tmp_path, "negated.safetensors", lambda key, value: -value if "lora_up" in key else value
    )
    report = compare(EXAMPLE, negated, 1.25)
    assert report["answer"] == "fight", report["why"]
    assert "keeps" in report["why"]
    (kept, _, high), _ = report["interaction"]["kept"]
    assert abs(kept) < 0.1
    assert high < 0.6
    assert report["interaction"]["beyond_sum"][1] > 0, "it is no sum either"


def test_compare_loras_answers_and_refuses(client: Client) -> None:
    prompts = "1girl, blue hair, smile, white background\n1girl, red hair, frown, beach"
    asked = {
        "lora": "nano-airbrush",
        "lora2": "nano-airbrush",
        "strength": 1,
        "strength2": 1,
        "prompts": prompts,
    }
    chart, _, points, _, report = client.predict(**asked, api_name="/compare_loras")
    assert Path(chart).exists()
    assert [point["point"] for point in points] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert report["answer"] == "provisional"
    assert report["interaction"]["kept"]
    for wrong, why in (
        ({"lora2": None}, "lora2: choose two LoRAs to compare"),
        ({"strength": 0}, "strength: 0 is off; use another strength"),
        ({"strength2": 9}, "strength2: 9 is not valid"),
        ({"lora2": "nowhere"}, "lora2: 'nowhere' is not in the LoRA library"),
    ):
        with pytest.raises((AppError, ValidationError, ValueError)) as refused:
            client.predict(**{**asked, **wrong}, api_name="/compare_loras")
        assert why in str(refused.value)


def test_what_may_be_lost_alone_is_no_fight() -> None:
    """94 % of the draws alone beside 95 % with both is no difference."""
    both = PointVerdict(lost=("prompt falls",), holds=0.05, chance=0.0)
    unsure = PointVerdict(lost=(), holds=0.06, chance=0.0)
    found = find_interaction(simulate(0), (HOLDS, unsure), both)
    assert (found.answer, found.lost) == ("unclear", ())
    assert find_interaction(simulate(0), (HOLDS, HOLDS), both).answer == "fight"
