"""OFT with turns of inputs, as PEFT and OneTrainer have it, and with LyCORIS' `rescale`.

PEFT's own merge is the reference for its files; OneTrainer's and LyCORIS' are formulas written out.
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
from safetensors.torch import load_file, save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import paths
from tests.lora.parts import assert_samples_are_alone, compute_changes, copy_weights, write_lora

CONV, LINEAR = (
    "down_blocks.1.resnets.0.conv2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
)
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
    peft.save_pretrained(tmp_path)
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


def turn_as_onetrainer(weight: torch.Tensor, vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Return the turned weight: a linear layer's inputs by R, a convolution's weight by R^T."""
    q = torch.zeros(len(vectors), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    q[:, rows, columns] = vectors
    q = q - q.mT
    turn = torch.eye(size) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    flat = weight.flatten(1)
    whole = torch.block_diag(*turn.expand(flat.shape[1] // size, size, size))
    return (flat @ (whole if weight.ndim == 4 else whole.T)).view_as(weight)


@pytest.mark.parametrize("name", [CONV, LINEAR])
@pytest.mark.parametrize("way", ["plain", "scaled", "shared"])
def test_onetrainers_oft_is_its_formula(name: str, way: str, tmp_path: Path) -> None:
    """In the weights, in a batch of strengths, in a file with fewer blocks; and off bit for bit."""
    layer = bases.load_model("nano").unet.get_submodule(name)
    weight = layer.weight.detach().clone()
    count = 1 if way == "shared" else weight[0].numel() // 8
    vectors = 0.1 * torch.randn(count, 28, generator=torch.Generator().manual_seed(3))
    mark = {"oft_R__scaled_oft": torch.tensor(True)} if way == "scaled" else {}
    use = write_lora(tmp_path / "it.safetensors", name, oft_R__weight=vectors, **mark)
    turned = turn_as_onetrainer(weight, vectors / (2 * math.sqrt(7) if way == "scaled" else 1), 8)
    found = lora_file.read_lora_file(Path(use.path))
    assert (found.kind, found.notes) == ("OFT", ())
    written = edit.rewrite_lora(found, tmp_path, keep="all")
    for file in (use.path, str(written)):
        for strength in (1.0, -0.5, 2.0):
            change = compute_changes([LoraUse(path=file, strength=strength)])[name]
            torch.testing.assert_close(change, strength * (turned - weight), atol=1e-5, rtol=1e-5)
    assert load_file(written).keys() == load_file(use.path).keys()
    assert torch.equal(layer.weight, weight)
    shape = (4, weight.shape[1], 6, 6) if weight.ndim == 4 else (4, 5, weight.shape[1])
    assert_samples_are_alone(layer, torch.randn(shape), use)


@pytest.mark.parametrize("name", [CONV, LINEAR])
@pytest.mark.parametrize("kind", ["OFT", "BOFT"])
def test_rescale_multiplies_the_turned_outputs(name: str, kind: str, tmp_path: Path) -> None:
    layer, rng = bases.load_model("nano").unet.get_submodule(name), torch.Generator().manual_seed(3)
    weight = layer.weight.detach().clone()
    out, ones = len(weight), [1] * (weight.ndim - 1)
    blocks = 0.1 * torch.randn(*([1] if kind == "BOFT" else []), out // 8, 8, 8, generator=rng)
    rescale = 1 + 0.2 * torch.randn(out, *ones, generator=rng)
    q = (blocks - blocks.mT).view(-1, 8, 8)
    turn = torch.block_diag(*((torch.eye(8) + each) @ torch.linalg.inv(torch.eye(8) - each) for each in q))
    order = torch.arange(out).view(-1, 2, 4).mT.flatten() if kind == "BOFT" else torch.arange(out)
    turned = torch.empty_like(weight.flatten(1))
    turned[order] = (turn if kind == "BOFT" else turn.T) @ weight.flatten(1)[order]
    wanted = rescale * turned.view_as(weight) - weight
    use = write_lora(tmp_path / "it.safetensors", name, oft_blocks=blocks, alpha=0.0, rescale=rescale)
    found = lora_file.read_lora_file(Path(use.path))
    assert found.kind == kind
    assert "with rescale is LyCORIS' at strength 1" in found.notes[-1]
    written = edit.rewrite_lora(found, tmp_path, keep="all")
    for file in (use.path, str(written)):
        for strength in (0.0, 1.0, 2.0):  # with one factor, a BOFT is in proportion, too
            change = compute_changes([LoraUse(path=file, strength=strength)])[name]
            torch.testing.assert_close(change, strength * wanted, atol=1e-5, rtol=1e-5)
    shape = (4, weight.shape[1], 6, 6) if weight.ndim == 4 else (4, 5, weight.shape[1])
    assert_samples_are_alone(layer, torch.randn(shape, generator=rng), use)


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


def test_pefts_oft_is_not_written_anew(tmp_path: Path) -> None:
    """Its settings have no place in kohya's layout: said before anything is written."""
    stem = f"base_model.model.{LINEAR}"
    save_file({f"{stem}.oft_R.weight": 0.1 * torch.ones(4, 120)}, find_file(tmp_path))
    target = tmp_path / "new"
    target.mkdir()
    with pytest.raises(UserError, match="is PEFT's OFT, whose settings kohya's layout has no place for"):
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
