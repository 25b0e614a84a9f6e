"""What each kind adds to a layer's weight and bias at strength 1, as a formula written out."""

import math
from collections.abc import Callable

import torch

from core.models import bases

CONV, LINEAR, NORM, LAYER_NORM = (
    "down_blocks.1.resnets.0.conv2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.1.resnets.0.norm1",
    "down_blocks.1.attentions.0.transformer_blocks.0.norm1",
)
Parts = dict[str, torch.Tensor | float]
Draw = Callable[..., torch.Tensor]
Made = tuple[Parts, torch.Tensor, torch.Tensor | None]
"""The tensors by kohya's names, with `__` for dots; the changes of the weight and of the bias."""
Make = Callable[[torch.Size, Draw], Made]


def make_loha(shape: torch.Size, draw: Draw) -> Made:
    out, area = shape[0], shape[1:].numel()
    w1_a, w1_b, w2_a, w2_b = draw(out, 3), draw(3, area), draw(out, 3), draw(3, area)
    parts = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b, "alpha": 6.0}
    return parts, 2 * (w1_a @ w1_b) * (w2_a @ w2_b), None


def make_loha_with_cores(shape: torch.Size, draw: Draw) -> Made:
    out, inputs, *kernel = shape
    parts: Parts = {"alpha": 6.0}
    change = torch.ones(shape)
    for number in "12":
        core, a, b = draw(3, 3, *kernel), draw(3, out), draw(3, inputs)
        parts |= {f"hada_t{number}": core, f"hada_w{number}_a": a, f"hada_w{number}_b": b}
        change = change * torch.einsum("ijkl,jr,ip->prkl", core, b, a)
    return parts, 2 * change, None


def make_locon_with_a_core(shape: torch.Size, draw: Draw) -> Made:
    out, inputs, *kernel = shape
    down, mid, up = draw(3, inputs, 1, 1), draw(3, 3, *kernel), draw(out, 3, 1, 1)
    parts = {"lora_down__weight": down, "lora_mid__weight": mid, "lora_up__weight": up, "alpha": 6.0}
    return parts, 2 * torch.einsum("op,pqkl,qi->oikl", up[..., 0, 0], mid, down[..., 0, 0]), None


