"""Studies with an answer that is known beforehand, and pairs that cannot be made."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from core.lora import edit
from core.lora import file as lora_file
from core.runtime import gpu
from core.schema.events import Picture
from core.schema.records import read_form
from core.schema.types import Model
from core.sweep import study as sweep_study
from core.sweep.plan import SweepForm
from core.sweep.plan import plan_sweep as sweep_plan
from core.system import paths
from core.transfer.plan import TransferForm, plan_transfer
from core.transfer.report import build_transfer_report
from core.transfer.study import TransferStudy
from tests.transfer.conftest import EXAMPLE, FOUR_PROMPTS, PROMPTS, RunTransfer, build_values

ModelTable = dict[str, Model]


def list_pairs(study: TransferStudy) -> dict[tuple[str, str], dict]:
    return {(pair["lora"], pair["model"]): pair for pair in build_transfer_report(study)["per_pair"]}


def test_at_home_it_is_full_with_half_the_alpha_it_needs_twice_and_nothing_is_none(
    run_transfer: RunTransfer, tmp_path: Path
) -> None:
    halved = edit.rewrite_lora(lora_file.read_lora_file(EXAMPLE), tmp_path, multiply=0.5)
    save_null_lora(tmp_path / "null.safetensors")
    rows = [
        {"lora": str(file), "home": "nano", "name": name}
        for file, name in ((tmp_path / "null.safetensors", "null"), (EXAMPLE, "whole"), (halved, "half"))
    ]
    study = run_transfer(loras=rows, models=["nano"], prompts=FOUR_PROMPTS, strengths="0.7, 1")
    found = list_pairs(study)
    whole, half, null = (found[name, "nano"] for name in ("whole", "half", "null"))
    assert (whole["verdict"], whole["share"]) == ("full", 1), whole["why"]
    assert whole["needs_times"] == pytest.approx(1, abs=0.01)
    assert half["verdict"] == "full", half["why"]
    assert half["needs_times"] == pytest.approx(2, abs=0.05), "the same matrices with half the alpha"
    assert (null["verdict"], null["needs_times"], null["share"]) == ("none", None, None)
    assert null["why"].startswith("Nothing changes up to 5 "), "it is measured to the greatest strength"
    strengths = {name: max(pair.strengths) for (name, _), pair in study.pairs.items()}
    assert strengths["whole"] < strengths["half"], "each pair has its own range"


def save_null_lora(file: Path) -> None:
    """Save a LoRA like the example whose matrices do next to nothing."""
    torch.manual_seed(0)
    tensors = {
        key: value if key.endswith(".alpha") else 1e-3 * torch.randn_like(value)
        for key, value in load_file(EXAMPLE).items()
    }
    save_file(tensors, file)


def test_a_home_that_nobody_chose_is_added() -> None:
    loras = [{"lora": str(EXAMPLE), "home": "nano"}, {"lora": str(EXAMPLE), "home": "nano-paint"}]
    plan = plan_transfer(read_form(TransferForm, build_values(loras=loras, models=["nano-paint"])))
    assert (plan.models, plan.added_models) == (("nano-paint", "nano"), ("nano",))
    study = TransferStudy(plan)
    assert build_transfer_report(study)["added_models"] == ["nano"]
    first = study._find_next_pair()
    assert first is not None
    assert first.model == first.row.home_model, "a pair waits for its home"


@pytest.mark.usefixtures("few_steps")
def test_two_names_for_one_base_are_equal(run_transfer: RunTransfer, table: ModelTable) -> None:
    # seeds without a cached cell: pictures of another batch differ in their last digits
    study = run_transfer(models=["nano", "twin"], seeds="71, 72")
    ones, others = (study.pairs[EXAMPLE.stem, name].curves for name in ("nano", "twin"))
    for name, values in ones.items():
        np.testing.assert_allclose(values, others[name], atol=1e-6, err_msg=name)
    assert len(study.model_loads) == len(set(study.model_loads)), "each model is loaded once"


@pytest.mark.usefixtures("few_steps")
def test_what_a_sweep_has_made_is_not_made_again(run_transfer: RunTransfer) -> None:
    swept = sweep_study.SweepStudy(
        sweep_plan(SweepForm(lora=str(EXAMPLE), strengths="0, 1", seeds="1, 2", prompts=PROMPTS))
    )
    for _ in swept.run(gpu.generate_on_gpu):
        pass
    study = run_transfer(strengths="1")
    assert (study.pairs[EXAMPLE.stem, "nano"].sweep.cells_found, study.unet_calls) == (8, 0)


@pytest.mark.usefixtures("few_steps")
def test_clip_skip_is_another_picture(run_transfer: RunTransfer) -> None:
    study = run_transfer(clip_skip=1, seeds="1, 2", strengths="1")
    other = run_transfer(clip_skip=2, seeds="1, 2", strengths="1")
    both = [each.pairs[EXAMPLE.stem, "nano"].sweep.pictures for each in (study, other)]
    assert all(both[0][place].read_bytes() != both[1][place].read_bytes() for place in both[0])


@pytest.mark.usefixtures("few_steps")
def test_a_pair_that_cannot_be_made_says_why_and_the_rest_is_there(
    run_transfer: RunTransfer, table: ModelTable, tmp_path: Path
) -> None:
    table["gone"] = replace(table["nano"], name="gone", title="Gone", source=str(tmp_path / "gone"))
    table["far"] = replace(table["nano"], name="far", title="Far", source="nobody/nothing", revision="0" * 40)
    table["large"] = replace(table["nano"], name="large", title="Large", native_size=1024)
    shutil.copytree(paths.CODE / "core/nano/weights/nano/unet", tmp_path / "unet")
    for name, value in (("nan", float("nan")), ("overflow", 1e30)):
        broken = UNet2DConditionModel.from_pretrained(tmp_path / "unet").float()
        with torch.no_grad():
            broken.conv_out.weight.fill_(value)
        broken.save_pretrained(tmp_path / name)
        table[name] = replace(table["nano"], name=name, title=name.title(), unet=str(tmp_path / name))
    lacking = {
        key.replace("down_blocks_2", "down_blocks_7").replace("input_blocks_7", "input_blocks_70"): value
        for key, value in load_file(EXAMPLE).items()
    }
    save_file(lacking, tmp_path / "lacking.safetensors")
    rows = [
        {"lora": str(EXAMPLE), "home": "nano"},
        {"lora": str(tmp_path / "lacking.safetensors"), "home": "nano"},
    ]
    study = run_transfer(
        loras=rows, models=["nano", "gone", "far", "large", "nan", "overflow"], strengths="1"
    )
    found = list_pairs(study)
    why = {(lora, model): pair["why"] for (lora, model), pair in found.items()}
    assert why[EXAMPLE.stem, "nano"].startswith("Provisional: 2 prompts are too few for a verdict")
    assert "at least 4 prompts" in found[EXAMPLE.stem, "nano"]["lacks"]
    assert "does not exist" in why[EXAMPLE.stem, "gone"]
    assert "cannot be downloaded: Hugging Face is unreachable" in why[EXAMPLE.stem, "far"]
    assert why[EXAMPLE.stem, "large"].endswith("made for nano, which large is not.")
    assert "Nan contains NaN or infinite numbers (unet.conv_out.weight)" in why[EXAMPLE.stem, "nan"]
    assert why[EXAMPLE.stem, "overflow"].startswith("The image became NaN with Overflow")
    assert "which this model does not have" in why["lacking", "nano"]
    assert all(
        cell["effect"] is None
        for cell in build_transfer_report(study)["cells"]
        if (cell["lora"], cell["model"]) != (EXAMPLE.stem, "nano")
    )


@pytest.mark.usefixtures("few_steps")
def test_files_that_disappear_in_the_middle_cost_their_pairs_alone(table: ModelTable, tmp_path: Path) -> None:
    lora = shutil.copy(EXAMPLE, tmp_path / "fleeting.safetensors")
    shutil.copytree(paths.CODE / "core/nano/weights/nano-cel", tmp_path / "cel")
    table["fleeting"] = replace(table["nano-cel"], name="fleeting", unet=str(tmp_path / "cel"))
    rows = [{"lora": str(EXAMPLE), "home": "nano"}, {"lora": str(lora), "home": "nano"}]
    study = TransferStudy(
        plan_transfer(
            read_form(
                TransferForm,
                build_values(loras=rows, models=["nano", "fleeting"], strengths="1", seeds="41, 42"),
            )
        )
    )
    for event in study.run(gpu.generate_on_gpu):
        if isinstance(event, Picture):
            Path(lora).unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "cel", ignore_errors=True)
    assert study.pairs[EXAMPLE.stem, "nano"].curves
    assert "does not exist" in (study.pairs["fleeting", "nano"].failure or "")
    assert (study.pairs[EXAMPLE.stem, "fleeting"].failure or "").startswith("model: ")


@pytest.mark.usefixtures("few_steps")
def test_a_study_that_is_stopped_goes_on() -> None:
    values = build_values(models=["nano", "nano-paint"], strengths="1", seeds="51, 52")
    study = TransferStudy(plan_transfer(read_form(TransferForm, values)))
    events = study.run(gpu.generate_on_gpu)
    made = 0
    while made < 6:
        made += isinstance(next(events), Picture)
    events.close()
    assert 0 < study.count_done()[0] < study.count_done()[1] == 16
    again = TransferStudy(plan_transfer(read_form(TransferForm, values)))
    pictures = sum(isinstance(event, Picture) for event in again.run(gpu.generate_on_gpu))
    assert again.count_done() == (16, 16)
    assert pictures <= 16 - made, "what was finished is not made again"
