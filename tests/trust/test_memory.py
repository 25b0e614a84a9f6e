"""Memory that runs out in a real layer.

Once, and the job still ends well; again, and one sentence names the setting. Nothing stays behind.
"""

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

from core.generate import batching
from core.generate.pipeline import LOW_MEMORY_NOTE
from core.generate.stages import details, upscaler
from core.generate.stages.detector import Detection
from core.models import bases, tools
from core.runtime import gpu
from core.schema.events import Failed, Picture
from core.schema.types import Cell, Detail, Hires, LoraUse, Request
from core.train import runs
from tests.model import fingerprint, restart_workers
from tests.train.parts import SMALL_SIZES, assert_same, make_dataset, prepare_run, read_losses, run_training

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
UPSCALER = "nano DAT x2"
LARGER_HIRES = Hires(upscaler=UPSCALER, factor=1.5, steps=1)
REQUEST = Request(
    model="nano",
    prompt="1girl, smile",
    negative="",
    width=64,
    height=64,
    steps=2,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
)
LORA_REQUEST = replace(
    REQUEST, prompt="1girl <lora:nano-airbrush:2>", loras=(LoraUse(path=str(EXAMPLE), strength=2.0),)
)


def find_layer(name: str) -> Any:
    """Return the layer, or for the upscaler its class, that a stage's memory is for."""
    if name == "upscaler":
        # the class, since the upscaler is unloaded meanwhile and another instance is loaded
        return type(upscaler.load_upscaler(tools.fetch_tool("upscaler", UPSCALER)).model)
    return bases.load_model("nano").unet if name == "U-Net" else bases.load_model("nano").vae.decoder


