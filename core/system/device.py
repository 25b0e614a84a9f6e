"""Detect what this machine can do: device, precision, attention and memory savings."""

import importlib.util
import os
import statistics
import time
from dataclasses import dataclass
from functools import cache

import torch

GIB = 2**30
OFFLOAD_BELOW = 8 * GIB
"""Bytes of GPU memory below which SDXL's parts take turns on the device.

In 16 bit the U-Net has 5.1 GB and the encoders have 1.6 GB.
"""
VAE_TILING_BELOW = 12 * GIB
"""Bytes of GPU memory below which the VAE works in tiles."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How models are loaded and run here."""

    device: str
    """`cuda` or `cpu`."""
    name: str
    memory: int
    """Bytes of the device's memory."""
    dtype: torch.dtype
    attention: str
    """`sdpa` or `xformers`."""
    tile_vae: bool
    offload: bool

    def describe(self) -> str:
        """Return one line for a person: 'Running on: ...'."""
        parts = [
            f"{self.name}, {self.memory / GIB:.0f} GB",
            str(self.dtype).removeprefix("torch."),
            f"{self.attention} attention",
        ]
        parts += ["tiled VAE"] if self.tile_vae else []
        parts += ["CPU offload"] if self.offload else []
        return "Running on: " + ", ".join(parts)


@cache
def detect_machine() -> Machine:
    """Detect the machine once and cache the result.

    On ZeroGPU the GPU is only there inside a call, so nothing is timed on it.
    """
    if not torch.cuda.is_available():
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(
            device="cpu",
            name=f"CPU, threads: {torch.get_num_threads()}",
            memory=memory,
            dtype=torch.float32,
            attention="sdpa",
            tile_vae=False,
            offload=False,
        )
    if is_zerogpu():
        return Machine(
            device="cuda",
            name="ZeroGPU",
            memory=48 * GIB,
            dtype=torch.bfloat16,
            attention="sdpa",
            tile_vae=False,
            offload=False,
        )
    card = torch.cuda.get_device_properties(0)
    return Machine(
        device="cuda",
        name=card.name,
        memory=card.total_memory,
        dtype=torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16,
        attention=choose_attention("cuda", torch.float16),
        tile_vae=card.total_memory < VAE_TILING_BELOW,
        offload=card.total_memory < OFFLOAD_BELOW,
    )


def is_zerogpu() -> bool:
    """Whether this is a ZeroGPU Space, whose GPU is lent for each call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t")


def is_space() -> bool:
    """Whether this is a hosted Space.

    There visitors are strangers, each with a login of their own, and the disk belongs to none of
    them.
    """
    return bool(os.environ.get("SPACE_ID"))


def choose_attention(device: str, dtype: torch.dtype, tokens: int = 4096) -> str:
    """Choose the faster attention on this device, `xformers` or `sdpa`.

    `xformers` is chosen if it is installed, agrees with SDPA on a small call and is faster on a
    large one of `tokens` tokens.
    """
    if importlib.util.find_spec("xformers") is None:
        return "sdpa"
    try:
        from xformers.ops import memory_efficient_attention as theirs
    except (ImportError, OSError):  # built for another torch or card
        return "sdpa"

    def run_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    # (batch, tokens, heads, width) as in SDXL's first level.
    q = torch.randn(1, 64, 10, 64, device=device, dtype=dtype)
    try:
        if (theirs(q, q, q) - run_sdpa(q, q, q)).abs().max() > 1e-2:
            return "sdpa"
    except (NotImplementedError, RuntimeError, ValueError):  # no kernel for this device
        return "sdpa"
    q = torch.randn(2, tokens, 10, 64, device=device, dtype=dtype)
    pace: dict[str, list[float]] = {"sdpa": [], "xformers": []}
    for _ in range(6):  # alternating; the first round warms up
        for name, attention in (("sdpa", run_sdpa), ("xformers", theirs)):
            begin = time.perf_counter()
            attention(q, q, q).sum().item()
            pace[name].append(time.perf_counter() - begin)
    return (
        "xformers"
        if statistics.median(pace["xformers"][1:]) < statistics.median(pace["sdpa"][1:])
        else "sdpa"
    )
