"""What a LoRA changes in one layer: a delta that is added to its weight in place, or to its output.

A delta is only formed as a whole matrix where that is the smallest way to hold it.

At strength s the weight W becomes W + s * D, so that strengths mean the same for every kind:

- LoRA: D = scale * up @ down, scale being alpha / rank (Hu et al. 2021, arXiv 2106.09685).
- LoHa: D = scale * (w1_a @ w1_b) * (w2_a @ w2_b), place by place, and LoKr: D = scale * kron(w1, w2)
  (Yeh et al. 2023, arXiv 2309.14859).
- In each, a convolution's matrices may have a core between them (Tucker's decomposition).
- A full difference, of a weight, a bias or a norm: D as it is.
- GLoRA: D = scale * (b1 @ b2 + W @ a1 @ a2) (Chavan et al. 2023, arXiv 2306.07967).
- OFT: D = (R - I) @ W, block by block of outputs, where R turns them (Qiu et al. 2023, arXiv 2306.07280);
  PEFT's and OneTrainer's turns the inputs, D = W @ (R^T - I). With LyCORIS' `rescale`, one number an
  output, D = rescale * R @ W - W.
- BOFT: as OFT with several R in a row, W + D = R2 @ R1 @ W (Liu et al. 2023, arXiv 2311.06243). Each
  is I + s * (R - I) at strength s, as in LyCORIS: the one kind that is not proportional to strength.
- IA3: D = gain * W, by output or by input (Liu et al. 2022, arXiv 2205.05638).
- DoRA, on either: D = V - W, where V = magnitude * (W + D') / |W + D'| with the D' of the kind
  beneath, and the norm is taken over each row, or each column, of W + D' (Liu et al. 2024, arXiv
  2402.09353). At strength 1 the weight is V, as in training. Alpha stands inside the norm: twice
  the alpha is not twice the strength.

Several changes of a layer, of whatever kinds, add up. Each is measured from the pristine W, so
their order makes no difference.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from core.lora.rotation import InputTurn, turn_inputs, turn_outputs

Layer = torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm


class LowRankProduct:
    """The product up @ down, kept as two matrices where the rank makes them smaller than it."""

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        # (rank, in * area) and (out, rank). Copies, because the file's tensors lie in its memory
        # map, and the file may change.
        self.down, self.up = (
            parts[name].flatten(1).to(weight.device, weight.dtype, copy=True) for name in ("down", "up")
        )

    def norm(self) -> float:
        """Frobenius norm, without forming the product: |up down|^2 = <up' up, down down'>."""
        down, up = self.down.float(), self.up.float()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """Add factor * product to a weight (out, in * area).

        `gain` multiplies each row, (out, 1), or each column, (1, in * area), of the product.
        """
        down, up = self.down.to(flat), self.up.to(flat)
        if gain is not None:
            down, up = (down * gain, up) if len(gain) == 1 else (down, up * gain)
        flat.addmm_(up, down, alpha=factor)

    def compute_output(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Apply the product to the layer's input x, times a factor for each sample."""
        down, up = self.down.to(x), self.up.to(x)
        if isinstance(layer, torch.nn.Linear):
            return ((x @ down.T) * factor) @ up.T
        return F.conv2d(
            _forward_weight(layer, x, down.view(-1, *layer.weight.shape[1:])) * factor,
            up[:, :, None, None],
        )