@contextmanager
def exhaust_memory(layer: Any, times: int) -> Iterator[None]:
    """Raise out of memory in the layer's next `times` calls."""
    own, left = layer.forward, [times]

    def forward(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            kept = torch.zeros(2**20)  # a pass that breaks off holds tensors, too
            raise torch.OutOfMemoryError(f"CUDA out of memory beside {kept.shape}.")
        return own(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "forward", forward)
        restart_workers()
        yield
    restart_workers()


def count_tensor_bytes() -> int:
    """Return the bytes of all tensors in this process."""
    gc.collect()
    storages = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def generate_pictures(*requests: Request) -> list[Picture]:
    """Generate the pictures of these requests and return them in the same order."""
    events = list(gpu.generate_on_gpu([Cell(label="", request=request) for request in requests]))
    assert not [event for event in events if isinstance(event, Failed)], events[-1]
    return sorted((event for event in events if isinstance(event, Picture)), key=lambda event: event.index)


MEMORY_CASES = [
    ("U-Net", LORA_REQUEST, "width and height (64 x 64)"),
    ("VAE", replace(REQUEST, width=192), "width and height (192 x 64)"),
    ("upscaler", replace(REQUEST, hires=LARGER_HIRES), "the hires factor (1.5)"),
]


@pytest.mark.parametrize(
    ("where", "asked", "setting"), MEMORY_CASES, ids=[where for where, _, _ in MEMORY_CASES]
)
def test_case_24_memory_runs_out_once_and_again(where: str, asked: Request, setting: str) -> None:
    """The first time costs one more attempt, and its pictures say so.

    The second time is a sentence that names the setting. Then everything is as it was before.
    """
    many = [replace(asked, seed=seed) for seed in (7, 8)]
    alone, before, layer, tiling = (
        [generate_pictures(one)[0] for one in many],
        fingerprint(),
        find_layer(where),
        bases.load_model("nano").vae.use_tiling,
    )
    baseline = count_tensor_bytes()
    with exhaust_memory(layer, times=1):
        spared = generate_pictures(*many)
    assert [LOW_MEMORY_NOTE in event.notes for event in spared] == [True, True]
    for one, other in zip(spared, alone, strict=True):
        assert one.image.size == other.image.size
        apart = np.abs(np.asarray(one.image, int) - np.asarray(other.image, int))
        assert apart.mean() < (5 if where == "VAE" else 1e-9), (
            "in one tile each they are what they are alone; nano's VAE in two sees less"
        )
    del spared, one, other
    with exhaust_memory(layer, times=99):
        *_, last = gpu.generate_on_gpu([Cell(label="", request=one) for one in many])
    assert last == Failed(
        message=f"This machine ran out of memory: lower {setting}. Finished images are kept."
    )
    assert (fingerprint(), bases.load_model("nano").vae.use_tiling) == (before, tiling)
    assert generate_pictures(many[1])[0].image.tobytes() == alone[1].image.tobytes(), "the next job"
    assert count_tensor_bytes() <= 1.01 * baseline


@contextmanager
def limit_batch(pictures: int) -> Iterator[None]:
    """Raise out of memory in the U-Net for more than `pictures` guided pictures at once.

    The batch size is set to two, as if two would fit.
    """
    unet, own = bases.load_model("nano").unet, bases.load_model("nano").unet.forward

    def forward(x: torch.Tensor, *given: Any, **named: Any) -> Any:
        if len(x) > 2 * pictures:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(x, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet, "forward", forward)
        patch.setattr(batching, "batch_size", lambda width, height: 2)
        restart_workers()
        yield
    restart_workers()


def test_where_one_picture_fits_and_two_do_not_every_batch_of_a_job_is_made() -> None:
    many = [replace(REQUEST, seed=seed) for seed in range(6)]
    alone = [generate_pictures(one)[0].image.tobytes() for one in many]
    with limit_batch(1):
        spared = generate_pictures(*many)
    assert [event.image.tobytes() for event in spared] == alone
    assert all(LOW_MEMORY_NOTE in event.notes for event in spared)


def test_where_one_place_fits_and_two_do_not_all_details_of_a_picture_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When a picture is generated alone, its faces are refined one at a time, too."""
    boxes = [Detection((left, 8, left + 24, 40), 0.9) for left in (4, 36)]
    monkeypatch.setattr(details, "find_detector", lambda _: (SimpleNamespace(find=lambda *_: boxes), None))
    asked = replace(REQUEST, detail=Detail(detector="nano faces", steps=4))
    whole = generate_pictures(asked)[0].image
    with limit_batch(1):
        (spared,) = generate_pictures(asked)
    apart = np.abs(np.asarray(spared.image, int) - np.asarray(whole, int))
    assert apart.max() <= 1, (
        "matrices of another size are added up in another order, which is a level here and there"
    )


def test_a_trial_of_mixed_strengths_that_runs_out_costs_no_job() -> None:
    """The timing of a shared pass may run out of memory; the strengths then share no pass."""
    many = [
        replace(LORA_REQUEST, seed=seed, loras=(replace(LORA_REQUEST.loras[0], strength=1.0 + seed),))
        for seed in range(2)
    ]
    alone = [generate_pictures(one)[0].image.tobytes() for one in many]
    batching._step_seconds.clear()
    with limit_batch(1):
        both = generate_pictures(*many)
    batching._step_seconds.clear()
    assert [event.image.tobytes() for event in both] == alone


@contextmanager
def exhaust_backward(first: int, times: int) -> Iterator[None]:
    """Raise out of memory in the backward pass of the U-Net's last layer.

    It fails `times` times, from pass `first` on, counted from 1.
    """
    passed = [0]

    def count_pass(*_: Any) -> None:
        passed[0] += 1
        if first <= passed[0] < first + times:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = bases.load_model("nano").unet.conv_out.register_full_backward_hook(count_pass)
    try:
        yield
    finally:
        hook.remove()


def test_case_24_a_training_that_runs_out_of_memory_goes_on_or_says_what_to_lower(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", sizes=((64, 64),))
    straight, once, ever = (
        prepare_run(data, tmp_path / name, steps=4, save_every=2, **SMALL_SIZES)[0]
        for name in ("a", "b", "c")
    )
    run_training(straight)
    before = fingerprint()
    with exhaust_backward(first=3, times=1):
        run_training(once)
    assert_same(straight, once)
    baseline = count_tensor_bytes()
    with exhaust_backward(first=3, times=99):
        *_, last = run_training(ever)
    assert last == Failed(
        message="This machine ran out of memory: lower batch (2) or resolution (64). The last state is kept."
    )
    assert (runs.read_status(ever).state, len(read_losses(ever))) == ("failed", 2)
    state = ever.load_state()
    assert state is not None
    assert state[0] == 2
    del state
    assert count_tensor_bytes() <= 1.01 * baseline
    assert fingerprint() == before
