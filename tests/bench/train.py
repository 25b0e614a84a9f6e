"""Compare our trainer with diffusers' and kohya's.

Run `python tests/bench/train.py --diffusers-dir DIR --kohya-dir DIR`. It measures images per second
of the steps, without the start. The peers' own scripts run as they are, each in a process of its
own, float32, AdamW, no dropout, one thread. All are started, then take turns of a few steps while
the others wait: a ratio is the median of the turns' ratios, the noise floor our odd turns against
our even ones. (So the median leaves out the turns in which we write a state, every 30 seconds.) A
peer without a checkout is skipped.

diffusers' `train_dreambooth_lora_sdxl.py`, without checkpointing as is its default, trains nano:
attention, rank and alpha 4, one prompt for all pictures, which it encodes once. kohya's
`sdxl_train_network.py` cannot: SDXL's widths are written into its U-Net. So it and we train `mini`,
SDXL's topology with a fifth of the channels and random weights: all that kohya's LoRA changes, the
transformers' linear layers, with captions; two constants of its U-Net are set to mini's before the
script starts. Its settings are those of its `docs/sdxl_train_network.md`, gradient checkpointing
and caches of latents and text, but for the optimiser and the precision, with `--sdpa` and without
worker processes, which make it faster here; and the same with checkpointing off.

The first step: on the batch that a peer's script saw first, with its noise, times and matrices, our
step has to give the same loss and gradient. kohya's script needs older packages than ours,
`--kohya-packages`: `pip install --no-deps --target pinned transformers==4.54.1 diffusers==0.32.1
huggingface-hub==0.34.3 tokenizers==0.21.4 accelerate==1.6.0` and `pip install --no-deps --target
more einops toml voluptuous imagesize rich==14.1.0 markdown-it-py mdurl pygments ftfy wcwidth
opencv-python-headless`, then `--kohya-packages pinned:more`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WARMUP_STEPS = 2
"""Steps before the first turn."""
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
NANO_SETUP: dict[str, Any] = {
    "name": "nano", "side": 128, "prompt": "1girl, kyoka, pink hair, smile", "turn": 8,
    "settings": {
        "targets": "attention", "rank": 4, "alpha": 4, "batch": 4,
        "rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
    },
}  # fmt: skip
MINI_SETUP: dict[str, Any] = {
    "name": "mini", "side": 256, "prompt": None, "turn": 1,
    "settings": {
        "targets": "attention + feed-forward", "rank": 16, "alpha": 8, "batch": 2,
        "rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
    },
}  # fmt: skip
"""Each trainer's task: `side` in pixels, `turn` in steps; no `prompt` means a caption a picture."""
PICTURE_COUNT = 8
MIN_SPEEDUP = {"diffusers": 1.5, "kohya, as documented": 1.5, "kohya, no checkpointing": 1.0}
"""How many times as fast as each peer we have to be."""


class Training:
    """A trainer's process that waits for its turns."""

    def __init__(self, name: str, command: list[str], turn: int, log: Path, environment: dict[str, str]):
        self.name, self.log = name, log
        (wait, self.go), (self.done, tell) = os.pipe(), os.pipe()
        command = [f"{wait},{tell},{WARMUP_STEPS},{turn}" if word == "TURNS" else word for word in command]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                pass_fds=[wait, tell],
            )
        os.close(wait)
        os.close(tell)
        self.wait_for_turn()

    def wait_for_turn(self) -> None:
        """Wait until its turn, or what comes before the first, is over."""
        if not os.read(self.done, 1):
            self.finish()

    def run_turn(self) -> None:
        os.write(self.go, b".")
        self.wait_for_turn()

    def finish(self) -> None:
        """Let the process come to its end.

        Ends the bench with the last lines of its log if it fails.
        """
        os.close(self.go)
        if code := self.process.wait():
            sys.exit(f"{self.name} failed ({code}):\n{self.log.read_text(errors='replace')[-3000:]}")