class DenseProduct:
    """A change that is kept as one matrix, (out, in * area).

    It is a difference as the file has it, or the product up @ down where the rank makes one matrix
    smaller than two; the product is in float32, so that it is rounded only once, when it is added.
    """

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        if "down" in parts:
            down, up = (parts[name].flatten(1).to(weight.device).float() for name in ("down", "up"))
            self.matrix = up @ down
        else:
            whole = parts["diff"] if "diff" in parts else parts["w_norm"]
            self.matrix = _flatten_weight(whole).to(weight.device, copy=True)

    def norm(self) -> float:
        """Return the Frobenius norm of the product."""
        return float(self.matrix.float().norm())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """Add factor * product to a weight (out, in * area).

        `gain` multiplies each row, (out, 1), or each column, (1, in * area), of the product.
        """
        product = self.matrix.to(flat.device)
        flat.add_(product if gain is None else product * gain, alpha=factor)

    def compute_output(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Apply the product to the layer's input x, times a factor for each sample."""
        return _forward_weight(layer, x, self.matrix.to(x).view_as(layer.weight)) * factor


class HadamardProduct:
    """The product, place by place, of two low-rank products, each (out, rank) and (rank, in * area).

    It is formed for each use: as a whole, it is as large as the layer's weight.
    """

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        self.a1, self.b1, self.a2, self.b2 = (
            parts[f"hada_{name}"].flatten(1).to(weight.device, weight.dtype, copy=True)
            for name in ("w1_a", "w1_b", "w2_a", "w2_b")
        )

    def _form_matrix(self) -> torch.Tensor:
        return (self.a1.float() @ self.b1.float()).mul_(self.a2.float() @ self.b2.float())

    def norm(self) -> float:
        """Return the Frobenius norm of the product."""
        return float(self._form_matrix().norm())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """Add factor * product to a weight (out, in * area).

        `gain` multiplies each row, (out, 1), or each column, (1, in * area), of the product.
        """
        product = self._form_matrix().to(flat.device)
        flat.add_(product if gain is None else product * gain, alpha=factor)

    def compute_output(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Apply the product to the layer's input x, times a factor for each sample."""
        return _forward_weight(layer, x, self._form_matrix().to(x).view_as(layer.weight)) * factor


class KroneckerProduct:
    """The Kronecker product of w1, (a, b), and w2, (c, d * area).

    The layer has a * c outputs and b * d inputs.
    """

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        whole = (
            parts[name] if name in parts else parts[f"{name}_a"].float() @ parts[f"{name}_b"].float()
            for name in ("w1", "w2")
        )
        self.w1, self.w2 = (each.flatten(1).to(weight.device, weight.dtype, copy=True) for each in whole)

    def norm(self) -> float:
        """Return the Frobenius norm of the product, which is that of w1 times that of w2."""
        return float(self.w1.float().norm() * self.w2.float().norm())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """Add factor * product to a weight (out, in * area), in place, by rows and columns of w1.

        `gain` multiplies each row, (out, 1), or each column, (1, in * area), of the product.
        """
        # (a, 1, b, 1) and (1, c, 1, d * area)
        w1, w2 = self.w1.to(flat)[:, None, :, None], self.w2.to(flat)[None, :, None, :]
        there = flat.view(w1.shape[0], w2.shape[1], w1.shape[2], w2.shape[3])
        if gain is not None:
            w1, w2 = (
                (w1, w2 * gain.view(1, 1, *there.shape[2:]))
                if len(gain) == 1
                else (w1 * gain.view(*there.shape[:2], 1, 1), w2)
            )
        there.addcmul_(w1, w2, value=factor)

    def compute_output(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Apply the product to the layer's input x, times a factor for each sample.

        w2 acts on each group of inputs, then w1 between the groups.
        """
        w1, w2 = self.w1.to(x), self.w2.to(x)
        if isinstance(layer, torch.nn.Linear):
            return (w1 @ (x.unflatten(-1, (w1.shape[1], -1)) @ w2.T)).flatten(-2) * factor
        groups = x.reshape(len(x) * w1.shape[1], -1, *x.shape[2:])
        # (batch * b, c, height, width)
        made = _forward_weight(layer, groups, w2.view(len(w2), -1, *layer.weight.shape[2:]))
        return (w1 @ made.reshape(len(x), w1.shape[1], -1)).view(len(x), -1, *made.shape[2:]) * factor


NO_PRODUCT_PARTS = {
    "diff_b", "b_norm", "rotation", "butterfly", "limit", "rescale", "vectors", "gain"
}  # fmt: skip
"""Parts of which no matrix is made that is added to the weight."""


class LayerDelta:
    """The change that a module of a file makes to its layer.

    The layer's weight must be pristine while this object is created.
    """

    def __init__(
        self,
        layer: Layer,
        parts: Mapping[str, torch.Tensor],
        scale: float,
        magnitude_dim: int | None = None,
        input_turn: InputTurn | None = None,
    ):
        """Prepare the change from tensors named as in `LoraModule.keys`.

        `magnitude_dim` is the weight's dimension, 0 or 1, along which a DoRA's magnitudes lie, and
        `input_turn` how the turns of an OFT of inputs are made.
        """
        weight = layer.weight.detach()
        parts = _fold_glora(_fold_cores(parts), weight)
        has_product = bool(parts.keys() - NO_PRODUCT_PARTS)
        self.product = _choose_product(parts)(parts, weight) if has_product else None
        bias = parts.get("diff_b", parts.get("b_norm"))
        self.bias = None if bias is None else bias.flatten().to(weight.device, weight.dtype, copy=True)
        """What is added to the layer's bias at strength 1, (out,); `None` for nothing."""
        self.scale, self.magnitude_dim = scale, magnitude_dim
        self.gain_minus_one: torch.Tensor | None = None
        """The share of W itself that is added: an IA3's gain; rescale - 1; a DoRA's magnitude / norm - 1.

        float32, (out, 1, ...) or (1, in, ...).
        """
        blocks = parts.get("rotation", parts.get("butterfly"))
        self.rotation = None if blocks is None else turn_outputs(blocks.to(weight.device), parts.get("limit"))
        if input_turn is not None:
            self.rotation = turn_inputs(parts["vectors"].to(weight.device), input_turn, weight.ndim > 2)
        if "rescale" in parts:
            self.magnitude_dim = 0
            rescale = parts["rescale"].to(weight.device, torch.float32)
            self.gain_minus_one = rescale.reshape(-1, *[1] * (weight.ndim - 1)) - 1
        elif magnitude_dim is not None and "gain" in parts:
            wanted = [len(weight) if magnitude_dim == 0 else 1, -1, *[1] * (weight.ndim - 2)]
            self.gain_minus_one = parts["gain"].to(weight.device, torch.float32).reshape(wanted).clone()
        elif magnitude_dim is not None and self.product is not None:
            trained = _flatten_weight(weight).float().clone()
            self.product.add_to(trained, scale)
            norm = torch.linalg.vector_norm(
                trained.view(weight.shape),
                dim=[i for i in range(weight.ndim) if i != magnitude_dim],
                keepdim=True,
            )
            gain = parts["magnitude"].to(norm).view_as(norm) / norm
            self.gain_minus_one = torch.where(norm > 0, gain - 1, 0)  # zeros stay zeros

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices that this object holds."""
        held = (
            *(vars(self.product).values() if self.product else ()),
            self.gain_minus_one,
            self.rotation and self.rotation.turns,
            self.bias,
        )
        return sum(value.nbytes for value in held if value is not None)

    def norm(self, weight: torch.Tensor) -> float:
        """Frobenius norm of the change at strength 1 of this pristine weight; biases do not count."""
        if self.gain_minus_one is None and self.rotation is None:
            return abs(self.scale) * self.product.norm() if self.product else 0.0
        changed = torch.zeros_like(_flatten_weight(weight), dtype=torch.float32)
        self.add_to(changed, weight, 1.0)
        return float(changed.norm())

    def add_to(self, flat: torch.Tensor, pristine: torch.Tensor, strength: float) -> None:
        """Add the change at this strength to a weight (out, in * area).

        `pristine` is the layer's weight without any change.
        """
        own, gain = _flatten_weight(pristine).to(flat), None
        if self.gain_minus_one is not None:
            extra = self.gain_minus_one.to(flat.device)
            extra = (
                extra.flatten(1)
                if self.magnitude_dim == 0
                else extra.expand(1, *pristine.shape[1:]).flatten(1)
            )
            gain = (1 + extra).to(flat.dtype)
            flat.addcmul_(own, extra.to(flat.dtype), value=strength)
        if self.rotation is not None:
            turned = self.rotation.compute_change(own, int(self.rotation.of_inputs), strength)
            flat.add_(turned if gain is None else turned * gain)
        if self.product is not None:
            self.product.add_to(flat, strength * self.scale, gain)

    def compute_output_delta(
        self, layer: Layer, x: torch.Tensor, out: torch.Tensor, strength: torch.Tensor
    ) -> torch.Tensor:
        """Return what the change adds to `out`, the pristine layer's output for x.

        `strength` is one number for each sample, (batch, 1, ...).
        """
        factor, strength = (strength * self.scale).to(x.dtype), strength.to(x.dtype)
        # Channels are the last dimension of a linear layer's values, the second of the others'.
        rest = [1] * (x.ndim - 2 if isinstance(layer, torch.nn.Conv2d | torch.nn.GroupNorm) else 0)
        terms: list[torch.Tensor] = []
        gain = None if self.gain_minus_one is None else self.gain_minus_one.to(x).view(-1, *rest)
        if self.bias is not None:
            terms.append(self.bias.to(x).view(-1, *rest) * strength)
        if self.rotation is not None and self.rotation.of_inputs:
            turned = self.rotation.compute_change(_flatten_weight(layer.weight), 1, 1.0)
            terms.append(_forward_weight(layer, x, turned.view_as(layer.weight)) * strength)
        elif self.rotation is not None or (gain is not None and self.magnitude_dim == 0):
            plain = out if layer.bias is None else out - layer.bias.view(-1, *rest)
            if self.rotation is not None:
                turned = self.rotation.compute_change(plain, 1 if rest else -1, strength)
                terms.append(turned if gain is None else turned * (1 + gain))
            if gain is not None:
                terms.append(plain * (gain * strength))
        elif gain is not None:
            terms.append(_forward_weight(layer, x * gain, layer.weight) * strength)
        if self.product is not None:
            if gain is None:
                terms.append(self.product.compute_output(layer, x, factor))
            elif self.magnitude_dim == 0:
                terms.append(self.product.compute_output(layer, x, factor) * (1 + gain))
            else:
                terms.append(self.product.compute_output(layer, x * (1 + gain), factor))
        return sum(terms[1:], terms[0])


def _fold_cores(parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the parts with the core of a Tucker decomposition folded into the matrix beside it.

    With a core c (r, r, k, k) and a matrix b (r, in), the product a c b is a @ b', where b' is
    (r, in, k, k) with b'[p, i] = sum over q of c[p, q] b[q, i].
    """

    def fold(core: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return torch.einsum("pqkl,qi->pikl", core.float(), inner.flatten(1).float())

    folded = dict(parts)
    for core, inner in (("mid", "down"), ("bm", "b2")):
        if core in folded:
            folded[inner] = fold(folded.pop(core), folded[inner])
    for core, name in (("hada_t1", "hada_w1"), ("hada_t2", "hada_w2"), ("t2", "w2")):
        if core in folded:
            folded[f"{name}_b"] = fold(folded.pop(core), folded[f"{name}_b"]).flatten(1)
            folded[f"{name}_a"] = folded[f"{name}_a"].T
    return folded


def _fold_glora(parts: Mapping[str, torch.Tensor], weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Return GLoRA's four matrices as the product or the difference that they make of this weight.

    b1 b2 + (W a1) a2 is one product of twice the rank; with a kernel, it is formed as a whole.
    """
    if "b1" not in parts:
        return parts
    rest = {part: value for part, value in parts.items() if part not in ("a1", "a2", "b1", "b2")}
    a1, a2, b1, b2 = (parts[part].flatten(1).to(weight.device).float() for part in ("a1", "a2", "b1", "b2"))
    if weight[0, 0].numel() == 1:
        up = torch.cat([b1, weight.flatten(1).float() @ a1], dim=1)
        return {**rest, "up": up, "down": torch.cat([b2, a2])}
    inner = torch.einsum("oi...,ir->or...", weight.float(), a1)
    own = torch.einsum("or...,rj->oj...", inner, a2)
    return {**rest, "diff": ((b1 @ b2).view(weight.shape) + own).to(weight.dtype)}


def _choose_product(
    parts: Mapping[str, torch.Tensor],
) -> type[LowRankProduct | DenseProduct | KroneckerProduct | HadamardProduct]:
    """Return the class that holds a module's product in the least memory."""
    if "diff" in parts or "w_norm" in parts:
        return DenseProduct
    if "hada_w1_a" in parts:
        return HadamardProduct
    if "down" not in parts:
        return KroneckerProduct
    (rank, *others), out = parts["down"].shape, len(parts["up"])
    width = math.prod(others)
    return LowRankProduct if rank * (width + out) < out * width else DenseProduct


def make_delta_hook(
    layer: Layer, deltas: Sequence[tuple[LayerDelta, torch.Tensor]]
) -> Callable[..., torch.Tensor]:
    """Return a forward hook that adds each change, at each sample's strength, to a layer's output.

    Guidance repeats the samples in a batch, so the strengths are repeated, too.
    """

    def add_deltas(_: torch.nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        (x,), added = inputs, out
        for change, strengths in deltas:
            strength = strengths.to(x.device).repeat(len(x) // len(strengths)).view(-1, *[1] * (x.ndim - 1))
            added = added + change.compute_output_delta(layer, x, out, strength)
        return added

    return add_deltas


def _forward_weight(layer: Layer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Apply the layer to x with another weight and without its bias."""
    if isinstance(layer, torch.nn.Linear):
        return F.linear(x, weight)
    if isinstance(layer, torch.nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, None, layer.eps)
    if isinstance(layer, torch.nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, None, layer.eps)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _flatten_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight as (out, in * area), also if it lies in memory with its channels last."""
    return weight.reshape(len(weight), -1)
