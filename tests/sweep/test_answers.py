"""Sweeps with an answer that is known beforehand."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.lora import edit
from core.lora import file as lora_file
from core.models import lora_library
from core.models.measured_strengths import find_strength
from core.sweep.knees import HELD_RANGES
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.recompute import recompute_verdict
from core.sweep.report import build_sweep_report
from core.sweep.study import SweepStudy
from tabs.sweep.results import format_answer
from tests.sweep.conftest import EXAMPLE, PICTURES, PROMPTS, RunSweep

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "verdict_from_report.py"
STEP = 0.5


def test_the_example_has_a_sweet_spot(study: SweepStudy) -> None:
    """The example changes little at 0.5, is clearly visible at 1 to 2, and breaks at 2.5."""
    report = build_sweep_report(study)
    assert report["answer"] == "changes", report["why"]
    low, high = report["sweet_spot"]
    assert 0.5 <= report["onset"] <= 1
    assert 1 <= low <= 1.5
    assert 1.5 <= high < report["breakdown"] <= 3
    assert low <= report["recommended"] <= high
    assert report["recommended"] in report["strengths"]
    assert report["confidence"] > 0.6
    inside = next(row for row in report["curve"] if row["strength"] == 1.5)
    assert inside["prompt"] >= HELD_RANGES["prompt"][0]
    assert inside["effect_low"] < inside["effect"] < inside["effect_high"]
    assert 0 < report["noise_floor"] < inside["effect_low"]
    assert inside["effect_background"] is not None, "faces were found"


def test_the_report_alone_says_the_same(study: SweepStudy) -> None:
    """Anybody can check a verdict from its report: with the app, and without any of its code."""
    report = json.loads(json.dumps(build_sweep_report(study)))
    assert recompute_verdict(report).why == report["why"]
    knees = runpy.run_path(str(SCRIPT))["compute_knees"](report)
    found = {name: [None if math.isinf(end) else end for end in ends] for name, (_, *ends) in knees.items()}
    assert found == report["intervals"]


def test_the_library_knows_what_was_measured(study: SweepStudy) -> None:
    """The next time the LoRA is chosen, its strength is filled in."""
    report, found = build_sweep_report(study), find_strength(EXAMPLE, "nano")
    assert found
    assert (found.recommended, list(found.interval)) == (report["recommended"], report["sweet_spot"])


def test_a_sweep_lists_the_library_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5,000 files, once for each of 500 cells would take a minute before the first picture."""
    sweep = SweepStudy(plan_sweep(SweepForm(lora=str(EXAMPLE), preset="nano", seeds="1, 2")))
    monkeypatch.setattr(lora_library, "list_loras", lambda: pytest.fail("it is listed again"))
    assert sweep.build_request(1.5, sweep.items[0]).prompt.endswith(" <lora:nano-airbrush:1.5>")


@pytest.mark.soak
def test_twice_the_alpha_is_half_the_strength(study: SweepStudy, run_sweep: RunSweep, tmp_path: Path) -> None:
    doubled = edit.rewrite_lora(lora_file.read_lora_file(EXAMPLE), tmp_path, multiply=2)
    once, twice = (
        build_sweep_report(study),
        build_sweep_report(run_sweep(lora=str(doubled), strengths="0-1.5 (+0.25)", prompts=PROMPTS)),
    )
    for name in ("onset", "breakdown", "recommended"):
        assert twice[name] == pytest.approx(once[name] / 2, abs=STEP / 2), name
    assert twice["sweet_spot"] == pytest.approx([end / 2 for end in once["sweet_spot"]], abs=STEP / 2)


@pytest.mark.soak
def test_after_the_edit_one_is_the_sweet_spot(study: SweepStudy, run_sweep: RunSweep, tmp_path: Path) -> None:
    report = build_sweep_report(study)
    file = edit.rewrite_lora(lora_file.read_lora_file(EXAMPLE), tmp_path, multiply=report["normalise_by"])
    again = build_sweep_report(run_sweep(lora=str(file), strengths="0-1.75 (+0.25)", prompts=PROMPTS))
    assert again["recommended"] == pytest.approx(1.0, abs=0.25), again["why"]


