"""Our trainer beside diffusers' and kohya's: `python tests/bench/train.py --diffusers-dir DIR --kohya-dir DIR`.

Images per second of the steps, without the start; the peers' own scripts as they are, each in a process of its own, float32,
AdamW, no dropout, one thread. All are started, then take turns of a few steps while the others wait: a ratio is the median of
the turns' ratios, the noise floor our odd turns against our even ones. (So the median leaves out the turns in which we write a
state, every 30 seconds.) A peer whose checkout is not given is skipped.

diffusers' `train_dreambooth_lora_sdxl.py`, without checkpointing as is its default, trains nano: attention, rank and alpha 4, one
prompt for all pictures, which it encodes once. kohya's `sdxl_train_network.py` cannot: SDXL's widths are written into its U-Net.
So it and we train `mini`, SDXL's topology with a fifth of the channels and random weights: all that kohya's LoRA changes, the
transformers' linear layers, with captions; two constants of its U-Net are set to mini's before the script starts. Its settings
are those of its `docs/sdxl_train_network.md`, gradient checkpointing and caches of latents and text, but for the optimiser and the
precision, with `--sdpa` and without worker processes, which make it faster here; and the same with checkpointing off.

The first step: on the batch that a peer's script saw first, with its noise, times and matrices, our step has to give the same
loss and gradient. kohya's script needs older packages than ours, `--kohya-packages`: `pip install --no-deps --target pinned
transformers==4.54.1 diffusers==0.32.1 huggingface-hub==0.34.3 tokenizers==0.21.4 accelerate==1.6.0` and `pip install --no-deps
--target more einops toml voluptuous imagesize rich==14.1.0 markdown-it-py mdurl pygments ftfy wcwidth opencv-python-headless`,
then `--kohya-packages pinned:more`.
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
WARM = 2
"""Steps before the first turn."""
RATE, DECAY = 1e-4, 0.01
NANO: dict[str, Any] = {
    "name": "nano", "side": 128, "prompt": "1girl, kyoka, pink hair, smile", "turn": 8,
    "settings": {"targets": "attention", "rank": 4, "alpha": 4, "batch": 4, "rate": RATE, "weight_decay": DECAY},
}  # fmt: skip
MINI: dict[str, Any] = {
    "name": "mini", "side": 256, "prompt": None, "turn": 1,
    "settings": {"targets": "attention + feed-forward", "rank": 16, "alpha": 8, "batch": 2, "rate": RATE, "weight_decay": DECAY},
}  # fmt: skip
"""Each trainer's task; `side` in pixels, `turn` in steps, captions of their own where there is no prompt."""
PICTURES = 8
LEAST = {"diffusers": 1.5, "kohya, as documented": 1.5, "kohya, no checkpointing": 1.0}
"""How many times as fast as each we are to be."""


class Training:
    """A trainer's process, which waits for its turns."""

    def __init__(self, name: str, command: list[str], turn: int, log: Path, environment: dict[str, str]):
        self.name, self.log = name, log
        (wait, self.go), (self.done, tell) = os.pipe(), os.pipe()
        command = [f"{wait},{tell},{WARM},{turn}" if word == "TURNS" else word for word in command]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent, pass_fds=[wait, tell])
        os.close(wait)
        os.close(tell)
        self.wait()

    def wait(self) -> None:
        """Until its turn, or what comes before the first, is over."""
        if not os.read(self.done, 1):
            self.end()

    def turn(self) -> None:
        os.write(self.go, b".")
        self.wait()

    def end(self) -> None:
        """Let it come to its end. Ends the bench, with the last of what it printed, if that is a bad one."""
        os.close(self.go)
        if code := self.process.wait():
            sys.exit(f"{self.name} failed ({code}):\n{self.log.read_text(errors='replace')[-3000:]}")


