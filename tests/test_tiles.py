"""Tiles beside the whole: a network of neighbourhoods, and DAT, which looks at the whole picture."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN

from core import hires, tools
from core.nano.draw import drawing
from core.nano.pictures import HELD_OUT, scene
from core.tiles import strips, tiled


def pixels(size: tuple[int, int], number: int = 0) -> torch.Tensor:
    picture = drawing(scene(HELD_OUT + number, size)).picture
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("length", "tile", "overlap"), [(10, 16, 4), (100, 32, 8), (257, 256, 32), (1000, 256, 64), (1001, 512, 64), (1216, 512, 64)])
def test_strips_cover_a_side_once(length: int, tile: int, overlap: int) -> None:
    found = strips(length, tile, overlap)
    assert [kept for *_, begin, end in found for kept in range(begin, end)] == list(range(length))
    assert all(0 <= seen <= begin < end <= to <= length and to - seen <= tile for seen, to, begin, end in found)
    assert all(seen % (overlap // 2) == 0 for seen, *_ in found), "windows would not fall on those of the whole"
    assert all(to - seen >= overlap for (_, to, *_), (seen, *_) in pairwise(found))


def test_a_network_of_neighbourhoods(tmp_path: Path) -> None:
    """With an overlap that covers its reach, tiles are the whole."""
    torch.manual_seed(0)
    save_file(ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=2).state_dict(), tmp_path / "esrgan.safetensors")
    model = hires.upscaler(tmp_path / "esrgan.safetensors")
    whole, parts = tiled(model, pixels((192, 128)), tile=512), tiled(model, pixels((192, 128)), tile=96, overlap=48)
    assert whole.shape[-2:] == parts.shape[-2:] == (128 * model.scale, 192 * model.scale)
    assert (whole - parts).abs().max() <= 1e-3


@pytest.mark.parametrize(("size", "number"), [((192, 192), 1), ((192, 192), 7), ((192, 128), 7), ((200, 136), 3)])
def test_dat_which_looks_at_the_whole(size: tuple[int, int], number: int) -> None:
    """Everywhere, borders of tiles and sides that its windows do not divide included."""
    model = hires.upscaler(tools.file("upscaler", "nano DAT x2"))
    whole, parts = tiled(model, pixels(size, number), tile=512), tiled(model, pixels(size, number), tile=128, overlap=32)
    assert (whole - parts).abs().max() <= 1e-3
    assert not any(layer._forward_hooks for layer in model.model.modules()), "a layer kept the tiles' sums"
