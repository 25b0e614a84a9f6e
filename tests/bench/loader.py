"""Have kohya's own loader read every recipe's file.

Run `python tests/bench/loader.py --kohya-dir DIR --kohya-packages DIRS`, with the same packages as
`train.py`. It uses `mini`, SDXL's topology with a fifth of its channels, in kohya's U-Net. Each
recipe is trained for two steps at a rate that shows; kohya's `networks.lora` and the studio then
apply its file at strength 1. Prints the largest difference of the U-Net's output (and of both text
encoders', where they are trained) over the largest value.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_ERROR = 1e-4
SIDE = 128  # pixels
TOKEN_IDS = [[49406, *range(320, 340), *[49407] * 56]]


def save_ours(work: Path) -> None:
    """Save mini, a LoRA of every recipe, and the studio's outputs with each."""
    sys.path.insert(0, str(ROOT))
    from safetensors.torch import save_file

    from core.lora import apply as lora
    from core.models import bases
    from core.schema.types import LoraUse
    from core.train.trainer.loop import train
    from core.train.trainer.run_record import find_final_lora
    from core.train.trainer.settings import load_recipes, resolve_settings
    from tests.bench import peers

    told: dict[str, Any] = {"name": "mini", "side": SIDE, "prompt": None, "pictures": 4, "repeats": 4}
    peers.make_data(work, told)
    torch.manual_seed(1)
    given = {
        "noise": torch.randn(1, 4, 16, 16),
        "states": torch.randn(1, 77, 2048),
        "pooled": torch.randn(1, 1280),
    }
    save_file(given, work / "given.safetensors")
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]])
    for recipe in load_recipes():
        made = resolve_settings(recipe, peers.register_mini(work))
        rates = {"rate": 3e-3, "text_rate": 3e-3, "warmup": 0, "steps": 2, "batch": 1, "accumulation": 1}
        folder = peers.prepare_run(
            work,
            {**told, "settings": {}, "run": recipe},
            recipe,
            **rates,
            expected_strength=made.expected_strength,
        )
        with folder.lock():
            for _ in train(folder):
                pass
        file = find_final_lora(folder)
        assert file is not None, (recipe, folder.read_failure())
        file.rename(work / f"{recipe}.safetensors")
        pipeline = bases.load_model("mini")
        with torch.no_grad():
            for name, strength in (
                (recipe, 1.0),
                *([("plain", 0.0)] if recipe == next(iter(load_recipes())) else []),
            ):
                with lora.apply_loras(
                    pipeline, [LoraUse(path=str(work / f"{recipe}.safetensors"), strength=strength)]
                ):
                    added = {"text_embeds": given["pooled"], "time_ids": sizes}
                    out = {
                        "unet": pipeline.unet(
                            given["noise"], torch.tensor([500]), given["states"], added_cond_kwargs=added
                        ).sample
                    }
                    words = torch.tensor(TOKEN_IDS) % pipeline.text_encoder.config.vocab_size
                    out |= {
                        f"text{i}": encoder(words).last_hidden_state
                        for i, encoder in enumerate((pipeline.text_encoder, pipeline.text_encoder_2), 1)
                    }
                save_file({key: value.contiguous() for key, value in out.items()}, work / f"{name}.ours")