class Bench:
    """The processes of the bench, in a temporary folder."""

    def __init__(self, work: Path, options: argparse.Namespace):
        self.work, self.options = work, options
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(options.threads),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        }

    def run_part(self, part: str, setup: dict[str, Any]) -> Any:
        """Do a part of `peers.py` and return its report."""
        report, log = self.work / f"{part}.json", self.work / f"{part}.log"
        command = [
            sys.executable,
            str(Path(__file__).with_name("peers.py")),
            part,
            str(self.work),
            str(report),
            "",
            json.dumps(setup),
        ]
        with log.open("wb") as out:
            if subprocess.run(
                command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, cwd=self.work
            ).returncode:
                sys.exit(f"{part} failed:\n{log.read_text(errors='replace')[-3000:]}")
        return json.loads(report.read_text())

    def start_training(
        self, name: str, part: str, setup: dict[str, Any], arguments: list[str], packages: str = ""
    ) -> Training:
        """Start a trainer and return it once it has done its first steps."""
        out = self.work / name
        out.mkdir()
        command = [
            sys.executable,
            str(Path(__file__).with_name("peers.py")),
            part,
            str(out if part != "ours" else self.work),
        ]
        command += [str(self.work / f"{name}.json"), "TURNS", *arguments]
        return Training(
            name,
            command,
            setup["turn"],
            self.work / f"{name}.log",
            {**self.environment, "PYTHONPATH": packages},
        )

    def start_ours(self, setup: dict[str, Any]) -> Training:
        return self.start_training("ours", "ours", setup, [json.dumps({**setup, "run": "run"})])

    def start_diffusers(self, setup: dict[str, Any]) -> Training:
        made = setup["settings"]
        told = {
            "pretrained_model_name_or_path": ROOT / "core" / "nano" / "weights" / "nano",
            "instance_data_dir": self.work / "nano" / f"{setup['repeats']}_girl",
            "instance_prompt": setup["prompt"], "repeats": setup["repeats"], "resolution": setup["side"],
            "train_batch_size": made["batch"], "max_train_steps": made["steps"], "rank": made["rank"],
            "learning_rate": LEARNING_RATE, "lr_scheduler": "constant", "lr_warmup_steps": 0,
            "adam_weight_decay": WEIGHT_DECAY, "mixed_precision": "no", "checkpointing_steps": 100_000,
            "seed": 42, "output_dir": self.work / "made",
        }  # fmt: skip
        script = self.options.diffusers_dir / "examples" / "dreambooth" / "train_dreambooth_lora_sdxl.py"
        return self.start_training("diffusers", "diffusers", setup, [str(script), *to_flags(told)])

    def start_kohya_plain(self, setup: dict[str, Any]) -> Training:
        return self.start_kohya(setup, "kohya, no checkpointing", False)

    def start_kohya(
        self, setup: dict[str, Any], name: str = "kohya, as documented", checkpointing: bool = True
    ) -> Training:
        made = setup["settings"]
        told = {
            "pretrained_model_name_or_path": self.work / "models" / "mini",
            "tokenizer_cache_dir": self.work / "tokenizers",
            "train_data_dir": self.work / "mini", "caption_extension": ".txt",
            "resolution": f"{setup['side']},{setup['side']}",
            "train_batch_size": made["batch"], "max_train_steps": made["steps"],
            "network_module": "networks.lora", "network_dim": made["rank"], "network_alpha": made["alpha"],
            "learning_rate": LEARNING_RATE, "lr_scheduler": "constant",
            "optimizer_type": "AdamW", "optimizer_args": f"weight_decay={WEIGHT_DECAY}",
            "mixed_precision": "no", "max_data_loader_n_workers": 0,
            "output_dir": self.work / "made", "output_name": "it", "save_model_as": "safetensors", "seed": 42,
        }  # fmt: skip
        on = [
            "network_train_unet_only",
            "cache_latents",
            "cache_text_encoder_outputs",
            "no_half_vae",
            "sdpa",
            *["gradient_checkpointing"] * checkpointing,
        ]
        packages = os.pathsep.join(
            [
                str(self.options.kohya_dir),
                *(
                    str(Path(place).resolve())
                    for place in self.options.kohya_packages.split(os.pathsep)
                    if place
                ),
            ]
        )
        script = self.options.kohya_dir / "sdxl_train_network.py"
        return self.start_training(
            name, "kohya", setup, [str(script), *to_flags(told), *(f"--{name}" for name in on)], packages
        )


