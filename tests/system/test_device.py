"""The studio detects what this machine can do instead of assuming it."""

import pytest
import torch

from core.system import device


def test_without_a_gpu_everything_is_plain() -> None:
    machine = device.detect_machine()
    if machine.device == "cuda":
        pytest.skip("this machine has a GPU")
    assert machine.dtype == torch.float32
    assert machine.describe().startswith("Running on: CPU")
    assert machine.describe().endswith("float32, sdpa attention")


def test_attention_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.choose_attention("cpu", torch.float32, tokens=64) in ("sdpa", "xformers")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert device.choose_attention("cpu", torch.float32) == "sdpa", "no xformers, no choice"


def test_xformers_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = pytest.importorskip("xformers.ops")
    monkeypatch.setattr(ops, "memory_efficient_attention", lambda q, k, v: q * 2)
    assert device.choose_attention("cpu", torch.float32) == "sdpa"


def test_the_line_names_what_saves_memory() -> None:
    small = device.Machine(
        device="cuda",
        name="RTX 2060",
        memory=6 * device.GIB,
        dtype=torch.float16,
        attention="xformers",
        tile_vae=True,
        offload=True,
    )
    assert (
        small.describe() == "Running on: RTX 2060, 6 GB, float16, xformers attention, tiled VAE, CPU offload"
    )
