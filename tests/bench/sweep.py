"""Compare sweeps with diffusers' `set_adapters`: `python tests/bench/sweep.py`.

One process, alternating, median of 5. Grids of 8 strengths: 4 seeds x 2 prompts against a loop over
pictures and against the seeds of a prompt in one call; one seed, whose strengths share a pass,
against the loop. The LoRA changes attention, feed-forward and convolutions, as most do. Also the
milliseconds to change the strength against `fuse_lora` and `unfuse_lora`, and what a cell costs
when the grid grows from 8 to 128. Latents in both cases, no measuring; the largest difference is
over the latents' range, the noise floor is ours against ours again.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from diffusers import StableDiffusionXLPipeline  # noqa: E402
from peft import LoraConfig, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from core.generate import batching  # noqa: E402
from core.generate.stages.denoise import denoise  # noqa: E402
from core.lora import apply as lora  # noqa: E402
from core.lora.blocks import to_sai  # noqa: E402
from core.models import bases  # noqa: E402
from core.schema.types import LoraUse, Request  # noqa: E402
from core.system import paths  # noqa: E402
from tests.bench.report import save_report  # noqa: E402
from tests.euler_ancestral import make_euler_ancestral  # noqa: E402

ROUNDS = 5
STEPS = 8  # of a picture: ratios are those of 25 steps, but for the text
STRENGTHS = [0.25 * i for i in range(1, 9)]
TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
]
PROMPTS = ("1girl, blue hair, smile", "1girl, red hair, frown, beach")
REQUEST = Request(
    model="nano", prompt=PROMPTS[0], negative="low quality", width=128, height=128, steps=STEPS, cfg=5.0,
    sampler="Euler a", seed=0,
)  # fmt: skip

Latents = dict[tuple[float, str, int], torch.Tensor]


def build_reference(file: Path) -> StableDiffusionXLPipeline:
    """Return nano with a random LoRA by diffusers and PEFT, and write the LoRA to `file`."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_euler_ancestral(pipeline.scheduler.config)
    torch.manual_seed(0)
    pipeline.unet.add_adapter(LoraConfig(r=16, lora_alpha=8, target_modules=TARGETS), "it")
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    tensors: dict[str, torch.Tensor] = {}
    for key, value in get_peft_model_state_dict(pipeline.unet, adapter_name="it").items():
        module, part, _ = key.rsplit(".", 2)
        flat = f"lora_unet_{to_sai(module.replace('.', '_'))}"
        tensors |= {
            f"{flat}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight": value.contiguous(),
            f"{flat}.alpha": torch.tensor(8.0),
        }
    save_file(tensors, file)
    return pipeline


def sample_with_diffusers(
    pipeline: StableDiffusionXLPipeline, prompts: tuple[str, ...], seeds: range, is_batched: bool
) -> Latents:
    found: Latents = {}
    for strength in STRENGTHS:
        pipeline.unet.set_adapters("it", [strength])
        for prompt in prompts:
            for some in [list(seeds)] if is_batched else [[seed] for seed in seeds]:
                made: Any = pipeline(
                    prompt, negative_prompt=REQUEST.negative, width=128, height=128,
                    num_inference_steps=STEPS, guidance_scale=5.0, output_type="latent",
                    num_images_per_prompt=len(some),
                    generator=[torch.Generator().manual_seed(seed) for seed in some],
                ).images  # fmt: skip
                found |= {(strength, prompt, seed): each for seed, each in zip(some, made, strict=True)}
    return found


def sample_with_studio(file: Path, prompts: tuple[str, ...], seeds: range) -> Latents:
    """Denoise a grid as `core.generate.pipeline` does, without the decoding."""
    pipeline, found = bases.load_model("nano"), Latents()
    use = LoraUse(path=str(file))
    asked = [(strength, prompt, seed) for strength in STRENGTHS for prompt in prompts for seed in seeds]
    requests = [
        replace(REQUEST, prompt=prompt, seed=seed, loras=(replace(use, strength=strength),))
        for strength, prompt, seed in asked
    ]
    with lora.apply_loras(pipeline, [use]) as worn:
        for part in batching.group_into_batches(
            pipeline, requests, batching.is_mixed_faster(pipeline, requests, worn)
        ):
            some = [requests[i] for i in part]
            worn.set_strengths([request.loras for request in some])
            last = [moment.latents for moment in denoise(pipeline, some)][-1]
            found |= {asked[i]: each for i, each in zip(part, last, strict=True)}
    return found