def to_flags(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def compare_trainers(bench: Bench, setup: dict[str, Any], peer: str) -> dict[str, Any]:
    """Time ours and a peer's in turn on one model, then compare the first step.

    The step runs on what the last of the peer's processes saw first.
    """
    bench.run_part("make", setup)
    peers = [bench.start_diffusers] if peer == "diffusers" else [bench.start_kohya, bench.start_kohya_plain]
    told = run_in_turns(bench, setup, [bench.start_ours, *peers])
    pictures = setup["turn"] * setup["settings"]["batch"]
    found: dict[str, Any] = {}
    for name, each in told.items():
        clock, computing = (statistics.median(turn[i] for turn in each["turns"]) / pictures for i in (0, 1))
        found[name] = {
            "images_per_second": 1 / clock,
            "cpu_seconds_per_image": computing,
            "peak_mb": each["memory"] / 1e6,
            "start_seconds": each["started"],
        }
    mine = told["ours"]
    noise = abs(
        statistics.median(turn[0] for turn in mine["turns"][::2])
        / statistics.median(turn[0] for turn in mine["turns"][1::2])
        - 1
    )
    for name in list(told)[1:]:
        found[name] |= compare_speed(name, told[name], mine)
    if "diffusers" in told:
        found["diffusers"]["share_of_vae"] = told["diffusers"]["encoding"] / sum(
            turn[0] for turn in told["diffusers"]["turns"]
        )
    step = bench.run_part(
        "first",
        {**setup, "run": "first", "first": str(bench.work / list(told)[-1] / "first.safetensors")},
    )
    step |= {f"{what}_apart": abs(step[what] / step[f"their_{what}"] - 1) for what in ("loss", "gradient")}
    same = {name: mine[name] for name in ("device", "threads", "parameters")}
    return {
        **same,
        "pixels": setup["side"],
        **setup["settings"],
        "turns": bench.options.turns,
        "noise_floor": noise,
        **found,
        "first_step": step,
    }


def run_in_turns(
    bench: Bench, setup: dict[str, Any], starts: list[Callable[[dict[str, Any]], Training]]
) -> dict[str, Any]:
    """Start trainers, let them take turns to the end, and return name -> its report."""
    trainings: list[Training] = []
    try:
        for start in starts:
            trainings.append(start(setup))
        for number in range(bench.options.turns):
            for training in trainings if number % 2 else reversed(trainings):
                training.run_turn()
        for training in trainings:
            training.finish()
    finally:
        for training in trainings:
            training.process.kill()
    return {
        training.name: json.loads((bench.work / f"{training.name}.json").read_text())
        for training in trainings
    }


def compare_speed(name: str, its: dict[str, Any], mine: dict[str, Any]) -> dict[str, float]:
    """Return how many times as fast as a peer we are, turn by turn; both train as much."""
    assert its["parameters"] == mine["parameters"], (
        f"{name} trains {its['parameters']:,} numbers, we {mine['parameters']:,}"
    )
    pairs = zip(its["turns"], mine["turns"], strict=True)
    by_clock, by_computing = zip(
        *([theirs / ours for theirs, ours in zip(*pair, strict=True)] for pair in pairs), strict=True
    )
    return {
        "ours_against_it": statistics.median(by_clock),
        "least": MIN_SPEEDUP[name],
        "by_cpu_seconds": statistics.median(by_computing),
    }


def print_report(name: str, report: dict[str, Any]) -> None:
    """Print the measurements on a model."""
    print(
        f"\n{name}: "
        + ", ".join(
            f"{key} {value}"
            for key, value in report.items()
            if not isinstance(value, dict) and key != "noise_floor"
        )
    )
    print(
        f"{'':26}{'images/s':>12}{'CPU s/image':>14}{'peak MB':>10}{'start s':>10}"
        f"{'ours is':>10}{'at least':>10}{'by CPU s':>10}"
    )
    for each, told in report.items():
        if isinstance(told, dict) and "peak_mb" in told:
            row = (
                f"{each:26}{told['images_per_second']:12.3f}{told['cpu_seconds_per_image']:14.3f}"
                f"{told['peak_mb']:10.0f}{told['start_seconds']:10.1f}"
            )
            print(
                row
                + (
                    f"{told['ours_against_it']:9.2f}x{told['least']:9.1f}x{told['by_cpu_seconds']:9.2f}x"
                    if "least" in told
                    else ""
                )
            )
    print(f"noise floor {report['noise_floor']:.1%}")
    if "diffusers" in report:
        print(
            f"of diffusers' steps the VAE takes {report['diffusers']['share_of_vae']:.0%} "
            "(of SDXL's at 1024 pixels a quarter of the arithmetic)"
        )
    step = report["first_step"]
    print(
        f"first step: loss {step['loss']:.8f}, theirs {step['their_loss']:.8f}, "
        f"{step['loss_apart']:.0e} apart; gradient {step['gradient_apart']:.0e} apart"
    )


def read_version(checkout: Path) -> str:
    told = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--tags"], capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--diffusers-dir", type=Path, help="a checkout of huggingface/diffusers")
    options.add_argument("--kohya-dir", type=Path, help="a checkout of kohya-ss/sd-scripts")
    options.add_argument(
        "--kohya-packages", default="", help="folders of packages for it alone, as in PYTHONPATH"
    )
    options.add_argument("--turns", type=int, default=24)
    options.add_argument(
        "--threads", type=int, default=1, help="of each process; kohya's documented command asks for 1, too"
    )
    options.add_argument(
        "--quick", action="store_true", help="few turns, about two minutes; writes no results"
    )
    asked = options.parse_args()
    asked.turns = 4 if asked.quick else asked.turns
    report: dict[str, Any] = {"date": date.today().isoformat()}
    for setup, peer, checkout in (
        (NANO_SETUP, "diffusers", asked.diffusers_dir),
        (MINI_SETUP, "kohya", asked.kohya_dir),
    ):
        if not checkout:
            print(f"{peer}: skipped, no --{peer}-dir")
            continue
        setattr(asked, f"{peer}_dir", checkout.resolve())
        setup["settings"]["steps"] = WARMUP_STEPS + asked.turns * setup["turn"]
        # All steps in one epoch.
        setup |= {
            "pictures": PICTURE_COUNT,
            "repeats": -(-setup["settings"]["steps"] * setup["settings"]["batch"] // PICTURE_COUNT),
        }
        with TemporaryDirectory() as folder:
            report |= {
                f"{peer}_version": read_version(checkout),
                setup["name"]: compare_trainers(Bench(Path(folder), asked), setup, peer),
            }
        print_report(setup["name"], report[setup["name"]])
    if len(report) > 1 and not asked.quick:
        results = ROOT / "tests" / "bench" / "results"
        results.mkdir(exist_ok=True)
        (results / "train.json").write_text(json.dumps(round_floats(report), indent=1) + "\n")


def round_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: round_floats(each) for name, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