@pytest.mark.soak
def test_other_seeds_say_the_same(run_sweep: RunSweep) -> None:
    first, second = (
        build_sweep_report(run_sweep(strengths="0-3 (+0.5)", seeds=seeds, budget="Standard"))
        for seeds in ("1-4", "11-14")
    )
    assert second["recommended"] == pytest.approx(first["recommended"], rel=0.15), (
        first["why"],
        second["why"],
    )


@pytest.mark.parametrize("kind", ["small alpha", "tiny"])
def test_what_changes_nothing_has_no_answer(run_sweep: RunSweep, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    tensors = load_file(EXAMPLE)
    for key, value in tensors.items():
        if kind == "small alpha" and key.endswith(".alpha"):
            tensors[key] = torch.full_like(value, 1e-6)
        elif kind == "tiny" and not key.endswith(".alpha"):
            tensors[key] = 1e-3 * torch.randn_like(value)
    save_file(tensors, tmp_path / "none.safetensors")
    report = build_sweep_report(
        run_sweep(
            lora=str(tmp_path / "none.safetensors"),
            strengths="0, 1, 3",
            prompts=PROMPTS,
        )
    )
    assert [report[name] for name in ("onset", "sweet_spot", "breakdown", "recommended", "normalise_by")] == [
        None
    ] * 5
    assert (report["answer"], report["why"][:23]) == ("no change", "Nothing changes up to 3")


def test_references_say_what_style_is_wanted(study: SweepStudy, run_sweep: RunSweep, tmp_path: Path) -> None:
    """With airbrushed references, the pictures get closer to them while the LoRA works."""
    from core.nano.lessons import make_airbrush_set

    files = []
    for i, (picture, _) in enumerate(make_airbrush_set()[:6]):
        files.append(tmp_path / f"{i}.png")
        picture.save(files[-1])
    report = build_sweep_report(
        run_sweep(strengths="0-3 (+0.5)", prompts=PROMPTS, references=[str(file) for file in files])
    )
    style = {row["strength"]: row["style"] for row in report["curve"]}
    assert style[1.5] > style[0.0] + 0.02, style
    assert "style" not in report["unmeasured"]
    assert report["cells_found"] == 7 * PICTURES, "the pictures themselves were there already"


def test_refine_looks_between_the_knees(study: SweepStudy, run_sweep: RunSweep) -> None:
    fine = run_sweep(strengths="0-3 (+1)", prompts=PROMPTS, refine=True)
    added = set(fine.strengths) - {0, 1, 2, 3}
    assert added, fine.strengths
    assert all(strength * 2 == int(strength * 2) for strength in added)
    assert fine.cells_found >= 4 * PICTURES, "cells are shared with the sweep by halves"
    assert set(fine.strengths) == set(fine.columns)


def test_one_seed_is_refused_an_answer(run_sweep: RunSweep) -> None:
    report = build_sweep_report(run_sweep(strengths="0-1 (+0.5)", seeds="1"))
    assert report["sweet_spot"] is None
    assert report["why"].startswith("Needs at least 2 seeds")


def test_a_law_of_strength_that_is_not_linear_is_said(run_sweep: RunSweep, tmp_path: Path) -> None:
    """Twice the strength of a BOFT is not twice the change: the report says so, and the page shows it."""
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    blocks = torch.ones(2, 16, 4, 4).triu(1)
    save_file({f"{stem}.oft_blocks": blocks}, tmp_path / "boft.safetensors")
    study = run_sweep(lora=str(tmp_path / "boft.safetensors"), strengths="0, 1", seeds="1", prompts="1girl")
    report = build_sweep_report(study)
    (note,) = report["notes"]
    assert note.startswith("A BOFT's change is not in proportion to its strength")
    assert "BOFT's change is not in proportion" in format_answer(report)


def test_a_sweep_ends_where_its_verdict_stands(run_sweep: RunSweep, tmp_path: Path) -> None:
    """What changes nothing is not rendered over sixteen prompts."""
    tensors = {
        key: torch.full_like(value, 1e-6) if key.endswith(".alpha") else value
        for key, value in load_file(EXAMPLE).items()
    }
    save_file(tensors, tmp_path / "none.safetensors")
    study = run_sweep(lora=str(tmp_path / "none.safetensors"), strengths="0, 1, 3", budget="Full")
    report = build_sweep_report(study)
    assert (report["answer"], len(report["prompts"])) == ("no change", 4)
    assert len(study.plan.prompts) == 16
    assert report["thresholds"]["level"] == 0.9842, "each of several looks needs more"
