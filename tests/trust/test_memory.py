"""Memory that runs out in a real layer: once, and the job ends all the same; again, and one sentence names the setting. Nothing stays behind."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from core import details, gpu, hires, models, together, tools
from core.detect import Found
from core.events import Failed, Picture
from core.generate import SPARED
from core.train import runs
from core.types import Cell, Detail, Hires, LoraUse, Request
from tests.model import anew, fingerprint
from tests.train.parts import SMALL, assert_same, dataset, followed, losses, prepared

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
UPSCALER = "nano DAT x2"
LARGER = Hires(upscaler=UPSCALER, factor=1.5, steps=1)
REQUEST = Request(model="nano", prompt="1girl, smile", negative="", width=64, height=64, steps=2, cfg=5.0, sampler="Euler a", seed=7)
WORN = replace(REQUEST, prompt="1girl <lora:nano-airbrush:2>", loras=(LoraUse(path=str(EXAMPLE), strength=2.0),))


def place(name: str) -> Any:
    """The layer that a stage's memory is for."""
    if name == "upscaler":
        return type(hires.upscaler(tools.file("upscaler", UPSCALER)).model)  # whichever is opened: it is put away meanwhile
    return models.load("nano").unet if name == "U-Net" else models.load("nano").vae.decoder


@contextmanager
def full(where: Any, times: int) -> Iterator[None]:
    """Memory runs out in the layer's next calls."""
    own, left = where.forward, [times]

    def forward(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            kept = torch.zeros(2**20)  # as a pass that breaks off has something in its hands
            raise torch.OutOfMemoryError(f"CUDA out of memory beside {kept.shape}.")
        return own(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, "forward", forward)
        anew()
        yield
    anew()


def held() -> int:
    """Bytes of all tensors that anything holds."""
    gc.collect()
    storages = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def made(*requests: Request) -> list[Picture]:
    """Their pictures, in their order."""
    events = list(gpu.run([Cell(label="", request=request) for request in requests]))
    assert not [event for event in events if isinstance(event, Failed)], events[-1]
    return sorted((event for event in events if isinstance(event, Picture)), key=lambda event: event.index)


PLACES = [
    ("U-Net", WORN, "width and height (64 x 64)"),
    ("VAE", replace(REQUEST, width=192), "width and height (192 x 64)"),
    ("upscaler", replace(REQUEST, hires=LARGER), "the factor of hires (1.5)"),
]


@pytest.mark.parametrize(("where", "asked", "setting"), PLACES, ids=[where for where, _, _ in PLACES])
def test_case_24_memory_runs_out_once_and_again(where: str, asked: Request, setting: str) -> None:
    """Once costs one more attempt, whose pictures say so; again is a sentence with the setting. Then everything is as it was."""
    many = [replace(asked, seed=seed) for seed in (7, 8)]
    alone, before, layer, tiling = [made(one)[0] for one in many], fingerprint(), place(where), models.load("nano").vae.use_tiling
    baseline = held()
    with full(layer, times=1):
        spared = made(*many)
    assert [SPARED in event.notes for event in spared] == [True, True]
    for one, other in zip(spared, alone, strict=True):
        assert one.image.size == other.image.size
        apart = np.abs(np.asarray(one.image, int) - np.asarray(other.image, int))
        assert apart.mean() < (5 if where == "VAE" else 1e-9), "in one tile each they are what they are alone; nano's VAE in two sees less"
    del spared, one, other
    with full(layer, times=99):
        *_, last = gpu.run([Cell(label="", request=one) for one in many])
    assert last == Failed(message=f"This machine ran out of memory: lower {setting}. What was finished stays.")
    assert (fingerprint(), models.load("nano").vae.use_tiling) == (before, tiling)
    assert made(many[1])[0].image.tobytes() == alone[1].image.tobytes(), "the next job"
    assert held() <= 1.01 * baseline


@contextmanager
def room_for(pictures: int) -> Iterator[None]:
    """Memory runs out in the U-Net for more than so many guided pictures at once, and two are thought to fit."""
    unet, own = models.load("nano").unet, models.load("nano").unet.forward

    def forward(x: torch.Tensor, *given: Any, **named: Any) -> Any:
        if len(x) > 2 * pictures:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(x, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet, "forward", forward)
        patch.setattr(together, "batch_size", lambda width, height: 2)
        anew()
        yield
    anew()


def test_where_one_picture_fits_and_two_do_not_every_batch_of_a_job_is_made() -> None:
    many = [replace(REQUEST, seed=seed) for seed in range(6)]
    alone = [made(one)[0].image.tobytes() for one in many]
    with room_for(1):
        spared = made(*many)
    assert [event.image.tobytes() for event in spared] == alone
    assert all(SPARED in event.notes for event in spared)


def test_where_one_place_fits_and_two_do_not_all_details_of_a_picture_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is made alone has its faces made alone, too."""
    boxes = [Found((left, 8, left + 24, 40), 0.9) for left in (4, 36)]
    monkeypatch.setattr(details, "finder", lambda _: (SimpleNamespace(find=lambda *_: boxes), None))
    asked = replace(REQUEST, detail=Detail(detector="nano faces", steps=4))
    whole = made(asked)[0].image
    with room_for(1):
        (spared,) = made(asked)
    apart = np.abs(np.asarray(spared.image, int) - np.asarray(whole, int))
    assert apart.max() <= 1, "matrices of another size are added up in another order, which is a level here and there"


def test_a_trial_of_mixed_strengths_that_runs_out_costs_no_job() -> None:
    """Whether strengths share a pass is timed; where that does not fit, they do not."""
    many = [replace(WORN, seed=seed, loras=(replace(WORN.loras[0], strength=1.0 + seed),)) for seed in range(2)]
    alone = [made(one)[0].image.tobytes() for one in many]
    together._timed.clear()
    with room_for(1):
        both = made(*many)
    together._timed.clear()
    assert [event.image.tobytes() for event in both] == alone


@contextmanager
def full_backwards(first: int, times: int) -> Iterator[None]:
    """Memory runs out in the backward pass of the U-Net's last layer, from a pass on."""
    passed = [0]

    def look(*_: Any) -> None:
        passed[0] += 1
        if first <= passed[0] < first + times:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = models.load("nano").unet.conv_out.register_full_backward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def test_case_24_a_training_that_runs_out_of_memory_goes_on_or_says_what_to_lower(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", sizes=((64, 64),))
    straight, once, ever = (prepared(data, tmp_path / name, steps=4, save_every=2, **SMALL)[0] for name in ("a", "b", "c"))
    followed(straight)
    before = fingerprint()
    with full_backwards(first=3, times=1):
        followed(once)
    assert_same(straight, once)
    baseline = held()
    with full_backwards(first=3, times=99):
        *_, last = followed(ever)
    assert last == Failed(message="This machine ran out of memory: lower batch (2) or resolution (64). The last state stays.")
    assert (runs.status(ever).state, len(losses(ever))) == ("failed", 2)
    state = ever.state()
    assert state is not None
    assert state[0] == 2
    del state
    assert held() <= 1.01 * baseline
    assert fingerprint() == before