def time_alternately(calls: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    took: dict[str, list[float]] = {name: [] for name in calls}
    last: dict[str, Any] = {}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            last[name] = call()
            took[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[1:]) for name, values in took.items()}, last


def max_difference(a: Latents, b: Latents) -> float:
    """Return the largest difference, in shares of the latents' range."""
    reach = max(float(each.max()) for each in b.values()) - min(float(each.min()) for each in b.values())
    return max(float((a[key] - b[key]).abs().max()) for key in b) / reach


def time_grids(pipeline: StableDiffusionXLPipeline, file: Path) -> dict[str, float]:
    many, one = range(4), range(1)
    found = {}
    pace, last = time_alternately({
        "ours": lambda: sample_with_studio(file, PROMPTS, many),
        "loop": lambda: sample_with_diffusers(pipeline, PROMPTS, many, False),
        "seeds batched": lambda: sample_with_diffusers(pipeline, PROMPTS, many, True),
        "ours again": lambda: sample_with_studio(file, PROMPTS, many),
    })  # fmt: skip
    found |= {
        "grid_seconds": pace["ours"],
        "grid_against_loop": pace["loop"] / pace["ours"],
        "grid_against_seeds_batched": pace["seeds batched"] / pace["ours"],
    }
    found |= {
        "grid_noise": abs(pace["ours again"] / pace["ours"] - 1),
        "grid_difference": max_difference(last["ours"], last["loop"]),
    }
    found |= {"grid_difference_floor": max_difference(last["seeds batched"], last["loop"])}
    pace, last = time_alternately({
        "ours": lambda: sample_with_studio(file, PROMPTS[:1], one),
        "loop": lambda: sample_with_diffusers(pipeline, PROMPTS[:1], one, False),
        "ours again": lambda: sample_with_studio(file, PROMPTS[:1], one),
    })  # fmt: skip
    found |= {
        "one_seed_seconds": pace["ours"],
        "one_seed_against_loop": pace["loop"] / pace["ours"],
        "one_seed_noise": abs(pace["ours again"] / pace["ours"] - 1),
    }
    return found | {"one_seed_difference": max_difference(last["ours"], last["loop"])}


def time_strength_change(pipeline: StableDiffusionXLPipeline, file: Path) -> dict[str, float]:
    """Return the milliseconds to another strength: ours in place, theirs by fusing and unfusing."""
    use = LoraUse(path=str(file))
    strengths = iter([0.1 * i for i in range(1000)])
    with lora.apply_loras(bases.load_model("nano"), [use]) as worn:

        def fuse_and_unfuse() -> None:
            pipeline.fuse_lora(lora_scale=next(strengths), components=["unet"])
            pipeline.unfuse_lora(components=["unet"])

        pace, _ = time_alternately(
            {
                "ours": lambda: worn.set_strengths([[replace(use, strength=next(strengths))]]),
                "theirs": fuse_and_unfuse,
            }
        )
    return {"change_ms": 1000 * pace["ours"], "fuse_and_unfuse_ms": 1000 * pace["theirs"]}


def time_growth(file: Path) -> dict[str, float]:
    """Return the seconds a cell and the process's largest memory, from 8 cells to 128."""
    found = {}
    sample_with_studio(file, PROMPTS[:1], range(1))  # loads the model and times its batches
    for seeds in (1, 4, 16):
        begin = time.perf_counter()
        sample_with_studio(file, PROMPTS[:1], range(seeds))
        cells = len(STRENGTHS) * seeds
        found |= {f"cells_{cells}_seconds_each": (time.perf_counter() - begin) / cells}
        found |= {f"cells_{cells}_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.safetensors"
        pipeline = build_reference(file)
        measured = time_growth(file) | time_grids(pipeline, file) | time_strength_change(pipeline, file)
    save_report("sweep", {name: float(f"{value:.4g}") for name, value in measured.items()})


if __name__ == "__main__":
    main()
