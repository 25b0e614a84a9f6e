"""What this machine can do is looked at, not assumed."""

import pytest
import torch

from core import device


def test_without_a_gpu_everything_is_plain() -> None:
    machine = device.this_machine()
    if machine.device == "cuda":
        pytest.skip("this machine has a GPU")
    assert machine.dtype == torch.float32
    assert machine.line().startswith("This machine: CPU")
    assert machine.line().endswith("float32, sdpa attention")


def test_attention_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.faster_attention("cpu", torch.float32, tokens=64) in ("sdpa", "xformers")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert device.faster_attention("cpu", torch.float32) == "sdpa", "no xformers, no choice"


def test_xformers_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = pytest.importorskip("xformers.ops")
    monkeypatch.setattr(ops, "memory_efficient_attention", lambda q, k, v: q * 2)
    assert device.faster_attention("cpu", torch.float32) == "sdpa"


def test_the_line_names_what_saves_memory() -> None:
    small = device.Machine(device="cuda", name="RTX 2060", memory=6 * device.GIB, dtype=torch.float16, attention="xformers", tile_vae=True, offload=True)
    assert small.line() == "This machine: RTX 2060, 6 GB, float16, xformers attention, VAE in tiles, parts of the model take turns on the GPU"
