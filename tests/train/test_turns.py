"""A card that does not hold a whole base: nothing meets a weight that lies elsewhere, and nothing that is trained is moved.

There is no card here. PyTorch's fake tensors stand for it: they hold no numbers, know on which device they would lie, and raise
where an operation meets two.
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

from core import gpu, models
from core.device import this_machine
from core.encode import encode
from core.prompts import Span
from core.train import turns
from core.train.adapter import Adapter, components_of
from core.train.caches import Posteriors, Texts
from core.train.estimate import _noise
from core.train.objective import Batch, errors, schedule
from core.train.settings import settings
from tests.train.parts import assert_same, dataset, followed, prepared


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """A machine with a small card. A module's move is a move in place there, as on a real card, which fake tensors cannot do themselves."""

    def to(module: torch.nn.Module, *where: Any, **how: Any) -> torch.nn.Module:
        device, dtype, _, _ = torch._C._nn._parse_to(*where, **how)
        for tensor in (*module.parameters(), *module.buffers()):
            if device is not None:
                assert not getattr(tensor, "is_trained", False), "what is trained was moved: a copy of it would be trained on"
                tensor.fake_device = torch.device(device.type, 0) if device.type == "cuda" else device
            assert dtype in (None, tensor.dtype)
        return module

    small = replace(this_machine(), device="cuda", offload=True)
    monkeypatch.setattr(turns, "this_machine", lambda: small)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr("core.encode._weighted", lambda states, _: states)  # it looks at numbers, of which there are none
    return FakeTensorMode(allow_non_fake_inputs=True)


def faked(pipeline: StableDiffusionXLPipeline, mode: FakeTensorMode) -> StableDiffusionXLPipeline:
    with FakeCopyMode(mode):
        parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in turns.PARTS}
    return StableDiffusionXLPipeline(**{**pipeline.components, **parts})


@pytest.mark.parametrize("text", [False, True], ids=["unet", "with text encoders"])
def test_a_training_on_a_card_that_holds_no_whole_base_finds_every_weight(text: bool, card: FakeTensorMode, tmp_path: Path) -> None:
    made = settings("nano-quick", models.find("nano"), {"text_encoders": text})

    def places(pipeline: StableDiffusionXLPipeline) -> dict[str, str]:
        return {name: next(getattr(pipeline, name).parameters()).device.type for name in turns.PARTS}

    def forward(adapter: Adapter, noise: Batch) -> None:  # backward, autograd's engine would ask the driver for a card
        told = Texts(adapter.pipeline, made.clip_skip, keep=not text)(["1girl, smile"])
        assert errors(adapter.pipeline.unet, schedule(adapter.pipeline), noise._replace(text=told), None).device.type == "cuda"

    def train() -> None:
        plain = faked(models.load("nano"), card)
        with card:
            plain.enable_model_cpu_offload(device="cuda")
            with turns.keep_on_device(plain, components_of(made)):
                there = {name: "cuda" if name in components_of(made) else "cpu" for name in turns.PARTS}
                assert places(plain) == there
                adapter = Adapter(plain, made)
                assert adapter.values.device.type == adapter.gradients.device.type == adapter.pipeline._execution_device.type == "cuda"
                for parameter in (each for group in adapter.parameters.values() for each in group):
                    parameter.is_trained = True
                Posteriors(adapter.pipeline, "nano", tmp_path)._made(Image.new("RGB", (64, 64)))
                assert places(plain) == there
                noise = _noise(plain, (1, 64, 64), adapter.values.device)
                forward(adapter, noise)
                with turns.take_turns(plain, adapter.trained), torch.no_grad():
                    encode(plain, [(Span("1girl, smile", 1.0),)])
                    errors(plain.unet, schedule(adapter.pipeline), noise, None)
                    plain.vae.decode(noise.clean)
                assert places(plain) == there
                forward(adapter, noise)
            assert places(plain) == dict.fromkeys(turns.PARTS, "cpu")
            plain.vae.encode(torch.zeros(1, 3, 64, 64).to(plain._execution_device))

    gpu.lane(train)


def test_parts_that_take_turns_train_the_same_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run, its previews among them, with the card's hooks and moves on this machine's own device: they change no number."""
    data = dataset(tmp_path / "data")
    plain, turned = (prepared(data, tmp_path / name, steps=4, preview_every=2, save_every=2)[0] for name in "ab")
    followed(plain)
    monkeypatch.setattr(turns, "this_machine", lambda: replace(this_machine(), offload=True))
    try:
        followed(turned)
    finally:
        gpu.lane(models.current().remove_all_hooks)
    assert_same(plain, turned)
    assert [line["file"] for line in turned.said() if line["kind"] == "preview"] == [line["file"] for line in plain.said() if line["kind"] == "preview"]
    assert not [line for line in turned.said() if line["kind"] == "note"]
    names = [file.name for file in plain.previews.iterdir()]
    assert names
    assert all((plain.previews / name).read_bytes() == (turned.previews / name).read_bytes() for name in names)


def test_a_base_that_did_not_find_room_makes_pictures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks are gone by then: without them its parts would stay on two devices until the studio is started anew."""
    pipeline = models.load("nano")
    hooks: list[str] = []
    monkeypatch.setattr(turns, "this_machine", lambda: replace(this_machine(), offload=True))
    monkeypatch.setattr(pipeline, "enable_model_cpu_offload", lambda **_: hooks.append("on"))

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline.unet, "to", refuse)
    with pytest.raises(torch.OutOfMemoryError), turns.keep_on_device(pipeline, ["unet"]):
        pass
    assert hooks == ["on"]
