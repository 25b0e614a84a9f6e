"""A GPU that does not hold a whole base model.

No operation meets a weight on another device, and nothing that is trained is moved. There is no GPU
here: PyTorch's fake tensors stand for it. They hold no numbers, know on which device they would
be, and raise where an operation meets two devices.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from core.models import bases
from core.prompts.conditioning import encode_texts
from core.prompts.grammar import Span
from core.runtime import torch_thread
from core.system.device import detect_machine
from core.train.estimate import _make_noise_batch
from core.train.trainer import turns
from core.train.trainer.adapter import Adapter, get_trained_components
from core.train.trainer.latent_cache import CaptionEncoder, LatentCache
from core.train.trainer.loss import Batch, compute_losses, make_noise_scheduler
from core.train.trainer.settings import resolve_settings
from tests.train.parts import assert_same, make_dataset, prepare_run, run_training


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Pretend that this machine has a small GPU, and return a mode for fake tensors.

    `Module.to` moves in place, as on a real GPU; fake tensors cannot do that themselves.
    """

    def to(module: torch.nn.Module, *where: Any, **how: Any) -> torch.nn.Module:
        device, dtype, _, _ = torch._C._nn._parse_to(*where, **how)
        for tensor in (*module.parameters(), *module.buffers()):
            if device is not None:
                assert not getattr(tensor, "is_trained", False), (
                    "what is trained was moved: a copy of it would be trained on"
                )
                tensor.fake_device = torch.device(device.type, 0) if device.type == "cuda" else device
            assert dtype in (None, tensor.dtype)
        return module

    small = replace(detect_machine(), device="cuda", offload=True)
    monkeypatch.setattr(turns, "detect_machine", lambda: small)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    # it looks at numbers, and fake tensors have none
    monkeypatch.setattr("core.prompts.conditioning._apply_prompt_weights", lambda states, _: states)
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_pipeline(pipeline: StableDiffusionXLPipeline, mode: FakeTensorMode) -> StableDiffusionXLPipeline:
    with FakeCopyMode(mode):
        parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in turns.BASE_COMPONENTS}
    return StableDiffusionXLPipeline(**{**pipeline.components, **parts})


@pytest.mark.parametrize("text", [False, True], ids=["unet", "with text encoders"])
def test_a_training_on_a_card_that_holds_no_whole_base_finds_every_weight(
    text: bool, small_gpu: FakeTensorMode, tmp_path: Path
) -> None:
    made = resolve_settings("nano-quick", bases.find_model("nano"), {"text_encoders": text})

    def find_devices(pipeline: StableDiffusionXLPipeline) -> dict[str, str]:
        return {
            name: next(getattr(pipeline, name).parameters()).device.type for name in turns.BASE_COMPONENTS
        }

    # no backward pass: autograd's engine would ask the driver for a GPU
    def forward(adapter: Adapter, noise: Batch) -> None:
        told = CaptionEncoder(adapter.pipeline, made.clip_skip, cached=not text)(["1girl, smile"])
        assert (
            compute_losses(
                adapter.pipeline.unet, make_noise_scheduler(adapter.pipeline), noise._replace(text=told), None
            ).device.type
            == "cuda"
        )

    def train() -> None:
        plain = fake_pipeline(bases.load_model("nano"), small_gpu)
        with small_gpu:
            plain.enable_model_cpu_offload(device="cuda")
            with turns.keep_on_device(plain, get_trained_components(made)):
                there = {
                    name: "cuda" if name in get_trained_components(made) else "cpu"
                    for name in turns.BASE_COMPONENTS
                }
                assert find_devices(plain) == there
                adapter = Adapter(plain, made)
                assert (
                    adapter.values.device.type
                    == adapter.gradients.device.type
                    == adapter.pipeline._execution_device.type
                    == "cuda"
                )
                for parameter in (each for group in adapter.parameters.values() for each in group):
                    parameter.is_trained = True
                LatentCache(adapter.pipeline, "nano", tmp_path)._encode_picture(Image.new("RGB", (64, 64)))
                assert find_devices(plain) == there
                noise = _make_noise_batch(plain, (1, 64, 64), adapter.values.device)
                forward(adapter, noise)
                with turns.enable_cpu_offload(plain, adapter.components), torch.no_grad():
                    encode_texts(plain, [(Span("1girl, smile", 1.0),)])
                    compute_losses(plain.unet, make_noise_scheduler(adapter.pipeline), noise, None)
                    plain.vae.decode(noise.latents)
                assert find_devices(plain) == there
                forward(adapter, noise)
            assert find_devices(plain) == dict.fromkeys(turns.BASE_COMPONENTS, "cpu")
            plain.vae.encode(torch.zeros(1, 3, 64, 64).to(plain._execution_device))

    torch_thread.run_on_torch_thread(train)


def test_parts_that_take_turns_train_the_same_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU offload changes no number of a run, previews included.

    The GPU's hooks and moves are made on this machine's own device.
    """
    data = make_dataset(tmp_path / "data")
    plain, turned = (
        prepare_run(data, tmp_path / name, steps=4, preview_every=2, save_every=2)[0] for name in "ab"
    )
    run_training(plain)
    monkeypatch.setattr(turns, "detect_machine", lambda: replace(detect_machine(), offload=True))
    try:
        run_training(turned)
    finally:
        torch_thread.run_on_torch_thread(bases.get_current_pipeline().remove_all_hooks)
    assert_same(plain, turned)
    assert [line["file"] for line in turned.read_events() if line["kind"] == "preview"] == [
        line["file"] for line in plain.read_events() if line["kind"] == "preview"
    ]
    assert not [line for line in turned.read_events() if line["kind"] == "note"]
    names = [file.name for file in plain.previews.iterdir()]
    assert names
    assert all(
        (plain.previews / name).read_bytes() == (turned.previews / name).read_bytes() for name in names
    )


def test_a_base_that_did_not_find_room_makes_pictures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offload hooks come back when a base model finds no room.

    Without them its parts would stay on two devices until the studio is restarted.
    """
    pipeline = bases.load_model("nano")
    hooks: list[str] = []
    monkeypatch.setattr(turns, "detect_machine", lambda: replace(detect_machine(), offload=True))
    monkeypatch.setattr(pipeline, "enable_model_cpu_offload", lambda **_: hooks.append("on"))

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline.unet, "to", refuse)
    with pytest.raises(torch.OutOfMemoryError), turns.keep_on_device(pipeline, ["unet"]):
        pass
    assert hooks == ["on"]