class Bench:
    """Processes in a folder that is gone at the end."""

    def __init__(self, work: Path, asked: argparse.Namespace):
        self.work, self.asked = work, asked
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}

    def call(self, part: str, told: dict[str, Any]) -> Any:
        """Do a part of `peers.py`; what it reports."""
        report, log = self.work / f"{part}.json", self.work / f"{part}.log"
        command = [sys.executable, str(Path(__file__).with_name("peers.py")), part, str(self.work), str(report), "", json.dumps(told)]
        with log.open("wb") as out:
            if subprocess.run(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, cwd=self.work).returncode:
                sys.exit(f"{part} failed:\n{log.read_text(errors='replace')[-3000:]}")
        return json.loads(report.read_text())

    def train(self, name: str, part: str, setup: dict[str, Any], arguments: list[str], packages: str = "") -> Training:
        """Start a trainer; it has done its first steps when this returns."""
        out = self.work / name
        out.mkdir()
        command = [sys.executable, str(Path(__file__).with_name("peers.py")), part, str(out if part != "ours" else self.work)]
        command += [str(self.work / f"{name}.json"), "TURNS", *arguments]
        return Training(name, command, setup["turn"], self.work / f"{name}.log", {**self.environment, "PYTHONPATH": packages})

    def ours(self, setup: dict[str, Any]) -> Training:
        return self.train("ours", "ours", setup, [json.dumps({**setup, "run": "run"})])

    def diffusers(self, setup: dict[str, Any]) -> Training:
        made = setup["settings"]
        told = {
            "pretrained_model_name_or_path": ROOT / "core" / "nano" / "weights" / "nano", "instance_data_dir": self.work / "nano" / f"{setup['repeats']}_girl",
            "instance_prompt": setup["prompt"], "repeats": setup["repeats"], "resolution": setup["side"], "train_batch_size": made["batch"],
            "max_train_steps": made["steps"], "rank": made["rank"], "learning_rate": RATE, "lr_scheduler": "constant", "lr_warmup_steps": 0,
            "adam_weight_decay": DECAY, "mixed_precision": "no", "checkpointing_steps": 100_000, "seed": 42, "output_dir": self.work / "made",
        }  # fmt: skip
        script = self.asked.diffusers_dir / "examples" / "dreambooth" / "train_dreambooth_lora_sdxl.py"
        return self.train("diffusers", "diffusers", setup, [str(script), *flags(told)])

    def kohya_plain(self, setup: dict[str, Any]) -> Training:
        return self.kohya(setup, "kohya, no checkpointing", False)

    def kohya(self, setup: dict[str, Any], name: str = "kohya, as documented", checkpointing: bool = True) -> Training:
        made = setup["settings"]
        told = {
            "pretrained_model_name_or_path": self.work / "models" / "mini", "tokenizer_cache_dir": self.work / "tokenizers",
            "train_data_dir": self.work / "mini", "caption_extension": ".txt", "resolution": f"{setup['side']},{setup['side']}",
            "train_batch_size": made["batch"], "max_train_steps": made["steps"],
            "network_module": "networks.lora", "network_dim": made["rank"], "network_alpha": made["alpha"], "learning_rate": RATE, "lr_scheduler": "constant",
            "optimizer_type": "AdamW", "optimizer_args": f"weight_decay={DECAY}", "mixed_precision": "no", "max_data_loader_n_workers": 0,
            "output_dir": self.work / "made", "output_name": "it", "save_model_as": "safetensors", "seed": 42,
        }  # fmt: skip
        on = ["network_train_unet_only", "cache_latents", "cache_text_encoder_outputs", "no_half_vae", "sdpa", *["gradient_checkpointing"] * checkpointing]
        packages = os.pathsep.join([str(self.asked.kohya_dir), *(str(Path(place).resolve()) for place in self.asked.kohya_packages.split(os.pathsep) if place)])
        script = self.asked.kohya_dir / "sdxl_train_network.py"
        return self.train(name, "kohya", setup, [str(script), *flags(told), *(f"--{name}" for name in on)], packages)


def flags(told: dict[str, Any]) -> list[str]:
    return [word for name, value in told.items() for word in (f"--{name}", str(value))]


