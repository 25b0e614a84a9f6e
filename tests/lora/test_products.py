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
from tests.lora.parts import assert_samples_are_alone, compute_changes, write_lora

CONV, LINEAR, NORM, LAYER_NORM = (
    "down_blocks.1.resnets.0.conv2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.1.resnets.0.norm1",
    "down_blocks.1.attentions.0.transformer_blocks.0.norm1",
)
Parts = dict[str, torch.Tensor | float]
Draw = Callable[..., torch.Tensor]


def make_loha(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    out, area = shape[0], shape[1:].numel()
    w1_a, w1_b, w2_a, w2_b = draw(out, 3), draw(3, area), draw(out, 3), draw(3, area)
    parts = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b, "alpha": 6.0}
    return parts, 2 * (w1_a @ w1_b) * (w2_a @ w2_b), None


def make_loha_with_cores(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    out, inputs, *kernel = shape
    parts: Parts = {"alpha": 6.0}
    change = torch.ones(shape)
    for number in "12":
        core, a, b = draw(3, 3, *kernel), draw(3, out), draw(3, inputs)
        parts |= {f"hada_t{number}": core, f"hada_w{number}_a": a, f"hada_w{number}_b": b}
        change = change * torch.einsum("ijkl,jr,ip->prkl", core, b, a)
    return parts, 2 * change, None


def make_locon_with_a_core(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    out, inputs, *kernel = shape
    down, mid, up = draw(3, inputs, 1, 1), draw(3, 3, *kernel), draw(out, 3, 1, 1)
    parts = {"lora_down__weight": down, "lora_mid__weight": mid, "lora_up__weight": up, "alpha": 6.0}
    return parts, 2 * torch.einsum("op,pqkl,qi->oikl", up[..., 0, 0], mid, down[..., 0, 0]), None


def make_lokr_with_a_core(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    out, inputs, *kernel = shape
    w1, core, a, b = draw(4, 2), draw(3, 3, *kernel), draw(3, out // 4), draw(3, inputs // 2)
    w2 = torch.einsum("ijkl,jr,ip->prkl", core, b, a).contiguous()
    parts = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": 6.0}
    return parts, 2 * torch.kron(w1[..., None, None], w2), None


def make_difference(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    diff, bias = draw(*shape), draw(shape[0])
    return {"diff": diff, "diff_b": bias}, diff, bias


def make_lora_with_a_bias(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    down, up, bias = draw(3, shape[1]), draw(shape[0], 3), draw(shape[0])
    parts = {"lora_down__weight": down, "lora_up__weight": up, "diff_b": bias, "alpha": 6.0}
    return parts, 2 * up @ down, bias


def make_bias(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    bias = draw(shape[0])
    return {"diff_b": bias}, torch.zeros(shape), bias


def make_norm(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    weight, bias = draw(*shape), draw(*shape)
    return {"w_norm": weight, "b_norm": bias}, weight, bias


def make_glora(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    out, inputs, *kernel = shape
    a1, a2, b1, b2 = draw(inputs, 3), draw(3, inputs), draw(out, 3), draw(3, inputs, *kernel)
    flat = {"a1": a1, "a2": a2, "b1": b1}
    ones = [1] * len(kernel)
    parts = {f"{part}__weight": value.view(*value.shape, *ones) for part, value in flat.items()}
    own = torch.einsum("oi...,ij,jp->op...", get_weight(shape), a1, a2)
    change = 2 * (own + (b1 @ b2.flatten(1)).view(shape))
    return {**parts, "b2__weight": b2, "alpha": 6.0}, change, None


def make_oft(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    """Return blocks of 16 outputs, turned less than they ask for: the limit is reached."""
    blocks, limit = draw(shape[0] // 16, 16, 16), 0.02
    q = blocks - blocks.mT
    q = q * (limit * shape[0] / q.norm()).clamp(max=1)
    turn = torch.block_diag(*((torch.eye(16) + each) @ torch.linalg.inv(torch.eye(16) - each) for each in q))
    own = get_weight(shape)
    change = (turn.T @ own.flatten(1)).view(shape) - own
    return {"oft_blocks": blocks, "alpha": limit}, change, None


def make_boft(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    """Return two factors: the first mixes neighbours, the second every second output with its next."""
    blocks = draw(2, shape[0] // 2, 2, 2)
    flat = own = get_weight(shape).flatten(1)
    for number, factor in enumerate(blocks):
        q = factor - factor.mT
        turn = torch.block_diag(*((torch.eye(2) + e) @ torch.linalg.inv(torch.eye(2) - e) for e in q))
        order = torch.arange(shape[0]).view(-1, 2, 2**number).mT.flatten()
        flat = torch.empty_like(flat).index_copy(0, order, turn @ flat[order])
    return {"oft_blocks": blocks}, (flat - own).view(shape), None


def make_ia3(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    gain, ones = draw(shape[0]), [1] * (len(shape) - 2)
    stored = gain.view(1, -1, *ones) if ones else gain
    return {"weight": stored, "on_input": 0}, gain.view(-1, 1, *ones) * get_weight(shape), None


def make_ia3_of_inputs(shape: torch.Size, draw: Draw) -> tuple[Parts, torch.Tensor, torch.Tensor | None]:
    gain, ones = draw(shape[1]), [1] * (len(shape) - 2)
    stored = gain.view(1, -1, *ones) if ones else gain
    return {"weight": stored, "on_input": 1}, gain.view(1, -1, *ones) * get_weight(shape), None


def get_weight(shape: torch.Size) -> torch.Tensor:
    """Return the weight of the one layer of `LINEAR` and `CONV` that has this shape."""
    layers = (bases.load_model("nano").unet.get_submodule(name) for name in (LINEAR, CONV))
    return next(layer.weight.detach().clone() for layer in layers if layer.weight.shape == shape)


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (make_glora, LINEAR, "GLoRA"),
        (make_glora, CONV, "GLoRA"),
        (make_oft, LINEAR, "OFT"),
        (make_oft, CONV, "OFT"),
        (make_boft, LINEAR, "BOFT"),
        (make_boft, CONV, "BOFT"),
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
    assert [note for note in found.notes if not note.startswith("A BOFT's change is not in proportion")] == []
    multiples = (1,) if "OFT" in kind else (1, 2.5)
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
