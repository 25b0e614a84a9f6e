"""Run the parts of `train.py` that need a process: a model, our trainer, a peer's, the first step.

A peer's script runs unchanged and is watched from outside, where torch and accelerate are the same
for all: the end of each step of its optimiser, and its first loss with all that led to it. Only
torch is imported at the top: a peer may need other versions of the rest than ours.
"""

import json
import math
import os
import platform
import resource
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_TIME = time.time()
ROOT = Path(__file__).resolve().parent.parent.parent

import torch  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
"""The folders in which kohya's script looks for SDXL's two tokenizers."""
CHANNELS = 64
"""Channels of mini's first block, where SDXL has 320."""
VAE_SCALE = 0.13025
"""Scaling factor of SDXL's latents, which kohya's script takes for granted."""
GROUP = "girl"


class TrainingProbe:
    """Record a training in this process: seconds of each turn, peak memory, the first step.

    A turn is some steps; before each, the training waits inside its optimiser's step until the
    parent lets it go on.
    """

    def __init__(self, work: Path, turns: str):
        self.work, self.start_seconds = work, 0.0
        self.wait, self.tell, self.warm, self.length = (int(number) for number in turns.split(","))
        self.steps, self.parameter_count = 0, 0
        self.turns: list[tuple[float, float]] = []
        """Wall-clock and processor seconds of each turn."""
        self.vae_seconds = 0.0
        """Seconds in the VAE since the first turn began."""
        self.first_batch: dict[str, torch.Tensor] = {}
        self.network: torch.nn.Module | None = None
        register_optimizer_step_post_hook(self._on_step)

    def _on_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps += 1
        done = self.steps - self.warm
        if done < 0 or done % self.length:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if done:
            self.turns.append(
                (time.perf_counter() - self.turn_start[0], time.process_time() - self.turn_start[1])
            )
        else:
            self.start_seconds = time.time() - START_TIME
            self.parameter_count, self.vae_seconds = (
                sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
                0.0,
            )
        os.write(self.tell, b".")
        os.read(self.wait, 1)
        self.turn_start = time.perf_counter(), time.process_time()

    def report(self) -> dict[str, Any]:
        gpu = torch.cuda.is_available()
        memory = (
            torch.cuda.max_memory_allocated()
            if gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        device = torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
        found = {
            "started": self.start_seconds,
            "turns": self.turns,
            "encoding": self.vae_seconds,
            "memory": memory,
            "parameters": self.parameter_count,
        }
        return {**found, "device": device, "threads": torch.get_num_threads()}

    def install_hooks(self, unet: type[torch.nn.Module]) -> None:
        """Keep the first inputs of the noise, the U-Net, the backward pass and the clipping."""
        from accelerate import Accelerator
        from diffusers import AutoencoderKL, DDPMScheduler

        encode = AutoencoderKL.encode

        def time_encode(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            made = encode(*args, **kwargs)
            self.vae_seconds += time.perf_counter() - begin
            return made

        AutoencoderKL.encode = time_encode
        self._hook_first_call(DDPMScheduler, "add_noise", self._keep_noise)
        self._hook_first_call(unet, "forward", self._keep_unet_inputs)
        self._hook_first_call(Accelerator, "backward", self._keep_loss)
        self._hook_first_call(Accelerator, "clip_grad_norm_", self._save_norm)

    def _hook_first_call(self, owner: type, name: str, tell: Callable[..., None]) -> None:
        """Call `tell` at the first call of a method; later calls are the method's own."""
        plain = getattr(owner, name)

        def call_once(*args: Any, **kwargs: Any) -> Any:
            setattr(owner, name, plain)
            if name != "clip_grad_norm_":
                tell(*args, **kwargs)
                return plain(*args, **kwargs)
            norm = plain(*args, **kwargs)
            tell(norm)
            return norm

        setattr(owner, name, call_once)

    def _keep(self, **tensors: torch.Tensor) -> None:
        self.first_batch |= {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()
        }

    def _keep_noise(self, _: Any, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> None:
        self._keep(clean=clean, noise=noise, times=times)

    def _keep_unet_inputs(
        self,
        unet: torch.nn.Module,
        _noisy: Any,
        _times: Any,
        states: torch.Tensor,
        vector: Any = None,
        **more: Any,
    ) -> None:
        """Keep the inputs of diffusers' U-Net, or of kohya's.

        The vector of kohya's U-Net holds the sizes behind the pooled text.
        """
        self.network = self.network or unet  # PEFT's matrices are parts of the U-Net
        added = more.get("added_cond_kwargs")
        self._keep(states=states, pooled=vector[:, :1280] if added is None else added["text_embeds"])

    def _keep_loss(self, _: Any, loss: torch.Tensor, **__: Any) -> None:
        assert self.network is not None
        self._keep(
            loss=loss,
            **{
                f"lora {name}": value
                for name, value in self.network.named_parameters()
                if value.requires_grad
            },
        )

    def _save_norm(self, norm: torch.Tensor) -> None:
        from safetensors.torch import save_file

        self._keep(norm=norm)
        save_file(self.first_batch, self.work / "first.safetensors")
        self.first_batch.clear()


def run_diffusers(watch: TrainingProbe, script: list[str]) -> None:
    from diffusers import UNet2DConditionModel

    watch.install_hooks(UNet2DConditionModel)
    _run_script(script)


def run_kohya(watch: TrainingProbe, script: list[str]) -> None:
    """Run kohya's script with the widths that are written into its U-Net set to mini's."""
    sys.path.insert(0, str(Path(script[0]).parent))
    from library import sdxl_original_unet  # type: ignore[import-not-found]
    from networks import lora  # type: ignore[import-not-found]

    sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = CHANNELS, 4 * CHANNELS
    plain = lora.create_network

    def create(*args: Any, **kwargs: Any) -> Any:
        watch.network = plain(*args, **kwargs)
        return watch.network

    lora.create_network = create
    watch.install_hooks(sdxl_original_unet.SdxlUNet2DConditionModel)
    _run_script(script)


def _run_script(script: list[str]) -> None:
    sys.argv = script
    try:
        runpy.run_path(script[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


# --- ours -----------------------------------------------------------------------------------------


def make_data(work: Path, setup: dict[str, Any]) -> None:
    """Write the data that all train on, drawn pictures, and `mini`.

    The pictures lie in a folder whose name says how often each comes, as kohya's script expects.
    mini is SDXL's topology with a fifth of its channels and random weights. Its text encoders have
    SDXL's widths and random weights, its VAE is nano's.
    """
    from core.nano.lessons import make_character_set

    folder = work / setup["name"] / f"{setup['repeats']}_{GROUP}"
    folder.mkdir(parents=True)
    for i, (picture, caption) in enumerate(make_character_set("kyoka", setup["pictures"])):
        picture.resize((setup["side"], setup["side"])).save(folder / f"{i}.png")
        if setup["prompt"] is None:
            (folder / f"{i}.txt").write_text(caption)
    if setup["name"] == "mini":
        _save_mini(work / "models" / "mini")
        for name in ("tokenizer", "tokenizer_2"):
            _convert_tokenizer(work / "models" / "mini" / name, work / "models" / "mini" / name)
        for name in TOKENIZERS:
            _convert_tokenizer(work / "models" / "mini" / "tokenizer", work / "tokenizers" / name)


def _save_mini(folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from core.models import bases

    torch.manual_seed(0)
    nano = bases.load_model("nano")
    shape: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (CHANNELS, 2 * CHANNELS, 4 * CHANNELS),
        "layers_per_block": 2, "attention_head_dim": (1, 2, 4),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    words = {
        name: getattr(nano.text_encoder.config, name)
        for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    one = CLIPTextConfig(
        hidden_size=768,
        projection_dim=768,
        intermediate_size=256,
        num_attention_heads=12,
        num_hidden_layers=12,
        **words,
    )
    two = CLIPTextConfig(
        hidden_size=1280,
        projection_dim=1280,
        intermediate_size=256,
        num_attention_heads=20,
        num_hidden_layers=3,
        **words,
    )
    nano.vae.register_to_config(scaling_factor=VAE_SCALE)
    own = {
        "unet": UNet2DConditionModel(**shape),
        "text_encoder": CLIPTextModel(one),
        "text_encoder_2": CLIPTextModelWithProjection(two),
    }
    StableDiffusionXLPipeline(**{**nano.components, **own}).save_pretrained(folder)


def _convert_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Write a tokenizer in the form that transformers 4 reads."""
    folder.mkdir(parents=True, exist_ok=True)
    told = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(told["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    if tokenizer != folder:
        shutil.copyfile(tokenizer / "tokenizer_config.json", folder / "tokenizer_config.json")


def register_mini(work: Path):
    """Add mini to the base models."""
    from core.schema import presets
    from core.schema.types import Model

    presets.get_models()["mini"] = Model(
        name="mini", title="mini", source=str(work / "models" / "mini"), native_size=128, licence="none"
    )
    return presets.get_models()["mini"]


def prepare_run(work: Path, setup: dict[str, Any], recipe: str = "nano-quick", **overrides: Any):
    """Create the folder of a run as `setup` describes it."""
    from core.dataset.dataset import Dataset, Sample
    from core.train import runs

    register_mini(work)
    side, samples = setup["side"], []
    folder = work / setup["name"] / f"{setup['repeats']}_{GROUP}"
    for i in range(setup["pictures"]):
        caption = (folder / f"{i}.txt").read_text() if setup["prompt"] is None else setup["prompt"]
        samples.append(
            Sample(
                file=f"{i}.png",
                name=f"{i}.png",
                caption=caption,
                width=side,
                height=side,
                repeats=setup["repeats"],
                group=GROUP,
            )
        )
    data = Dataset(folder=folder, samples=tuple(samples))
    sizes = {"resolution": side, "least_side": side, "most_side": side}
    usual = {
        "optimizer": "AdamW",
        "scheduler": "constant",
        "precision": "float32",
        "preview_every": 0,
        "save_every": 100_000,
    }
    run, _ = runs.plan_run(
        data, recipe, setup["name"], overrides={**usual, **sizes, **setup["settings"], **overrides}
    )
    return runs.create_run(run, data, work / setup["run"])


def train_ours(work: Path, setup: dict[str, Any]) -> None:
    """Train as the process of a run does. Raises SystemExit if the training fails."""
    from core.schema.events import Failed
    from core.train.trainer.loop import train

    folder = prepare_run(work, setup)
    with folder.lock():
        for event in train(folder):
            if isinstance(event, Failed):
                raise SystemExit(event.message)


def compare_first_step(work: Path, setup: dict[str, Any]) -> dict[str, float]:
    """Return our loss and gradient on a peer's first batch, with theirs beside them.

    The batch has the peer's matrices, noise and times. The sizes are those that we find ourselves,
    and so is the text where there is only one caption.
    """
    from safetensors.torch import load_file

    from core.lora.blocks import to_sai
    from core.models import bases
    from core.prompts.conditioning import Conditioning
    from core.schema.events import Loss
    from core.train.trainer.distributed import SingleProcess
    from core.train.trainer.loop import Trainer
    from core.train.trainer.run_record import read_run

    seen = load_file(setup["first"])
    folder = prepare_run(work, setup, steps=1)
    run = read_run(folder)
    session = Trainer(folder, SingleProcess(), run, bases.load_model(run.model))
    theirs = {
        name.removeprefix("lora ").replace(".default.", "."): value
        for name, value in seen.items()
        if name.startswith("lora ")
    }
    parts = {"lora_A": "lora_down", "lora_B": "lora_up"}
    for name, matrix in session.adapter.pipeline.unet.named_parameters():
        if matrix.requires_grad:
            path, part, _ = name.replace(".default.", ".").rsplit(".", 2)
            kohyas = f"lora_unet_{to_sai(path.replace('.', '_'))}.{parts[part]}.weight"
            value = theirs.pop(kohyas if kohyas in theirs else f"{path}.{part}.weight")
            matrix.data.copy_(value.view_as(matrix))
    assert not theirs, f"not trained by us: {list(theirs)[:3]}"
    for _ in session.batches.cache_latents():
        pass
    own = session.batches.make_batch(0, range(len(seen["times"])))
    text = Conditioning(seen["states"], seen["pooled"]) if setup["prompt"] is None else own.text
    batch = own._replace(latents=seen["clean"], noise=seen["noise"], timesteps=seen["times"], text=text)
    session.batches.make_batch = lambda *_: batch
    (loss,) = (event for event in session.run_steps(math.inf) if isinstance(event, Loss))
    return {
        "loss": loss.loss,
        "their_loss": float(seen["loss"]),
        "gradient": loss.norm,
        "their_gradient": float(seen["norm"]),
    }


def main() -> None:
    """Do a part in a folder and write a report: `peers.py PART WORK REPORT TURNS ARGUMENTS`.

    TURNS are the descriptors that a training waits at and reports to, and how many steps come
    before the turns and in each.
    """
    part, work, report, turns, arguments = (
        sys.argv[1],
        Path(sys.argv[2]).resolve(),
        Path(sys.argv[3]),
        sys.argv[4],
        sys.argv[5:],
    )
    if part in ("diffusers", "kohya"):
        watch = TrainingProbe(work, turns)
        {"diffusers": run_diffusers, "kohya": run_kohya}[part](watch, arguments)
        found: Any = watch.report()
    else:
        sys.path.insert(0, str(ROOT))
        told = json.loads(arguments[0])
        if part == "ours":
            watch = TrainingProbe(work, turns)
            train_ours(work, told)
            found = watch.report()
        else:
            found = {"make": make_data, "first": compare_first_step}[part](work, told)
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
