"""Enlarging: files that are not upscalers, and what hires makes of a request."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from spandrel.architectures.ESRGAN import ESRGAN

from core.generate.stages import hires, sandbox
from core.generate.stages import upscaler as upscaling
from core.generate.stages.grain import add_grain, smooth_texture
from core.hub import client as hub
from core.models import tools
from core.nano.draw import draw_with_face
from core.nano.pictures import FIRST_HELD_OUT, make_scene
from core.schema.errors import UserError
from core.schema.types import Grain, Hires, LoraUse, Request

REQUEST = Request(
    model="nano",
    prompt="1girl",
    negative="",
    width=128,
    height=96,
    steps=6,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
    hires=Hires(factor=1.5),
)
NANO_UPSCALER = tools.fetch_tool("upscaler", "nano DAT x2")


def draw_pixels(size: tuple[int, int] = (192, 128)) -> torch.Tensor:
    picture = draw_with_face(make_scene(FIRST_HELD_OUT, size)).picture
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def test_the_embedded_upscaler_beats_lanczos() -> None:
    """A short form of tests/bench/recipe.py, whose bar is 3 dB."""
    gains = []
    for i in range(8):
        large = draw_with_face(make_scene(FIRST_HELD_OUT + i, (128, 128)), scale=2).picture
        small = large.reduce(2)

        def psnr(picture: Image.Image, truth: Image.Image = large) -> float:
            return float(
                10
                * np.log10(255**2 / np.square(np.asarray(picture, float) - np.asarray(truth, float)).mean())
            )

        ours = hires.enlarge_picture(small, Hires(upscaler="nano DAT x2"), large.size)
        gains.append(psnr(ours) - psnr(small.resize(large.size, Image.Resampling.LANCZOS)))
    assert np.mean(gains) >= 3, gains


def test_sizes_are_multiples_of_eight_and_any_factor_is_met() -> None:
    assert hires.output_size(REQUEST) == (192, 144)
    assert hires.output_size(replace(REQUEST, hires=Hires(factor=1.3))) == (168, 128)
    assert hires.output_size(replace(REQUEST, hires=None)) == (128, 96)
    small = draw_with_face(make_scene(1, (128, 128))).picture
    for upscaler in ("nano DAT x2", "Lanczos"):
        assert hires.enlarge_picture(small, Hires(upscaler=upscaler), (168, 168)).size == (168, 168)


def test_an_upscaler_of_two_is_used_twice_for_more() -> None:
    """Lanczos from the first would give a softer picture than A1111's."""
    small = draw_with_face(make_scene(1, (48, 40))).picture
    asked = Hires(upscaler="nano DAT x2")
    twice = hires.enlarge_picture(hires.enlarge_picture(small, asked, (96, 80)), asked, (192, 160))
    assert hires.enlarge_picture(small, asked, (192, 160)).tobytes() == twice.tobytes()


def test_a_second_pass_has_what_is_its_own_and_else_the_first_passs() -> None:
    own = Hires(prompt="1boy", negative="hat", sampler="DPM++ 2M", schedule="Karras", cfg=1.0)
    (larger,) = hires.build_hires_requests([replace(REQUEST, hires=own)])
    said = (larger.prompt, larger.negative, larger.sampler, larger.schedule, larger.cfg)
    assert said == ("1boy", "hat", "DPM++ 2M", "Karras", 1.0)
    (larger,) = hires.build_hires_requests([REQUEST])
    assert (larger.prompt, larger.sampler, larger.cfg) == ("1girl", "Euler a", 5.0)


def test_both_passes_have_the_same_loras_in_the_same_order() -> None:
    """A pass without one has it at strength 0: files are put onto the model once for both."""
    a, b, c = (LoraUse(path=name, strength=1.5) for name in "abc")
    both = replace(REQUEST, loras=(a, b), hires_loras=(c, replace(b, strength=0.5)))
    first, second = (
        [(use.path, use.strength) for use in uses] for uses in (both.lora_uses, both.hires_lora_uses)
    )
    assert first == [("a", 1.5), ("b", 1.5), ("c", 0.0), ("b", 0.0)]
    assert second == [("a", 0.0), ("b", 0.0), ("c", 1.5), ("b", 0.5)]
    plain = replace(both, hires_loras=None)
    assert plain.lora_uses == plain.hires_lora_uses == (a, b)


def test_the_steps_said_are_the_steps_gone() -> None:
    (larger,) = hires.build_hires_requests([replace(REQUEST, hires=Hires(factor=1.5, steps=9))])
    assert (larger.width, larger.height, larger.steps) == (192, 144, 9)
    assert hires.build_hires_requests([REQUEST])[0].steps == REQUEST.steps


