"""Compare a transfer study with a plain diffusers loop: `python tests/bench/transfer.py`.

One process, alternating, median of 3. 4 LoRAs x 3 bases (nano, nano-cel, nano-paint) x 2 strengths
x 4 seeds of one prompt, and the base's own pictures. The loop is what people write: for each LoRA
and base a pipeline from its files, `load_lora_weights`, and for each strength `set_adapters` and
one call a seed; for the base's own pictures a call without. Ours is the whole study, measuring
included. Both start from files, without cached cells. Prints seconds, times as fast, the largest
difference of the same pictures (0 to 1), models loaded, and in processes of their own the peak
memory of a study of three bases against that of one.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ["SWEETSPOT_CELLS"] = CELLS = mkdtemp(prefix="sweetspot-bench-")

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from core.models import bases as base_models  # noqa: E402
from core.runtime import gpu, torch_thread  # noqa: E402
from core.schema.records import read_form  # noqa: E402
from core.transfer.plan import TransferForm, plan_transfer  # noqa: E402
from core.transfer.study import TransferStudy  # noqa: E402
from tests.euler_ancestral import make_euler_ancestral  # noqa: E402

ROUNDS = 3
MIN_SPEEDUP = 2.0
BASES = ("nano", "nano-cel", "nano-paint")
STRENGTHS = (0.65, 1.0)
SEEDS = (1, 2, 3, 4)
PROMPT, NEGATIVE = (
    "1girl, blue hair, short hair, red eyes, smile, upper body, white background",
    "low quality",
)
EXAMPLE = ROOT / "presets" / "loras" / "nano-airbrush.safetensors"
Pictures = dict[tuple[str, str, float, int], np.ndarray]


def write_loras(folder: Path) -> list[Path]:
    """Write four LoRAs that differ: the example with scaled matrices."""
    files = []
    for i in range(4):
        tensors = {
            key: value * (1 - 0.1 * i) if "up" in key else value for key, value in load_file(EXAMPLE).items()
        }
        files.append(folder / f"lora{i}.safetensors")
        save_file(tensors, files[-1])
    return files


def run_loop(files: list[Path]) -> Pictures:
    """Make all pictures with plain diffusers."""
    found: Pictures = {}
    for base in BASES:
        for file in [None, *files]:
            weights = ROOT / "core" / "nano" / "weights"
            parts = {} if base == "nano" else {"unet": UNet2DConditionModel.from_pretrained(weights / base)}
            pipeline = StableDiffusionXLPipeline.from_pretrained(weights / "nano", **parts)
            pipeline.set_progress_bar_config(disable=True)
            pipeline.scheduler = make_euler_ancestral(pipeline.scheduler.config)
            if file:
                pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="it")
            for strength in STRENGTHS if file else (0.0,):
                if file:
                    pipeline.set_adapters(["it"], [strength])
                for seed in SEEDS:
                    made = pipeline(
                        PROMPT, negative_prompt=NEGATIVE, width=128, height=128, num_inference_steps=25,
                        guidance_scale=5.0, generator=torch.Generator().manual_seed(seed), output_type="np",
                    )  # fmt: skip
                    found[base, file.stem if file else "", strength, seed] = np.asarray(made.images[0])
    return found


def run_study(files: list[Path], bases: tuple[str, ...] = BASES) -> TransferStudy:
    """Run our study without cached cells."""
    shutil.rmtree(CELLS, ignore_errors=True)
    told = {
        "strengths": ", ".join(map(str, STRENGTHS)),
        "seeds": ", ".join(map(str, SEEDS)),
        "prompts": PROMPT,
    }
    made = TransferStudy(
        plan_transfer(
            read_form(
                TransferForm,
                {
                    "loras": [{"lora": str(file), "home": "nano"} for file in files],
                    "models": list(bases),
                    **told,
                },
            )
        )
    )
    for _ in made.run(gpu.generate_on_gpu):
        pass
    return made


def read_pictures(study: TransferStudy) -> Pictures:
    found: Pictures = {}
    for (name, model), pair in study.pairs.items():
        for (strength, (_, seed)), file in pair.sweep.pictures.items():
            found[model, name if strength else "", strength, seed] = (
                np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
            )
    return found


def measure_peak(bases: tuple[str, ...], folder: Path) -> int:
    """Return the peak memory in bytes of a process that runs a study of these bases."""
    command = [sys.executable, __file__, "--peak", ",".join(bases), str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        run_study(sorted(Path(sys.argv[3]).glob("*.safetensors")), tuple(sys.argv[2].split(",")))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    folder = Path(mkdtemp(prefix="sweetspot-bench-loras-"))
    files = write_loras(folder)
    theirs, ours, apart, made = [], [], 0.0, None
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        plain = torch_thread.run_on_torch_thread(run_loop, files)
        theirs.append(time.perf_counter() - begin)
        torch_thread.run_on_torch_thread(base_models.load_model, "nano-merge")  # none of the three is loaded
        begin = time.perf_counter()
        made = run_study(files)
        ours.append(time.perf_counter() - begin)
        apart = max(
            apart,
            max(
                float(np.abs(picture - plain[place]).max()) for place, picture in read_pictures(made).items()
            ),
        )
    assert made is not None
    memory = {"one base": measure_peak(BASES[:1], folder), "three bases": measure_peak(BASES, folder)}
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": f"{platform.machine()}, {os.cpu_count()} cores, threads {torch.get_num_threads()}",
        "pictures": len(BASES) * len(SEEDS) * (1 + len(files) * len(STRENGTHS)),
        "diffusers_seconds": [round(each, 1) for each in theirs],
        "study_seconds": [round(each, 1) for each in ours],
        "times_as_fast": round(ratio, 2),
        "least": MIN_SPEEDUP,
        "noise_floor": round(max(ours) / min(ours) - 1, 3),
        "largest_difference": round(apart, 4),
        "model_loads": made.model_loads,
        "peak_mb": {name: round(each / 1e6) for name, each in memory.items()},
    }
    print(json.dumps(report, indent=1))
    (ROOT / "tests" / "bench" / "results" / "transfer.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(folder)
    shutil.rmtree(CELLS, ignore_errors=True)
    if ratio < MIN_SPEEDUP or len(made.model_loads) != len(BASES):
        sys.exit("The bar was missed.")


if __name__ == "__main__":
    main()
