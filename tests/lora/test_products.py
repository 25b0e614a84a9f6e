"""LoHa, cores, differences and norms on a model, against written-out formulas.

LyCORIS' own live modules are the reference in tests/bench/kinds.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from tests.lora.formulas import (
    CONV,
    LAYER_NORM,
    LINEAR,
    NORM,
    Parts,
    add_magnitudes,
    add_rescale,
    make_bias,
    make_boft,
    make_difference,
    make_full_lokr,
    make_glora,
    make_ia3,
    make_ia3_of_inputs,
    make_locon_with_a_core,
    make_loha,
    make_loha_with_cores,
    make_lokr,
    make_lokr_with_a_core,
    make_lora,
    make_lora_with_a_bias,
    make_norm,
    make_oft,
    make_oft_of_inputs,
    make_scaled_oft_of_inputs,
    make_shared_oft_of_inputs,
)
from tests.lora.parts import assert_samples_are_alone, compute_changes, write_lora


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (make_glora, LINEAR, "GLoRA"),
        (make_glora, CONV, "GLoRA"),
        (make_oft, LINEAR, "OFT"),
        (make_oft, CONV, "OFT"),
        (make_boft, LINEAR, "BOFT"),
        (make_boft, CONV, "BOFT"),
        (make_oft_of_inputs, LINEAR, "OFT"),
        (make_oft_of_inputs, CONV, "OFT"),
        (make_scaled_oft_of_inputs, LINEAR, "OFT"),
        (make_scaled_oft_of_inputs, CONV, "OFT"),
        (make_shared_oft_of_inputs, LINEAR, "OFT"),
        (make_shared_oft_of_inputs, CONV, "OFT"),
        (add_rescale(make_oft), LINEAR, "OFT"),
        (add_rescale(make_oft), CONV, "OFT"),
        (add_rescale(make_boft), LINEAR, "BOFT"),
        (add_rescale(make_boft), CONV, "BOFT"),
        (make_lora, LINEAR, "LoRA"),
        (make_lora, CONV, "LoRA"),
        (make_lokr, LINEAR, "LoKr"),
        (make_lokr, CONV, "LoKr"),
        (make_full_lokr, LINEAR, "LoKr"),
        (make_full_lokr, CONV, "LoKr"),
        (add_magnitudes(make_lora), LINEAR, "DoRA"),
        (add_magnitudes(make_lora), CONV, "DoRA"),
        (add_magnitudes(make_loha), LINEAR, "LoHa with DoRA"),
        (add_magnitudes(make_loha), CONV, "LoHa with DoRA"),
        (add_magnitudes(make_difference), LINEAR, "full difference with DoRA"),
        (add_magnitudes(make_difference), CONV, "full difference with DoRA"),
        (make_ia3, LINEAR, "IA3"),
        (make_ia3, CONV, "IA3"),
        (make_ia3_of_inputs, LINEAR, "IA3"),
        (make_ia3_of_inputs, CONV, "IA3"),
        (make_loha, LINEAR, "LoHa"),
        (make_loha, CONV, "LoHa"),
        (make_loha_with_cores, CONV, "LoHa"),
        (make_locon_with_a_core, CONV, "LoRA"),
        (make_lokr_with_a_core, CONV, "LoKr"),
        (make_difference, LINEAR, "full difference"),
        (make_difference, CONV, "full difference"),
        (make_lora_with_a_bias, LINEAR, "LoRA"),
        (make_bias, LINEAR, "bias"),
        (make_norm, NORM, "norm"),
        (make_norm, LAYER_NORM, "norm"),
    ],
)
def test_a_kind_is_its_formula(make: Callable, name: str, kind: str, tmp_path: Path) -> None:
    """In the weights, in a batch of several strengths, in a file written anew; and off bit for bit."""
    ours, rng = bases.load_model("nano"), torch.Generator().manual_seed(3)
    layer = ours.unet.get_submodule(name)
    own = {part: value.detach().clone() for part, value in layer.named_parameters()}
    parts, change, bias = make(layer.weight.shape, lambda *shape: 0.2 * torch.randn(shape, generator=rng))
    wanted = {"weight": change.reshape(layer.weight.shape), **({} if bias is None else {"bias": bias})}
    use = write_lora(tmp_path / "it.safetensors", name, **parts)
    found = lora_file.read_lora_file(Path(use.path))
    assert found.kind == kind
    known = ("A BOFT's change is not in proportion", "An OFT with rescale is LyCORIS' at strength 1")
    assert [note for note in found.notes if not note.startswith(known)] == []
    multiples = (1,) if "OFT" in kind or "DoRA" in kind else (1, 2.5)
    changed = [edit.rewrite_lora(found, tmp_path, multiply=times) for times in multiples]
    for file, times in zip((found.path, *changed), (1, *multiples), strict=True):
        # A BOFT is not in proportion to its strength; the bench has what LyCORIS makes of 0.5 and 2.
        for strength in (1.0,) if kind == "BOFT" else (1.0, -0.5, 2.0):
            with lora.apply_loras(ours, [LoraUse(path=str(file), strength=strength)]):
                for part, value in layer.named_parameters():
                    expected = own[part] + strength * times * wanted.get(part, 0)
                    torch.testing.assert_close(value.detach(), expected, atol=1e-5, rtol=1e-5)
    shape = {CONV: (4, layer.weight[0].numel() // 9, 6, 6), NORM: (4, len(layer.weight), 6, 6)}.get(
        name, (4, 5, layer.weight.shape[-1])
    )
    x = torch.randn(shape, generator=rng)
    assert_samples_are_alone(layer, x, use)
    assert all(torch.equal(value, own[part]) for part, value in layer.named_parameters())
    assert not layer._forward_hooks


def test_twenty_block_weights_are_those_of_a1111s_extension(folder: Path) -> None:
    """Twenty ones change every layer, and a zero switches off the block at its place alone."""

    def list_changed(blocks: str | None) -> set[str]:
        use = LoraUse(path=str(folder / "kohya.safetensors"), blocks=blocks)
        return {name for name, change in compute_changes([use]).items() if change.any()}

    every = list_changed(None)
    assert list_changed(",".join("1" * 20)) == every
    without = {
        place: every - list_changed(",".join("0" if i == place else "1" for i in range(20)))
        for place in range(20)
    }
    assert {name.partition(".resnets")[0] for name in without[19]} == {"up_blocks.2"}
    assert {name.rpartition(".resnets.")[2][0] for name in without[2]} == {"0"}, "IN01 is the first resnet"
    assert without[0] == set(), "BASE is the text encoders"
    assert all(name.startswith("mid_block") for name in without[10])
    assert set().union(*without.values()) <= every


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        # flat matrices on a convolution, a bias of another size, a rotation of a norm
        (CONV, {f"{part}__weight": torch.ones(4, 4) for part in ("a1", "a2", "b1", "b2")}),
        (LINEAR, {"oft_blocks": torch.ones(1, 64, 64), "diff_b": torch.ones(7)}),
        (NORM, {"oft_blocks": torch.eye(48)[None]}),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, parts: Parts, tmp_path: Path) -> None:
    use = write_lora(tmp_path / "it.safetensors", name, **parts)
    with (
        pytest.raises(UserError, match=r"does not fit this model"),
        lora.apply_loras(bases.load_model("nano"), [use]),
    ):
        pytest.fail("it was applied")


def test_a_rotation_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    layer = bases.load_model("nano").unet.get_submodule(LINEAR)
    size = len(layer.weight) // 3 if len(layer.weight) % 3 == 0 else len(layer.weight)
    blocks = torch.full((len(layer.weight) // size, size, size), 3e38).triu(1)
    use = write_lora(tmp_path / "it.safetensors", LINEAR, oft_blocks=blocks)
    with (
        pytest.raises(UserError, match=r"a rotation of an OFT has numbers that are too large"),
        lora.apply_loras(bases.load_model("nano"), [use]),
    ):
        pytest.fail("it was applied")


def test_half_of_a_glora_changes_its_layer(tmp_path: Path) -> None:
    """With `a1` at zero, as a training begins, W + b1 b2 is left."""
    out, inputs = bases.load_model("nano").unet.get_submodule(LINEAR).weight.shape
    shapes = {"a1": (inputs, 2), "a2": (2, inputs), "b1": (out, 2), "b2": (2, inputs)}
    parts: Parts = {f"{part}__weight": torch.ones(shape) for part, shape in shapes.items()}
    parts["a1__weight"] = torch.zeros(inputs, 2)
    changed = compute_changes([write_lora(tmp_path / "it.safetensors", LINEAR, **parts)])
    assert torch.allclose(changed[LINEAR], torch.full((out, inputs), 2.0), atol=1e-5)


def test_kohyas_oft_keeps_its_names(tmp_path: Path) -> None:
    """kohya's own code looks for `oft_unet_`."""
    use = write_lora(tmp_path / "it.safetensors", LINEAR, oft_blocks=torch.eye(16)[None] + 1, alpha=0.001)
    renamed = {
        key.replace("lora_unet_", "oft_unet_"): value.triu() if value.ndim else value
        for key, value in load_file(use.path).items()
    }
    save_file(renamed, tmp_path / "kohya.safetensors")
    found = lora_file.read_lora_file(tmp_path / "kohya.safetensors")
    assert (found.format, found.kind) == ("kohya", "OFT")
    written = edit.rewrite_lora(found, tmp_path)
    assert load_file(written).keys() == renamed.keys()