class PickleCanary:
    """An object that leaves a file behind when a loader trusts its pickle."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_files_that_are_no_upscalers_are_refused_unused(tmp_path: Path) -> None:
    weights = load_file(NANO_UPSCALER)
    cases: dict[str, str] = {}

    def add_case(name: str, says: str) -> Path:
        cases[name] = says
        return tmp_path / name

    add_case("text.safetensors", "cannot be read").write_text("no weights")
    add_case("cut.safetensors", "cannot be read").write_bytes(NANO_UPSCALER.read_bytes()[:5000])
    save_file({"weight": torch.ones(3)}, add_case("other.safetensors", "is not an upscaler that is known"))
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in weights.items()},
        add_case("half.safetensors", "half-precision"),
    )
    save_file(
        ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=1).state_dict(),
        add_case("one.safetensors", "enlarges 1 times"),
    )
    endless = ESRGAN(in_nc=3, out_nc=3, num_filters=1, num_blocks=1, scale=4).state_dict()
    last = next(key for key in endless if key.startswith("model.1.sub.0."))
    save_file(
        {**endless, last.replace("sub.0.", "sub.1000."): endless[last].clone()},
        add_case("endless.safetensors", "no upscaler has more than 200 layers"),
    )
    sly = last.replace("sub.0.", "sub.9_9_9_9.")
    save_file(
        {**endless, sly: endless[last].clone()},
        add_case("sly.safetensors", "no upscaler has more than 200 layers"),
    )
    with add_case("code.pth", "cannot be read").open("wb") as out:
        pickle.dump({"params": PickleCanary(tmp_path / "canary")}, out)
    torch.save({"params": PickleCanary(tmp_path / "canary")}, add_case("zip.pth", "cannot be read"))
    for name, says in cases.items():
        with pytest.raises(UserError, match=says) as caught:
            upscaling.load_upscaler(tmp_path / name)
        assert name in str(caught.value)
    assert not (tmp_path / "canary").exists(), "the file's code ran"


@pytest.mark.soak
def test_one_that_a_visitor_brought_is_opened_where_it_may_take_what_it_likes(tmp_path: Path) -> None:
    """The file has half a megabyte, and its shapes would take sixty gigabytes."""
    shapes = {
        "body.0.weight": (4096, 3, 3, 3),
        "body.0.bias": (4096,),
        "body.1.weight": (1,),
        "body.198.weight": (48, 1, 3, 3),
        "body.198.bias": (48,),
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"^upscaler: wide\.safetensors "):
        sandbox.check_upscaler(tmp_path / "wide.safetensors")
    assert sandbox.check_upscaler(NANO_UPSCALER) is None


def test_a_file_that_was_swapped_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments/pretrained_models/DAT").mkdir(parents=True)
    (tmp_path / "experiments/pretrained_models/DAT/DAT_x2.pth").write_bytes(b"other bytes")
    monkeypatch.setattr(hub, "fetch_folder", lambda *_: tmp_path)
    with pytest.raises(UserError, match="does not match its pinned checksum"):
        tools.fetch_pinned_tool.__wrapped__(tools.find_tool("upscaler", "DAT x2"))


def test_grain_is_as_loud_as_asked_and_the_same_for_a_seed() -> None:
    flat = Image.new("RGB", (96, 96), (128, 128, 128))
    for size in (1.0, 2.0, 4.0):
        noise = np.asarray(add_grain(flat, Grain(amount=0.05, size=size), 3), float) / 255
        assert abs(noise.std() - 0.05) < 0.005, size
        assert np.ptp(noise, axis=-1).max() == 0, "monochrome"
    assert (
        add_grain(flat, Grain(), 3).tobytes()
        == add_grain(flat, Grain(), 3).tobytes()
        != add_grain(flat, Grain(), 4).tobytes()
    )
    assert np.ptp(np.asarray(add_grain(flat, Grain(monochrome=False), 3), float), axis=-1).max() > 0


def test_smoothing_evens_texture_and_keeps_edges() -> None:
    rng = np.random.default_rng(0)
    step = np.where(np.arange(64) < 32, 60, 200)[None, :, None] * np.ones((64, 1, 3))
    rough = Image.fromarray((step + rng.normal(0, 4, (64, 64, 3))).clip(0, 255).astype(np.uint8))
    smooth = np.asarray(smooth_texture(rough, 1.0), float)
    assert smooth[:, :24].std() < 0.4 * np.asarray(rough, float)[:, :24].std()
    assert smooth[:, 36].mean() - smooth[:, 27].mean() > 120, "the edge stays"
    assert np.array_equal(np.asarray(smooth_texture(rough, 0.0)), np.asarray(rough))
