"""What a LoRA does to one layer: added in place to its weight, or to what it gives; a change is formed where that is the smallest way to hold it.

At strength s the weight W becomes W + s * D, so that a sweep's strengths mean the same for every kind:

- LoRA: D = scale * up @ down, scale being alpha / rank (Hu et al. 2021, arXiv 2106.09685).
- LoKr: D = scale * kron(w1, w2) (Yeh et al. 2023, arXiv 2309.14859).
- DoRA, on either: D = V - W, where V = magnitude * (W + D') / |W + D'| with the D' of the kind beneath, and the norm is
  taken over each row, or each column, of W + D' (Liu et al. 2024, arXiv 2402.09353). At 1 the weight is V, as in training.
  Alpha stands inside the norm: twice the alpha is not twice the strength.

Several changes of a layer, of whatever kinds, add up; each is measured from the pristine W, so that their order is nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

Layer = torch.nn.Linear | torch.nn.Conv2d


class Pair:
    """up @ down, for a rank at which the two matrices are smaller than their product."""

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        # Copies: the file's tensors stay where it is mapped, and it may change. (rank, in * area), (out, rank)
        self.down, self.up = (parts[name].flatten(1).to(weight.device, weight.dtype, copy=True) for name in ("down", "up"))

    def norm(self) -> float:
        """Frobenius, without ever forming it: |up down|^2 = <up' up, down down'>."""
        down, up = self.down.float(), self.up.float()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """Add factor times it to a weight (out, in * area), times a gain for each row, (out, 1), or each column, (1, in * area)."""
        down, up = self.down.to(flat), self.up.to(flat)
        if gain is not None:
            down, up = (down * gain, up) if len(gain) == 1 else (down, up * gain)
        flat.addmm_(up, down, alpha=factor)

    def of(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """factor times what it makes of x, the factor being one for each sample."""
        down, up = self.down.to(x), self.up.to(x)
        if isinstance(layer, torch.nn.Linear):
            return ((x @ down.T) * factor) @ up.T
        return F.conv2d(_through(layer, x, down.view(-1, layer.in_channels, *layer.kernel_size)) * factor, up[:, :, None, None])


class Whole:
    """up @ down of a rank so high that their product, (out, in * area), is smaller than the two: in float32, so that it is rounded once, in the sum."""

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        down, up = (parts[name].flatten(1).to(weight.device).float() for name in ("down", "up"))
        self.product = up @ down

    def norm(self) -> float:
        return float(self.product.norm())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """As `Pair.add_to`."""
        product = self.product.to(flat.device)
        flat.add_(product if gain is None else product * gain, alpha=factor)

    def of(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """As `Pair.of`."""
        return _through(layer, x, self.product.to(x).view_as(layer.weight)) * factor


class Product:
    """The Kronecker product of w1, (a, b), and w2, (c, d * area), for a layer of a * c outputs and b * d inputs."""

    def __init__(self, parts: Mapping[str, torch.Tensor], weight: torch.Tensor):
        whole = (parts[name] if name in parts else parts[f"{name}_a"].float() @ parts[f"{name}_b"].float() for name in ("w1", "w2"))
        self.w1, self.w2 = (each.flatten(1).to(weight.device, weight.dtype, copy=True) for each in whole)

    def norm(self) -> float:
        return float(self.w1.float().norm() * self.w2.float().norm())

    def add_to(self, flat: torch.Tensor, factor: float, gain: torch.Tensor | None = None) -> None:
        """As `Pair.add_to`; in place, by rows and columns of w1."""
        w1, w2 = self.w1.to(flat)[:, None, :, None], self.w2.to(flat)[None, :, None, :]  # (a, 1, b, 1), (1, c, 1, d * area)
        there = flat.view(w1.shape[0], w2.shape[1], w1.shape[2], w2.shape[3])
        if gain is not None:
            w1, w2 = (w1, w2 * gain.view(1, 1, *there.shape[2:])) if len(gain) == 1 else (w1 * gain.view(*there.shape[:2], 1, 1), w2)
        there.addcmul_(w1, w2, value=factor)

    def of(self, layer: Layer, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """As `Pair.of`: w2 on each group of inputs, then w1 between the groups."""
        w1, w2 = self.w1.to(x), self.w2.to(x)
        if isinstance(layer, torch.nn.Linear):
            return (w1 @ (x.unflatten(-1, (w1.shape[1], -1)) @ w2.T)).flatten(-2) * factor
        groups = x.reshape(len(x) * w1.shape[1], -1, *x.shape[2:])
        made = _through(layer, groups, w2.view(len(w2), -1, *layer.kernel_size))  # (batch * b, c, height, width)
        return (w1 @ made.reshape(len(x), w1.shape[1], -1)).view(len(x), -1, *made.shape[2:]) * factor


class Change:
    """A module of a file on its layer, whose weight must be pristine while this is made."""

    def __init__(self, layer: Layer, parts: Mapping[str, torch.Tensor], scale: float, along: int | None = None):
        """`parts` as `lorakeys.Module.keys` names them; of a DoRA, the magnitudes stand `along` dimension 0 or 1 of the weight."""
        weight = layer.weight.detach()
        self.inner = _kind(parts)(parts, weight)
        self.scale, self.along = scale, along
        self.extra: torch.Tensor | None = None
        """Of a DoRA: magnitude / norm less 1, float32, (out, 1, ...) or (1, in, ...): how much of W itself is added."""
        if along is not None:
            trained = _flat(weight).float().clone()
            self.inner.add_to(trained, scale)
            norm = torch.linalg.vector_norm(trained.view(weight.shape), dim=[i for i in range(weight.ndim) if i != along], keepdim=True)
            gain = parts["magnitude"].to(norm).view_as(norm) / norm
            self.extra = torch.where(norm > 0, gain - 1, 0)  # what is nothing stays nothing

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices that it holds."""
        return sum(value.nbytes for value in (*vars(self.inner).values(), self.extra) if value is not None)

    def norm(self, weight: torch.Tensor) -> float:
        """Frobenius norm of the change at strength 1 of this pristine weight."""
        if self.extra is None:
            return abs(self.scale) * self.inner.norm()
        changed = torch.zeros_like(_flat(weight), dtype=torch.float32)
        self.add_to(changed, weight, 1.0)
        return float(changed.norm())

    def add_to(self, flat: torch.Tensor, pristine: torch.Tensor, strength: float) -> None:
        """Add the change at this strength to a weight, (out, in * area), of which the other is the pristine one."""
        if self.extra is None:
            self.inner.add_to(flat, strength * self.scale)
            return
        extra = self.extra.to(flat.device)
        extra = extra.flatten(1) if self.along == 0 else extra.expand(1, *pristine.shape[1:]).flatten(1)
        self.inner.add_to(flat, strength * self.scale, (1 + extra).to(flat.dtype))
        flat.addcmul_(_flat(pristine).to(flat), extra.to(flat.dtype), value=strength)

    def of(self, layer: Layer, x: torch.Tensor, out: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """What the change adds to `out`, which the pristine layer gives for x, at each sample's strength, (batch, 1, ...)."""
        factor, strength = (strength * self.scale).to(x.dtype), strength.to(x.dtype)
        if self.extra is None:
            return self.inner.of(layer, x, factor)
        extra = self.extra.to(x).view(-1, *[1] * (layer.weight.ndim - 2))  # (channels,) or (channels, 1, 1)
        if self.along == 0:
            plain = out if layer.bias is None else out - layer.bias.view_as(extra)
            return self.inner.of(layer, x, factor) * (1 + extra) + plain * (extra * strength)
        return self.inner.of(layer, x * (1 + extra), factor) + _through(layer, x * extra, layer.weight) * strength


def _kind(parts: Mapping[str, torch.Tensor]) -> type[Pair | Whole | Product]:
    """How a module's change is held."""
    if "down" not in parts:
        return Product
    (rank, *others), out = parts["down"].shape, len(parts["up"])
    width = math.prod(others)
    return Pair if rank * (width + out) < out * width else Whole


def adding(layer: Layer, changes: Sequence[tuple[Change, torch.Tensor]]) -> Callable[..., torch.Tensor]:
    """A hook that adds each change, at the strength of each sample, to what a layer makes of x; guidance repeats the samples."""

    def hook(_: torch.nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        (x,), added = given, out
        for change, strengths in changes:
            strength = strengths.to(x.device).repeat(len(x) // len(strengths)).view(-1, *[1] * (x.ndim - 1))
            added = added + change.of(layer, x, out, strength)
        return added

    return hook


def _through(layer: Layer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x through a layer of another weight, without its bias."""
    if isinstance(layer, torch.nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """(out, in * area), also of a weight that lies in memory with its channels last."""
    return weight.reshape(len(weight), -1)
