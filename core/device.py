"""What this machine can do: device, precision, attention, memory savings, and the line that says so."""

import importlib.util
import os
import statistics
import time
from dataclasses import dataclass
from functools import cache

import torch

GIB = 2**30
OFFLOAD_BELOW = 8 * GIB
"""GPU memory under which SDXL's parts take turns on the device (5.1 GB U-Net, 1.6 GB encoders in 16 bit)."""
TILE_BELOW = 12 * GIB
"""GPU memory under which the VAE works in tiles."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How models are loaded and run here."""

    device: str
    """`cuda` or `cpu`."""
    name: str
    memory: int
    """Bytes of the device."""
    dtype: torch.dtype
    attention: str
    """`sdpa` or `xformers`."""
    tile_vae: bool
    offload: bool

    def line(self) -> str:
        """One line for a person: 'This machine: ...'."""
        parts = [f"{self.name}, {self.memory / GIB:.0f} GB", str(self.dtype).removeprefix("torch."), f"{self.attention} attention"]
        parts += ["VAE in tiles"] if self.tile_vae else []
        parts += ["parts of the model take turns on the GPU"] if self.offload else []
        return "This machine: " + ", ".join(parts)


@cache
def this_machine() -> Machine:
    """Look once. On ZeroGPU the GPU is there only inside a call, so nothing is timed on it."""
    if not torch.cuda.is_available():
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(
            device="cpu", name=f"CPU, threads: {torch.get_num_threads()}", memory=memory, dtype=torch.float32, attention="sdpa", tile_vae=False, offload=False
        )
    if on_zero_gpu():
        return Machine(device="cuda", name="ZeroGPU", memory=48 * GIB, dtype=torch.bfloat16, attention="sdpa", tile_vae=False, offload=False)
    card = torch.cuda.get_device_properties(0)
    return Machine(
        device="cuda",
        name=card.name,
        memory=card.total_memory,
        dtype=torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16,
        attention=faster_attention("cuda", torch.float16),
        tile_vae=card.total_memory < TILE_BELOW,
        offload=card.total_memory < OFFLOAD_BELOW,
    )


def on_zero_gpu() -> bool:
    """Whether this is a Space whose GPU is lent by the call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t")


def on_space() -> bool:
    """Whether this is a hosted Space: strangers come, each with a login of their own, and the disk is nobody's."""
    return bool(os.environ.get("SPACE_ID"))


def faster_attention(device: str, dtype: torch.dtype, tokens: int = 4096) -> str:
    """`xformers` if it is installed, agrees with SDPA on a small call and is faster on a large one; else `sdpa`."""
    if importlib.util.find_spec("xformers") is None:
        return "sdpa"
    try:
        from xformers.ops import memory_efficient_attention as theirs
    except (ImportError, OSError):  # built for another torch or card
        return "sdpa"

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    q = torch.randn(1, 64, 10, 64, device=device, dtype=dtype)  # (batch, tokens, heads, width), SDXL's first level
    try:
        if (theirs(q, q, q) - ours(q, q, q)).abs().max() > 1e-2:
            return "sdpa"
    except (NotImplementedError, RuntimeError, ValueError):  # no kernel for this device
        return "sdpa"
    q = torch.randn(2, tokens, 10, 64, device=device, dtype=dtype)
    pace: dict[str, list[float]] = {"sdpa": [], "xformers": []}
    for _ in range(6):  # alternating; the first round warms up
        for name, attention in (("sdpa", ours), ("xformers", theirs)):
            begin = time.perf_counter()
            attention(q, q, q).sum().item()
            pace[name].append(time.perf_counter() - begin)
    return "xformers" if statistics.median(pace["xformers"][1:]) < statistics.median(pace["sdpa"][1:]) else "sdpa"