def compared(bench: Bench, setup: dict[str, Any], peer: str) -> dict[str, Any]:
    """One model: ours and a peer's in turn, then the first step on what the last of its processes saw."""
    bench.call("make", setup)
    starts: list[Callable[[dict[str, Any]], Training]] = [bench.ours, *([bench.diffusers] if peer == "diffusers" else [bench.kohya, bench.kohya_plain])]
    trainings: list[Training] = []
    try:
        for start in starts:
            trainings.append(start(setup))
        for number in range(bench.asked.turns):
            for training in trainings if number % 2 else reversed(trainings):
                training.turn()
        for training in trainings:
            training.end()
    finally:
        for training in trainings:
            training.process.kill()
    told = {training.name: json.loads((bench.work / f"{training.name}.json").read_text()) for training in trainings}
    pictures = setup["turn"] * setup["settings"]["batch"]
    found: dict[str, Any] = {}
    for name, each in told.items():
        clock, computing = (statistics.median(turn[i] for turn in each["turns"]) / pictures for i in (0, 1))
        found[name] = {"images_per_second": 1 / clock, "cpu_seconds_per_image": computing, "peak_mb": each["memory"] / 1e6, "start_seconds": each["started"]}
    mine = told["ours"]
    noise = abs(statistics.median(turn[0] for turn in mine["turns"][::2]) / statistics.median(turn[0] for turn in mine["turns"][1::2]) - 1)
    for name in list(told)[1:]:
        assert told[name]["parameters"] == mine["parameters"], f"{name} trains {told[name]['parameters']:,} numbers, we {mine['parameters']:,}"
        pairs = zip(told[name]["turns"], mine["turns"], strict=True)
        by_clock, by_computing = zip(*([its / ours for its, ours in zip(*pair, strict=True)] for pair in pairs), strict=True)
        found[name] |= {"ours_against_it": statistics.median(by_clock), "least": LEAST[name], "by_cpu_seconds": statistics.median(by_computing)}
    if "diffusers" in told:
        found["diffusers"]["share_of_vae"] = told["diffusers"]["encoding"] / sum(turn[0] for turn in told["diffusers"]["turns"])
    step = bench.call("first", {**setup, "run": "first", "first": str(bench.work / trainings[-1].name / "first.safetensors")})
    step |= {f"{what}_apart": abs(step[what] / step[f"their_{what}"] - 1) for what in ("loss", "gradient")}
    same = {name: mine[name] for name in ("device", "threads", "parameters")}
    return {**same, "pixels": setup["side"], **setup["settings"], "turns": bench.asked.turns, "noise_floor": noise, **found, "first_step": step}


def show(name: str, report: dict[str, Any]) -> None:
    """Print what was measured on a model."""
    print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict) and key != "noise_floor"))
    print(f"{'':26}{'images/s':>12}{'CPU s/image':>14}{'peak MB':>10}{'start s':>10}{'ours is':>10}{'at least':>10}{'by CPU s':>10}")
    for each, told in report.items():
        if isinstance(told, dict) and "peak_mb" in told:
            row = f"{each:26}{told['images_per_second']:12.3f}{told['cpu_seconds_per_image']:14.3f}{told['peak_mb']:10.0f}{told['start_seconds']:10.1f}"
            print(row + (f"{told['ours_against_it']:9.2f}x{told['least']:9.1f}x{told['by_cpu_seconds']:9.2f}x" if "least" in told else ""))
    print(f"noise floor {report['noise_floor']:.1%}")
    if "diffusers" in report:
        print(f"of diffusers' steps the VAE takes {report['diffusers']['share_of_vae']:.0%} (of SDXL's at 1024 pixels a quarter of the arithmetic)")
    step = report["first_step"]
    print(f"first step: loss {step['loss']:.8f}, theirs {step['their_loss']:.8f}, {step['loss_apart']:.0e} apart; gradient {step['gradient_apart']:.0e} apart")


def version(checkout: Path) -> str:
    told = subprocess.run(["git", "-C", str(checkout), "describe", "--always", "--tags"], capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--diffusers-dir", type=Path, help="a checkout of huggingface/diffusers")
    options.add_argument("--kohya-dir", type=Path, help="a checkout of kohya-ss/sd-scripts")
    options.add_argument("--kohya-packages", default="", help="folders of packages for it alone, as in PYTHONPATH")
    options.add_argument("--turns", type=int, default=24)
    options.add_argument("--threads", type=int, default=1, help="of each process; kohya's documented command asks for 1, too")
    options.add_argument("--quick", action="store_true", help="few turns, about two minutes; writes no results")
    asked = options.parse_args()
    asked.turns = 4 if asked.quick else asked.turns
    report: dict[str, Any] = {"date": date.today().isoformat()}
    for setup, peer, checkout in ((NANO, "diffusers", asked.diffusers_dir), (MINI, "kohya", asked.kohya_dir)):
        if not checkout:
            print(f"{peer}: skipped, no --{peer}-dir")
            continue
        setattr(asked, f"{peer}_dir", checkout.resolve())
        setup["settings"]["steps"] = WARM + asked.turns * setup["turn"]
        setup |= {"pictures": PICTURES, "repeats": -(-setup["settings"]["steps"] * setup["settings"]["batch"] // PICTURES)}  # all steps in one epoch
        with TemporaryDirectory() as folder:
            report |= {f"{peer}_version": version(checkout), setup["name"]: compared(Bench(Path(folder), asked), setup, peer)}
        show(setup["name"], report[setup["name"]])
    if len(report) > 1 and not asked.quick:
        results = ROOT / "tests" / "bench" / "results"
        results.mkdir(exist_ok=True)
        (results / "train.json").write_text(json.dumps(rounded(report), indent=1) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
