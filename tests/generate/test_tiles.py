"""Tiles against the whole: a network of neighbourhoods, and DAT, which sees the whole picture."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN

from core.generate.stages import upscaler
from core.generate.stages.upscaler import split_strips, upscale_tiled
from core.models import tools
from core.nano.draw import draw_with_face
from core.nano.pictures import FIRST_HELD_OUT, make_scene


def draw_pixels(size: tuple[int, int], number: int = 0) -> torch.Tensor:
    picture = draw_with_face(make_scene(FIRST_HELD_OUT + number, size)).picture
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(
    ("length", "tile", "overlap"),
    [(10, 16, 4), (100, 32, 8), (257, 256, 32), (1000, 256, 64), (1001, 512, 64), (1216, 512, 64)],
)
def test_strips_cover_a_side_once(length: int, tile: int, overlap: int) -> None:
    found = split_strips(length, tile, overlap)
    assert [kept for *_, begin, end in found for kept in range(begin, end)] == list(range(length))
    assert all(
        0 <= seen <= begin < end <= to <= length and to - seen <= tile for seen, to, begin, end in found
    )
    assert all(seen % (overlap // 2) == 0 for seen, *_ in found), (
        "windows would not fall on those of the whole"
    )
    assert all(to - seen >= overlap for (_, to, *_), (seen, *_) in pairwise(found))


def test_a_network_of_neighbourhoods(tmp_path: Path) -> None:
    """With an overlap that covers its reach, tiles are the whole."""
    torch.manual_seed(0)
    save_file(
        ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=2).state_dict(),
        tmp_path / "esrgan.safetensors",
    )
    model = upscaler.load_upscaler(tmp_path / "esrgan.safetensors")
    whole, parts = (
        upscale_tiled(model, draw_pixels((192, 128)), tile=512),
        upscale_tiled(model, draw_pixels((192, 128)), tile=96, overlap=48),
    )
    assert whole.shape[-2:] == parts.shape[-2:] == (128 * model.scale, 192 * model.scale)
    assert (whole - parts).abs().max() <= 1e-3


@pytest.mark.parametrize(
    ("size", "number"), [((192, 192), 1), ((192, 192), 7), ((192, 128), 7), ((200, 136), 3)]
)
def test_dat_which_looks_at_the_whole(size: tuple[int, int], number: int) -> None:
    """Everywhere, including borders of tiles and sides that its windows do not divide."""
    model = upscaler.load_upscaler(tools.fetch_tool("upscaler", "nano DAT x2"))
    whole, parts = (
        upscale_tiled(model, draw_pixels(size, number), tile=512),
        upscale_tiled(model, draw_pixels(size, number), tile=128, overlap=32),
    )
    assert (whole - parts).abs().max() <= 1e-3
    assert not any(layer._forward_hooks for layer in model.model.modules()), "a layer kept the tiles' sums"
