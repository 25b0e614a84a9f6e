"""An upscaler over a picture in tiles that add up to what it makes of the whole.

Windows and convolutions see a neighbourhood, which the overlap covers. DAT also looks at the whole picture: its channel
attention and its pooled maps are sums over all pixels. A tile alone has other sums (up to 0.014 in a pixel of 0..1), so the
sums are taken over all tiles and the tiles gone through again with them, until nothing changes any more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from spandrel import ImageModelDescriptor
from spandrel.architectures.DAT.__arch.DAT import Adaptive_Channel_Attention
from torch import nn

from core.device import GIB, Machine

OVERLAP = 64
"""Pixels that neighbouring tiles share; half of them on each side are thrown away. Tiles begin at multiples of that half: on the grid of DATx2's windows."""
AGREED = 1e-3
"""Of pixels in 0..1: a change between two rounds below which the tiles are one picture."""
ROUNDS = 6


def side(machine: Machine, sparing: bool = False) -> int:
    """Pixels that a tile may have a side: DATx2 keeps about 15 kB for each in float32. Half of it once memory has run out."""
    usual = 256 if machine.memory < 12 * GIB else 512 if machine.device == "cpu" or machine.memory < 24 * GIB else 1024
    return usual // 2 if sparing else usual


@torch.no_grad()
def tiled(model: ImageModelDescriptor, pixels: torch.Tensor, tile: int, overlap: int = OVERLAP) -> torch.Tensor:
    """Pixels (1, 3, h, w) in 0..1 through the model, (1, 3, scale * h, scale * w); at most `tile` pixels a side at once."""
    height, width = pixels.shape[-2:]
    if max(height, width) <= tile:
        return model(pixels.to(model.dtype)).to(pixels)
    with _shared(model.model) as sums:
        made = _round(model, pixels, tile, overlap, sums)
        for _ in range(ROUNDS - 1):
            if not sums.all_tiles():
                return made
            before, made = made, _round(model, pixels, tile, overlap, sums)
            if (made - before).abs().max() < AGREED / 2:
                return made
    return made


def _round(model: ImageModelDescriptor, pixels: torch.Tensor, tile: int, overlap: int, sums: "_Sums") -> torch.Tensor:
    height, width = pixels.shape[-2:]
    scale = model.scale
    out = pixels.new_empty(1, 3, height * scale, width * scale)
    for top, bottom, first, last in strips(height, tile, overlap):
        for left, right, begin, end in strips(width, tile, overlap):
            y, x = slice(first - top, last - top), slice(begin - left, end - left)
            sums.here = (bottom - top, right - left, y, x)
            made = model(pixels[:, :, top:bottom, left:right].to(model.dtype))
            kept = made[:, :, y.start * scale : y.stop * scale, x.start * scale : x.stop * scale]
            out[:, :, first * scale : last * scale, begin * scale : end * scale] = kept
    return out


def strips(length: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(seen from, seen to, kept from, kept to) along one side; half of an overlap is thrown away inside, nothing at the ends."""
    if length <= tile:
        return [(0, length, 0, length)]
    many, grid = -(-(length - overlap) // (tile - overlap)), overlap // 2
    starts = [-(-i * (length - tile) // ((many - 1) * grid)) * grid for i in range(many)]
    ends = [min(start + tile, length) for start in starts]
    cuts = [0, *((start + end) // 2 for end, start in zip(ends, starts[1:], strict=False)), length]
    return list(zip(starts, ends, cuts, cuts[1:], strict=False))


class _Sums:
    """What layers that look at the whole picture sum over it: over the tiles of this round, and over all of the last one."""

    def __init__(self) -> None:
        self.here: tuple[int, int, slice, slice] = (0, 0, slice(0), slice(0))
        """Height and width of the tile, and its part that is kept: every pixel counts once."""
        self.now: dict[nn.Module, tuple[torch.Tensor, ...]] = {}
        self.whole: dict[nn.Module, tuple[torch.Tensor, ...]] = {}

    def add(self, layer: nn.Module, *values: torch.Tensor) -> None:
        before = self.now.get(layer)
        self.now[layer] = values if before is None else tuple(a + b for a, b in zip(before, values, strict=True))

    def all_tiles(self) -> bool:
        """End a round; whether there are layers that look at the whole picture."""
        self.whole, self.now = self.now, {}
        return bool(self.whole)

    def look(self, layer: Any, _linear: nn.Module, _given: Any, qkv: torch.Tensor) -> None:
        """Sum a channel attention's products of queries and keys, (heads, c, c), and their squares."""
        height, width, y, x = self.here
        each = qkv.double().view(height, width, 3, layer.num_heads, -1)[y, x].flatten(0, 1)
        q, k = each[:, 0], each[:, 1]
        self.add(layer, torch.einsum("nhc,nhd->hcd", q, k), q.square().sum(0), k.square().sum(0))

    def attention(self, layer: Any, _dropout: nn.Module, _given: Any, alone: torch.Tensor) -> torch.Tensor:
        """The channel attention of the whole picture, as `Adaptive_Channel_Attention.forward` has it, instead of the tile's."""
        if layer not in self.whole:
            return alone
        products, of_q, of_k = self.whole[layer]
        cosines = products / (of_q.sqrt()[:, :, None] * of_k.sqrt()[:, None, :]).clamp(min=1e-12)
        return (cosines * layer.temperature).softmax(-1).to(alone)[None]

    def pooled(self, layer: nn.Module, given: tuple[torch.Tensor], alone: torch.Tensor) -> torch.Tensor:
        """The mean over the whole picture, (1, channels, 1, 1), instead of the tile's."""
        _, _, y, x = self.here
        kept = given[0][:, :, y, x].double()
        self.add(layer, kept.sum((2, 3), keepdim=True), torch.tensor(kept[0, 0].numel()))
        if layer not in self.whole:
            return alone
        total, many = self.whole[layer]
        return (total / many).to(alone)


@contextmanager
def _shared(model: nn.Module) -> Iterator[_Sums]:
    """The model with its picture-wide layers reading from sums that tiles share; taken off again, whatever happens."""
    sums, hooks = _Sums(), []
    for layer in model.modules():
        if isinstance(layer, Adaptive_Channel_Attention):
            hooks.append(layer.qkv.register_forward_hook(partial(sums.look, layer)))
            hooks.append(layer.attn_drop.register_forward_hook(partial(sums.attention, layer)))
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1:
            hooks.append(layer.register_forward_hook(sums.pooled))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
