"""OFT with turns of inputs, as PEFT and OneTrainer have it, and with LyCORIS' `rescale`.

PEFT's own merge is the reference for its files; the others' formulas are in `formulas.py`.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import OFTConfig, get_peft_model
from safetensors.torch import save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import paths
from tests.lora.formulas import LINEAR
from tests.lora.parts import compute_changes, copy_weights, write_lora

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"use_cayley_neumann": False},
    "series of 5 terms": {},
    **{f"series of {n} terms": {"num_cayley_neumann_terms": n} for n in (2, 3, 4, 7)},
    "one block for all": {"block_share": True},
    "with a limit": {"coft": True, "eps": 0.3},
    "by number of blocks": {"r": 4, "oft_block_size": 0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_pefts_own_merge_is_what_is_applied(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = Path(paths.locate(bases.find_model("nano").source)) / "unet"
    settings = {"oft_block_size": 8, "init_weights": False, **SETTINGS[name]}
    config = OFTConfig(target_modules=["to_q", "to_k", "conv2", "conv_shortcut", "time_emb_proj"], **settings)
    peft = get_peft_model(UNet2DConditionModel.from_pretrained(folder), config)  # type: ignore[arg-type]
    peft.save_pretrained(str(tmp_path))
    before = {key: value.clone() for key, value in bases.load_model("nano").unet.state_dict().items()}
    merged: Any = peft.merge_and_unload()  # type: ignore[operator]
    use = LoraUse(path=str(find_file(tmp_path)))
    found = lora_file.read_lora_file(Path(use.path))
    assert (found.format, found.kind, found.notes) == ("PEFT", "OFT", ())
    # One block for all does not tell how many inputs a layer has.
    assert found.family == ("unknown" if name == "one block for all" else "nano")
    for strength in (0.5, 1.0, 2.0):
        changed = compute_changes([replace(use, strength=strength)])
        assert sum(bool(change.any()) for change in changed.values()) > 20
        for layer, change in changed.items():
            wanted = merged.get_submodule(layer).weight - before[f"{layer}.weight"]
            torch.testing.assert_close(change, strength * wanted, atol=1e-5, rtol=1e-5)
    if name in ("series of 5 terms", "one block for all", "by number of blocks"):
        written = edit.rewrite_lora(found, tmp_path / "new", keep="all")
        assert lora_file.read_lora_file(written).format == "kohya"
        whole = compute_changes([use])
        for layer, change in compute_changes([LoraUse(path=str(written))]).items():
            torch.testing.assert_close(change, whole[layer], atol=1e-5, rtol=1e-5)


def find_file(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def test_settings_that_are_not_there_are_said(tmp_path: Path) -> None:
    """A series of five terms is PEFT's own choice, and only the file beside it can say otherwise."""
    stem = f"base_model.model.{LINEAR}"
    save_file({f"{stem}.oft_R.weight": 0.1 * torch.ones(4, 120)}, find_file(tmp_path))
    (note,) = lora_file.read_lora_file(find_file(tmp_path)).notes
    assert note.startswith("How the turns are made stands in an adapter_config.json that is not beside")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 10**9}, "a whole number from 1 to 100"),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": "5"}, "num_cayley_neumann_terms 5;"),
        ({"coft": True, "eps": math.nan}, "has the limit eps nan; it is a positive number"),
        ({"coft": True}, "has the limit eps None"),
    ],
)
def test_case_04_settings_that_no_oft_has_are_refused(settings: dict, why: str, tmp_path: Path) -> None:
    stem = f"base_model.model.{LINEAR}"
    save_file({f"{stem}.oft_R.weight": 0.1 * torch.ones(4, 120)}, find_file(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=why):
        lora_file.read_lora_file(find_file(tmp_path))


def test_a_rescale_alone_changes_its_layer(tmp_path: Path) -> None:
    """With turns at zero, as a training begins, its rows are only scaled."""
    weight = copy_weights(bases.load_model("nano"))[LINEAR]
    parts = {"oft_blocks": torch.zeros(8, 8, 8), "rescale": torch.full((64, 1), 1.5)}
    change = compute_changes([write_lora(tmp_path / "it.safetensors", LINEAR, **parts)])[LINEAR]
    torch.testing.assert_close(change, 0.5 * weight)


def test_the_time_of_a_step_is_measured_by_block_size(tmp_path: Path) -> None:
    """Blocks of 64 take longer to turn than those of 8: the time of one says nothing of the other."""
    keys = set()
    for size in (8, 64):
        use = write_lora(
            tmp_path / f"{size}.safetensors", LINEAR, oft_blocks=torch.ones(64 // size, size, size).triu()
        )
        with lora.apply_loras(bases.load_model("nano"), [use]) as applied:
            keys.add(applied.cost_key)
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["exact", "series of 4 terms", "with a limit"])
def test_turns_that_no_other_layout_has_are_not_written_anew(name: str, tmp_path: Path) -> None:
    """Said before anything is written."""
    settings = {"use_cayley_neumann": True, **SETTINGS[name]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    stem = f"base_model.model.{LINEAR}"
    save_file({f"{stem}.oft_R.weight": 0.1 * torch.ones(4, 120)}, find_file(tmp_path))
    target = tmp_path / "new"
    target.mkdir()
    with pytest.raises(UserError, match="is PEFT's OFT with turns that no other layout has"):
        edit.rewrite_lora(lora_file.read_lora_file(find_file(tmp_path)), target, keep="all")
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"oft_R__weight": torch.ones(4, 7)}, r"has numbers of \(4, 7\) for the turns of an OFT"),
        ({"oft_R__weight": torch.ones(28)}, "has numbers of"),
        ({"oft_R__weight": torch.ones(1, 2561 * 1280)}, "for n from 2 to 2560"),
        (
            {"oft_R__weight": torch.ones(8, 28), "dora_scale": torch.ones(64, 1)},
            "has magnitudes, which do not",
        ),
        ({"oft_blocks": torch.ones(8, 8, 8), "rescale": torch.ones(63, 1)}, r"has a rescale of \(63, 1\)"),
        ({"oft_R__weight": torch.ones(8, 28), "rescale": torch.ones(64, 1)}, "is incomplete"),
        ({"oft_blocks": torch.ones(8, 8, 8), "oft_R__scaled_oft": torch.tensor(True)}, "is not supported"),
    ],
)
def test_case_04_an_oft_that_no_trainer_writes_is_refused(parts: dict, why: str, tmp_path: Path) -> None:
    use = write_lora(tmp_path / "it.safetensors", LINEAR, **parts)
    with pytest.raises(UserError, match=why):
        lora_file.read_lora_file(Path(use.path))


def test_case_04_turns_of_other_inputs_do_not_fit(tmp_path: Path) -> None:
    use = write_lora(tmp_path / "it.safetensors", LINEAR, oft_R__weight=torch.ones(7, 28))
    with pytest.raises(UserError, match="does not fit this model"):
        compute_changes([use])
