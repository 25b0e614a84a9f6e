"""Measure what a large LoRA costs beside a small one: `python tests/bench/large_lora.py`.

Two files for nano change the same layers, one of a fraction of a megabyte and one of 220 MB. The
handler of the endpoint `/generate` makes pictures with the one and with the other in turn. Prints
the first picture with each, the median of the others, and the ratio of the two medians, by the
clock and in seconds of processor time, which other work on the machine hardly changes.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.bench.report import save_report  # noqa: E402

ROUNDS = int(os.environ.get("ROUNDS", "9"))
LARGE_BYTES = 220e6
"""Bytes of the large file."""
SMALL_RANK = 2


def write_lora(file: Path, rank: int) -> int:
    """Write a float16 LoRA of this rank on every linear layer and convolution of nano's U-Net.

    Returns its size in bytes.
    """
    import torch

    from core.lora import apply as lora
    from core.models import bases
    from core.system.tensor_files import write_tensors

    rng, tensors = torch.Generator().manual_seed(1), {}
    for name, layer in lora._find_layers(bases.load_model("nano").unet).items():
        if layer.weight.ndim == 1:  # a norm
            continue
        out, width, *kernel = layer.weight.shape
        scale = 0.01 / rank**0.5
        tensors[f"lora_unet_{name}.lora_up.weight"] = (
            torch.randn(out, rank, *[1] * len(kernel), generator=rng) * scale
        ).half()
        tensors[f"lora_unet_{name}.lora_down.weight"] = (
            torch.randn(rank, width, *kernel, generator=rng) * width**-0.5
        ).half()
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(float(rank))
    write_tensors(file, tensors)
    return file.stat().st_size


def time_picture(lora: Path, seed: int) -> tuple[float, float]:
    """Return the wall-clock and processor seconds of one picture.

    The call is the endpoint's own handler, with its checks, job, infotext and file.
    """
    from tabs.api.generate import generate

    begin = time.perf_counter(), time.process_time()
    *_, (files, _) = generate("1girl, blue hair, smile", seed=seed, lora_file=str(lora), lora_strength=0.5)
    assert len(files) == 1
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measure(work: Path) -> Iterator[tuple[str, float]]:
    one, small = write_lora(work / "one.safetensors", 1), write_lora(work / "small.safetensors", SMALL_RANK)
    rank = round((LARGE_BYTES - one) / (small - one) * (SMALL_RANK - 1))
    large = write_lora(work / "large.safetensors", rank)
    yield from {"small_mb": small / 1e6, "large_mb": large / 1e6, "large_rank": float(rank)}.items()
    files = {name: work / f"{name}.safetensors" for name in ("small", "large")}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for seed in range(ROUNDS + 1):
        for name in (*files, *reversed(files)):  # neither is always the first
            took[name].append(time_picture(files[name], seed))
    for number, kind in enumerate(("seconds", "processor_seconds")):
        later = {name: statistics.median(each[number] for each in pairs[2:]) for name, pairs in took.items()}
        for name, pairs in took.items():
            yield from {f"{name}_first_{kind}": pairs[0][number], f"{name}_{kind}": later[name]}.items()
        yield f"ratio_of_{kind}", later["large"] / later["small"]


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        os.environ["GRADIO_TEMP_DIR"] = work  # where pictures are written
        save_report("large_lora", {name: round(value, 3) for name, value in measure(Path(work))})


if __name__ == "__main__":
    main()