def make_lokr_with_a_core(shape: torch.Size, draw: Draw) -> Made:
    out, inputs, *kernel = shape
    w1, core, a, b = draw(4, 2), draw(3, 3, *kernel), draw(3, out // 4), draw(3, inputs // 2)
    w2 = torch.einsum("ijkl,jr,ip->prkl", core, b, a).contiguous()
    parts = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": 6.0}
    return parts, 2 * torch.kron(w1[..., None, None], w2), None


def make_difference(shape: torch.Size, draw: Draw) -> Made:
    diff, bias = draw(*shape), draw(shape[0])
    return {"diff": diff, "diff_b": bias}, diff, bias


def make_lora_with_a_bias(shape: torch.Size, draw: Draw) -> Made:
    down, up, bias = draw(3, shape[1]), draw(shape[0], 3), draw(shape[0])
    parts = {"lora_down__weight": down, "lora_up__weight": up, "diff_b": bias, "alpha": 6.0}
    return parts, 2 * up @ down, bias


def make_lora(shape: torch.Size, draw: Draw) -> Made:
    out, inputs, *kernel = shape
    down, up = draw(3, inputs, *kernel), draw(out, 3, *[1] * len(kernel))
    change = 2 * (up.flatten(1) @ down.flatten(1)).view(shape)
    return {"lora_down__weight": down, "lora_up__weight": up, "alpha": 6.0}, change, None


def make_lokr(shape: torch.Size, draw: Draw) -> Made:
    """Return a whole w1 and a w2 in two factors."""
    w1, a, b = draw(4, 2), draw(shape[0] // 4, 3), draw(3, shape[1:].numel() // 2)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": 6.0}
    return parts, 2 * torch.kron(w1, a @ b).view(shape), None


def make_full_lokr(shape: torch.Size, draw: Draw) -> Made:
    """Return a LoKr without factors, whose alpha nobody reads."""
    w1, w2 = draw(4, 2), draw(shape[0] // 4, shape[1] // 2, *shape[2:])
    change = torch.kron(w1, w2.flatten(1)).view(shape)
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": 6.0}, change, None


def add_magnitudes(make: Make) -> Make:
    """Return a kind with DoRA's magnitudes of outputs on it."""

    def make_both(shape: torch.Size, draw: Draw) -> Made:
        parts, change, bias = make(shape, draw)
        own, ones = get_weight(shape), [1] * (len(shape) - 1)
        norm = (own + change.view(shape)).flatten(1).norm(dim=1).view(-1, *ones)
        magnitude = norm * (1 + draw(shape[0], *ones))
        return {**parts, "dora_scale": magnitude}, magnitude * (own + change.view(shape)) / norm - own, bias

    return make_both


def add_rescale(make: Make) -> Make:
    """Return an OFT or BOFT with a factor for each output."""

    def make_both(shape: torch.Size, draw: Draw) -> Made:
        parts, change, bias = make(shape, draw)
        own, rescale = get_weight(shape), 1 + draw(shape[0], *[1] * (len(shape) - 1))
        return {**parts, "rescale": rescale}, rescale * (own + change.view(shape)) - own, bias

    return make_both


def make_oft_of_inputs(shape: torch.Size, draw: Draw, divisor: float = 1.0, shared: bool = False) -> Made:
    """Return OneTrainer's: a linear layer's inputs are turned by R, a convolution's weight by R^T."""
    inputs = shape[1:].numel()
    vectors = draw(1 if shared else inputs // 8, 28)
    q = torch.zeros(len(vectors), 8, 8)
    rows, columns = torch.triu_indices(8, 8, 1)
    q[:, rows, columns] = vectors / divisor
    q = q - q.mT
    turn = torch.eye(8) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    whole = torch.block_diag(*turn.expand(inputs // 8, 8, 8))
    own = get_weight(shape).flatten(1)
    turned = own @ (whole if len(shape) == 4 else whole.T)
    return {"oft_R__weight": vectors}, (turned - own).view(shape), None


def make_scaled_oft_of_inputs(shape: torch.Size, draw: Draw) -> Made:
    parts, change, bias = make_oft_of_inputs(shape, draw, divisor=2 * math.sqrt(7))
    return {**parts, "oft_R__scaled_oft": torch.tensor(True)}, change, bias


def make_shared_oft_of_inputs(shape: torch.Size, draw: Draw) -> Made:
    return make_oft_of_inputs(shape, draw, shared=True)


def make_bias(shape: torch.Size, draw: Draw) -> Made:
    bias = draw(shape[0])
    return {"diff_b": bias}, torch.zeros(shape), bias


def make_norm(shape: torch.Size, draw: Draw) -> Made:
    weight, bias = draw(*shape), draw(*shape)
    return {"w_norm": weight, "b_norm": bias}, weight, bias


def make_glora(shape: torch.Size, draw: Draw) -> Made:
    out, inputs, *kernel = shape
    a1, a2, b1, b2 = draw(inputs, 3), draw(3, inputs), draw(out, 3), draw(3, inputs, *kernel)
    flat = {"a1": a1, "a2": a2, "b1": b1}
    ones = [1] * len(kernel)
    parts = {f"{part}__weight": value.view(*value.shape, *ones) for part, value in flat.items()}
    own = torch.einsum("oi...,ij,jp->op...", get_weight(shape), a1, a2)
    change = 2 * (own + (b1 @ b2.flatten(1)).view(shape))
    return {**parts, "b2__weight": b2, "alpha": 6.0}, change, None


def make_oft(shape: torch.Size, draw: Draw) -> Made:
    """Return blocks of 16 outputs, turned less than they ask for: the limit is reached."""
    blocks, limit = draw(shape[0] // 16, 16, 16), 0.02
    q = blocks - blocks.mT
    q = q * (limit * shape[0] / q.norm()).clamp(max=1)
    turn = torch.block_diag(*((torch.eye(16) + each) @ torch.linalg.inv(torch.eye(16) - each) for each in q))
    own = get_weight(shape)
    change = (turn.T @ own.flatten(1)).view(shape) - own
    return {"oft_blocks": blocks, "alpha": limit}, change, None


def make_boft(shape: torch.Size, draw: Draw) -> Made:
    """Return two factors: the first mixes neighbours, the second every second output with its next."""
    blocks = draw(2, shape[0] // 2, 2, 2)
    flat = own = get_weight(shape).flatten(1)
    for number, factor in enumerate(blocks):
        q = factor - factor.mT
        turn = torch.block_diag(*((torch.eye(2) + e) @ torch.linalg.inv(torch.eye(2) - e) for e in q))
        order = torch.arange(shape[0]).view(-1, 2, 2**number).mT.flatten()
        flat = torch.empty_like(flat).index_copy(0, order, turn @ flat[order])
    return {"oft_blocks": blocks}, (flat - own).view(shape), None


def make_ia3(shape: torch.Size, draw: Draw) -> Made:
    gain, ones = draw(shape[0]), [1] * (len(shape) - 2)
    stored = gain.view(1, -1, *ones) if ones else gain
    return {"weight": stored, "on_input": 0}, gain.view(-1, 1, *ones) * get_weight(shape), None


def make_ia3_of_inputs(shape: torch.Size, draw: Draw) -> Made:
    gain, ones = draw(shape[1]), [1] * (len(shape) - 2)
    stored = gain.view(1, -1, *ones) if ones else gain
    return {"weight": stored, "on_input": 1}, gain.view(1, -1, *ones) * get_weight(shape), None


def get_weight(shape: torch.Size) -> torch.Tensor:
    """Return the weight of the one layer of `LINEAR` and `CONV` that has this shape."""
    layers = (bases.load_model("nano").unet.get_submodule(name) for name in (LINEAR, CONV))
    return next(layer.weight.detach().clone() for layer in layers if layer.weight.shape == shape)
