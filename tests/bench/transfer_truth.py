"""Hold transfer studies against answers that are known: `python tests/bench/transfer_truth.py`.

The example LoRA, a copy with half its alpha and one that does nothing, each over nano and its descendants,
with several sets of seeds: half the alpha needs twice the strength, nothing is none, and a pair has the same
word with each set of seeds. Writes `tests/bench/results/transfer_truth.json`.
"""

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("SWEETSPOT_CELLS", mkdtemp(prefix="sweetspot-bench-"))

from safetensors.torch import load_file, save_file  # noqa: E402

from core.lora import edit  # noqa: E402
from core.lora.file import read_lora_file  # noqa: E402
from core.runtime import gpu  # noqa: E402
from core.schema import presets  # noqa: E402
from core.schema.records import read_form  # noqa: E402
from core.transfer.plan import TransferForm, plan_transfer  # noqa: E402
from core.transfer.report import build_transfer_report  # noqa: E402
from core.transfer.study import TransferStudy  # noqa: E402
from tests.bench.report import save_report  # noqa: E402

EXAMPLE = ROOT / "presets" / "loras" / "nano-airbrush.safetensors"
MODELS = ("nano", "nano-cel", "nano-paint", "nano-merge")
SETS = 6
MIN_SAME = 0.95
"""Share of the pairs that have the same word with each set of seeds."""
HALF_TOLERANCE = 0.1
"""How far, as a share, half the alpha may be from needing twice the strength."""
Pairs = dict[tuple[str, str], dict[str, Any]]


def write_loras(folder: Path) -> list[dict[str, str]]:
    """Write the copies; return the rows of a study."""
    half = edit.rewrite_lora(read_lora_file(EXAMPLE), folder, multiply=0.5)
    torch.manual_seed(0)
    nothing = {
        key: value if key.endswith(".alpha") else 1e-3 * torch.randn_like(value)
        for key, value in load_file(EXAMPLE).items()
    }
    save_file(nothing, folder / "null.safetensors")
    files = {"whole": EXAMPLE, "half": half, "null": folder / "null.safetensors"}
    return [{"lora": str(file), "home": "nano", "name": name} for name, file in files.items()]


def run_study(rows: list[dict[str, str]], models: list[str], seeds: str) -> Pairs:
    """Return the rows of the pairs of one set of seeds."""
    study = TransferStudy(
        plan_transfer(read_form(TransferForm, {"loras": rows, "models": models, "seeds": seeds}))
    )
    for _ in study.run(gpu.generate_on_gpu):
        pass
    done, _ = study.count_done()
    print(f"seeds {seeds}: {done} images in {study.seconds:.0f} s", flush=True)
    return {(pair["lora"], pair["model"]): pair for pair in build_transfer_report(study)["per_pair"]}


def compare_halves(sets: list[Pairs], models: list[str]) -> dict[str, list[float]]:
    """Return how much more strength half the alpha needs than the whole file, by model."""
    return {
        model: [
            round(found["half", model]["needs_times"] / found["whole", model]["needs_times"], 3)
            for found in sets
            if found["half", model]["needs_times"] and found["whole", model]["needs_times"]
        ]
        for model in models
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=SETS, help="how many sets of two seeds")
    parser.add_argument("--steps", type=int, help="steps of an image; the preset's without")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    asked = parser.parse_args()
    if asked.steps:
        table = {
            name: replace(preset, steps=asked.steps) for name, preset in presets.get_prompt_presets().items()
        }
        presets.get_prompt_presets = lambda: table
    with TemporaryDirectory() as folder:
        rows = write_loras(Path(folder))
        sets = [run_study(rows, asked.models, f"{2 * i + 1}, {2 * i + 2}") for i in range(asked.sets)]
    words = {
        f"{lora} on {model}": Counter(found[lora, model]["verdict"] or "unclear" for found in sets)
        for lora, model in sets[0]
    }
    halves = compare_halves(sets, asked.models)
    same = sum(len(each) == 1 for each in words.values()) / len(words)
    against = [name for name, each in words.items() if len(each.keys() - {"unclear"}) > 1]
    for name, each in words.items():
        print(f"{name}: {', '.join(f'{word} {many}' for word, many in each.items())}")
    for model, ratios in halves.items():
        print(f"half the alpha on {model} needs x{', x'.join(map(str, ratios)) or '?'}")
    print(f"the same word with every set: {same:.0%} of the pairs; two words: {', '.join(against) or 'none'}")
    report = {
        "sets": asked.sets,
        "words": {name: dict(each) for name, each in words.items()},
        "same": round(same, 3),
        "two_words": against,
        "half_needs": halves,
        "shares": {
            f"{lora} on {model}": [
                [found[lora, model]["share"], found[lora, model]["share_interval"]] for found in sets
            ]
            for lora, model in sets[0]
        },
    }
    save_report("transfer_truth", report)
    wrong = [ratio for ratios in halves.values() for ratio in ratios if abs(ratio / 2 - 1) > HALF_TOLERANCE]
    nulls = [name for name, each in words.items() if name.startswith("null ") and set(each) != {"none"}]
    if same < MIN_SAME or against or wrong or nulls or not any(halves.values()):
        sys.exit("The bar was missed.")


if __name__ == "__main__":
    main()
