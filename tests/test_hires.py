"""Enlarging: files that are no upscalers, what hires makes of a request."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from spandrel.architectures.ESRGAN import ESRGAN

from core import apart, hires, hub, tools
from core.grain import grained, smoothed
from core.nano.draw import drawing
from core.nano.pictures import HELD_OUT, scene
from core.types import Grain, Hires, Request, UserError

REQUEST = Request(model="nano", prompt="1girl", negative="", width=128, height=96, steps=6, cfg=5.0, sampler="Euler a", seed=7, hires=Hires(factor=1.5))
NANO = tools.file("upscaler", "nano DAT x2")


def pixels(size: tuple[int, int] = (192, 128)) -> torch.Tensor:
    picture = drawing(scene(HELD_OUT, size)).picture
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def test_the_embedded_upscaler_beats_lanczos() -> None:
    """A short form of tests/bench/nano.py, whose bar is 3 dB."""
    gains = []
    for i in range(8):
        large = drawing(scene(HELD_OUT + i, (128, 128)), scale=2).picture
        small = large.reduce(2)

        def loudness(picture: Image.Image, truth: Image.Image = large) -> float:
            return float(10 * np.log10(255**2 / np.square(np.asarray(picture, float) - np.asarray(truth, float)).mean()))

        ours = hires.enlarged(small, Hires(upscaler="nano DAT x2"), large.size)
        gains.append(loudness(ours) - loudness(small.resize(large.size, Image.Resampling.LANCZOS)))
    assert np.mean(gains) >= 3, gains


def test_sizes_are_multiples_of_eight_and_any_factor_is_met() -> None:
    assert hires.size(REQUEST) == (192, 144)
    assert hires.size(replace(REQUEST, hires=Hires(factor=1.3))) == (168, 128)
    assert hires.size(replace(REQUEST, hires=None)) == (128, 96)
    small = drawing(scene(1, (128, 128))).picture
    for upscaler in ("nano DAT x2", "Lanczos"):
        assert hires.enlarged(small, Hires(upscaler=upscaler), (168, 168)).size == (168, 168)


def test_the_steps_said_are_the_steps_gone() -> None:
    (larger,) = hires.again([replace(REQUEST, hires=Hires(factor=1.5, steps=9))])
    assert (larger.width, larger.height, larger.steps) == (192, 144, 9)
    assert hires.again([REQUEST])[0].steps == REQUEST.steps


class Canary:
    """What a hostile file would run."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_files_that_are_no_upscalers_are_refused_unused(tmp_path: Path) -> None:
    weights = load_file(NANO)
    cases: dict[str, str] = {}

    def case(name: str, says: str) -> Path:
        cases[name] = says
        return tmp_path / name

    case("text.safetensors", "cannot be read").write_text("no weights")
    case("cut.safetensors", "cannot be read").write_bytes(NANO.read_bytes()[:5000])
    save_file({"weight": torch.ones(3)}, case("other.safetensors", "is no upscaler that is known"))
    save_file({name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, case("half.safetensors", "half-precision"))
    save_file(ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=1).state_dict(), case("one.safetensors", "enlarges 1 times"))
    endless = ESRGAN(in_nc=3, out_nc=3, num_filters=1, num_blocks=1, scale=4).state_dict()
    last = next(key for key in endless if key.startswith("model.1.sub.0."))
    save_file({**endless, last.replace("sub.0.", "sub.1000."): endless[last].clone()}, case("endless.safetensors", "no upscaler has more than 200 layers"))
    sly = last.replace("sub.0.", "sub.9_9_9_9.")
    save_file({**endless, sly: endless[last].clone()}, case("sly.safetensors", "no upscaler has more than 200 layers"))
    with case("code.pth", "cannot be read").open("wb") as out:
        pickle.dump({"params": Canary(tmp_path / "canary")}, out)
    torch.save({"params": Canary(tmp_path / "canary")}, case("zip.pth", "cannot be read"))
    for name, says in cases.items():
        with pytest.raises(UserError, match=says) as caught:
            hires.upscaler(tmp_path / name)
        assert name in str(caught.value)
    assert not (tmp_path / "canary").exists(), "the file's code ran"


@pytest.mark.soak
def test_one_that_a_visitor_brought_is_opened_where_it_may_take_what_it_likes(tmp_path: Path) -> None:
    """A file of half a megabyte whose shapes ask for sixty gigabytes."""
    shapes = {"body.0.weight": (4096, 3, 3, 3), "body.0.bias": (4096,), "body.1.weight": (1,), "body.198.weight": (48, 1, 3, 3), "body.198.bias": (48,)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"^upscaler: wide\.safetensors "):
        apart.tried(tmp_path / "wide.safetensors")
    assert apart.tried(NANO) is None


def test_a_file_that_was_swapped_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments/pretrained_models/DAT").mkdir(parents=True)
    (tmp_path / "experiments/pretrained_models/DAT/DAT_x2.pth").write_bytes(b"other bytes")
    monkeypatch.setattr(hub, "folder", lambda *_: tmp_path)
    with pytest.raises(UserError, match="is not the file that was pinned"):
        tools.of_table.__wrapped__(tools.find("upscaler", "DAT x2"))


def test_grain_is_as_loud_as_asked_and_the_same_for_a_seed() -> None:
    flat = Image.new("RGB", (96, 96), (128, 128, 128))
    for size in (1.0, 2.0, 4.0):
        noise = np.asarray(grained(flat, Grain(amount=0.05, size=size), 3), float) / 255
        assert abs(noise.std() - 0.05) < 0.005, size
        assert np.ptp(noise, axis=-1).max() == 0, "monochrome"
    assert grained(flat, Grain(), 3).tobytes() == grained(flat, Grain(), 3).tobytes() != grained(flat, Grain(), 4).tobytes()
    assert np.ptp(np.asarray(grained(flat, Grain(monochrome=False), 3), float), axis=-1).max() > 0


def test_smoothing_evens_texture_and_keeps_edges() -> None:
    rng = np.random.default_rng(0)
    step = np.where(np.arange(64) < 32, 60, 200)[None, :, None] * np.ones((64, 1, 3))
    rough = Image.fromarray((step + rng.normal(0, 4, (64, 64, 3))).clip(0, 255).astype(np.uint8))
    smooth = np.asarray(smoothed(rough, 1.0), float)
    assert smooth[:, :24].std() < 0.4 * np.asarray(rough, float)[:, :24].std()
    assert smooth[:, 36].mean() - smooth[:, 27].mean() > 120, "the edge stays"
    assert np.array_equal(np.asarray(smoothed(rough, 0.0)), np.asarray(rough))