def compare_with_kohya(work: Path, checkout: Path) -> None:
    """Apply the same files with kohya's loader and print how far its outputs are from ours."""
    sys.path.insert(0, str(checkout))
    from library import sdxl_model_util, sdxl_original_unet, sdxl_train_util  # type: ignore[import-not-found]
    from networks import lora  # type: ignore[import-not-found]
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sys.path.insert(0, str(ROOT))
    from tests.bench.peers import CHANNELS

    sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = CHANNELS, 4 * CHANNELS
    mini, given, report = work / "models" / "mini", load_file(work / "given.safetensors"), {}
    weights = sdxl_model_util.convert_diffusers_unet_state_dict_to_sdxl(
        load_file(mini / "unet" / "diffusion_pytorch_model.safetensors")
    )
    size = torch.tensor([[SIDE, SIDE]])
    vector = torch.cat(
        [given["pooled"], sdxl_train_util.get_size_embeddings(size, torch.zeros(1, 2), size, "cpu")], dim=1
    )
    for file in (None, *sorted(work.glob("*.safetensors"))):
        if file and file.stem == "given":
            continue
        unet = sdxl_original_unet.SdxlUNet2DConditionModel()
        unet.load_state_dict(weights)
        first = CLIPTextModel(CLIPTextConfig.from_pretrained(mini / "text_encoder"))
        # transformers 5 leaves out the prefix that transformers 4 begins the names with
        names = load_file(mini / "text_encoder" / "model.safetensors")
        first.load_state_dict(
            {f"text_model.{name.removeprefix('text_model.')}": value for name, value in names.items()}
        )
        encoders = [first, CLIPTextModelWithProjection.from_pretrained(mini / "text_encoder_2")]
        if file:
            network, state = lora.create_network_from_weights(1.0, str(file), None, encoders, unet)
            network.apply_to(encoders, unet, any(key.startswith("lora_te") for key in state), True)
            network.load_state_dict(state, strict=True)
        with torch.no_grad():
            words = torch.tensor(TOKEN_IDS) % encoders[0].config.vocab_size
            out = {"unet": unet.eval()(given["noise"], torch.tensor([500]), given["states"], vector)}
            out |= {
                f"text{i}": encoder.eval()(words).last_hidden_state for i, encoder in enumerate(encoders, 1)
            }
        theirs, name = (
            load_file(work / f"{file.stem if file else 'plain'}.ours"),
            file.stem if file else "plain",
        )
        report[name] = {
            key: float((out[key] - value).abs().max() / value.abs().max()) for key, value in theirs.items()
        }
        if file:
            plain = load_file(work / "plain.ours")
            report[name]["changed"] = max(
                float((value - plain[key]).abs().max() / plain[key].abs().max())
                for key, value in theirs.items()
            )
    (work / "report.json").write_text(json.dumps(report))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kohya-dir", type=Path, help="a checkout of kohya-ss/sd-scripts")
    options.add_argument(
        "--kohya-packages", default="", help="folders of packages for it alone, as in PYTHONPATH"
    )
    options.add_argument("--part", choices=("ours", "kohyas"), help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.part == "ours":
        save_ours(asked.work)
        return
    if asked.part == "kohyas":
        compare_with_kohya(asked.work, asked.kohya_dir)
        return
    if not asked.kohya_dir:
        sys.exit("skipped, no --kohya-dir")
    with TemporaryDirectory() as work:
        packages = os.pathsep.join(
            str(Path(place).resolve()) for place in asked.kohya_packages.split(os.pathsep) if place
        )
        for part, path in (("ours", ""), ("kohyas", packages)):
            command = [
                sys.executable,
                __file__,
                "--part",
                part,
                "--work",
                work,
                "--kohya-dir",
                str(asked.kohya_dir.resolve()),
            ]
            subprocess.run(
                command, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, cwd=work, check=True
            )
        report = json.loads((Path(work) / "report.json").read_text())
    for name, told in report.items():
        print(f"{name:32}" + "  ".join(f"{key} {value:.1e}" for key, value in told.items()))
    worst = max(value for told in report.values() for key, value in told.items() if key != "changed")
    unchanged = [name for name, told in report.items() if told.get("changed", 1) < 100 * MAX_ERROR]
    results = {"date": date.today().isoformat(), "worst": worst, **report}
    (ROOT / "tests" / "bench" / "results" / "loader.json").write_text(json.dumps(results, indent=1) + "\n")
    if worst > MAX_ERROR or unchanged:
        sys.exit(
            f"The bar is {MAX_ERROR:g}; it is {worst:.1e}. Files that change too little to tell: {unchanged}."
        )


if __name__ == "__main__":
    main()
