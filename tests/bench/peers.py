"""What `train.py` runs in processes of their own: a small model, our trainer, a peer's script as it is, and the first step compared.

A peer's script is run unchanged and watched from outside, where torch and accelerate are the same for all: the end of each
step of its optimiser, and its first loss with all that led to it. Only torch is imported at the top: a peer may need other
versions of the rest than ours.
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

BEGIN = time.time()
ROOT = Path(__file__).resolve().parent.parent.parent

import torch  # noqa: E402  (its import is part of a start)
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
"""The folders in which kohya's script looks for SDXL's two tokenizers."""
CHANNELS = 64
"""Of mini's first block, where SDXL has 320."""
SCALE = 0.13025
"""Of SDXL's latents, which kohya's script takes for granted."""
GROUP = "girl"


class Watch:
    """Of a training in this process: how long each of its turns took, how much memory all, what the first step was.

    A turn is some steps; before each, the training waits inside its optimiser's step until the parent lets it go on.
    """

    def __init__(self, work: Path, turns: str):
        self.work, self.started = work, 0.0
        self.wait, self.tell, self.warm, self.length = (int(number) for number in turns.split(","))
        self.steps, self.numbers = 0, 0
        self.turns: list[tuple[float, float]] = []
        """Seconds by the clock and of computing."""
        self.encoding = 0.0
        """Seconds in the VAE, since the first turn began."""
        self.seen: dict[str, torch.Tensor] = {}
        self.network: torch.nn.Module | None = None
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps += 1
        done = self.steps - self.warm
        if done < 0 or done % self.length:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if done:
            self.turns.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))
        else:
            self.started = time.time() - BEGIN
            self.numbers, self.encoding = sum(p.numel() for group in optimizer.param_groups for p in group["params"]), 0.0
        os.write(self.tell, b".")
        os.read(self.wait, 1)
        self.began = time.perf_counter(), time.process_time()

    def told(self) -> dict[str, Any]:
        gpu = torch.cuda.is_available()
        memory = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        device = torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
        found = {"started": self.started, "turns": self.turns, "encoding": self.encoding, "memory": memory, "parameters": self.numbers}
        return {**found, "device": device, "threads": torch.get_num_threads()}

    def look(self, unet: type[torch.nn.Module]) -> None:
        """Keep what comes first to the noise, to the U-Net, to the backward pass and to the clipping."""
        from accelerate import Accelerator
        from diffusers import AutoencoderKL, DDPMScheduler

        encode = AutoencoderKL.encode

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            made = encode(*args, **kwargs)
            self.encoding += time.perf_counter() - begin
            return made

        AutoencoderKL.encode = timed
        self._first(DDPMScheduler, "add_noise", self._noise)
        self._first(unet, "forward", self._unet)
        self._first(Accelerator, "backward", self._loss)
        self._first(Accelerator, "clip_grad_norm_", self._norm)

    def _first(self, owner: type, name: str, tell: Callable[..., None]) -> None:
        """Tell of the first call of a method; the others are the method's own."""
        plain = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            setattr(owner, name, plain)
            if name != "clip_grad_norm_":
                tell(*args, **kwargs)
                return plain(*args, **kwargs)
            norm = plain(*args, **kwargs)
            tell(norm)
            return norm

        setattr(owner, name, watched)

    def _keep(self, **tensors: torch.Tensor) -> None:
        self.seen |= {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}

    def _noise(self, _: Any, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> None:
        self._keep(clean=clean, noise=noise, times=times)

    def _unet(self, unet: torch.nn.Module, _noisy: Any, _times: Any, states: torch.Tensor, vector: Any = None, **more: Any) -> None:
        """Called as diffusers' U-Net is, or as kohya's, whose vector holds the sizes behind the pooled text."""
        self.network = self.network or unet  # PEFT's matrices are parts of the U-Net
        added = more.get("added_cond_kwargs")
        self._keep(states=states, pooled=vector[:, :1280] if added is None else added["text_embeds"])

    def _loss(self, _: Any, loss: torch.Tensor, **__: Any) -> None:
        assert self.network is not None
        self._keep(loss=loss, **{f"lora {name}": value for name, value in self.network.named_parameters() if value.requires_grad})

    def _norm(self, norm: torch.Tensor) -> None:
        from safetensors.torch import save_file

        self._keep(norm=norm)
        save_file(self.seen, self.work / "first.safetensors")
        self.seen.clear()


def diffusers(watch: Watch, script: list[str]) -> None:
    from diffusers import UNet2DConditionModel

    watch.look(UNet2DConditionModel)
    _run(script)


def kohya(watch: Watch, script: list[str]) -> None:
    """kohya's script; the widths that are written into its U-Net are mini's."""
    sys.path.insert(0, str(Path(script[0]).parent))
    from library import sdxl_original_unet  # type: ignore[import-not-found]
    from networks import lora  # type: ignore[import-not-found]

    sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = CHANNELS, 4 * CHANNELS
    plain = lora.create_network

    def create(*args: Any, **kwargs: Any) -> Any:
        watch.network = plain(*args, **kwargs)
        return watch.network

    lora.create_network = create
    watch.look(sdxl_original_unet.SdxlUNet2DConditionModel)
    _run(script)


def _run(script: list[str]) -> None:
    sys.argv = script
    try:
        runpy.run_path(script[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


# --- ours ----------------------------------------------------------------------------------------------


def make(work: Path, told: dict[str, Any]) -> None:
    """What all train: drawn pictures, in a folder whose name says how often they come, as kohya's script has it; and `mini`.

    mini is SDXL's topology with a fifth of its channels and random weights. Its text encoders have SDXL's widths and random
    weights, its VAE is nano's.
    """
    from core.nano.lessons import character

    folder = work / told["name"] / f"{told['repeats']}_{GROUP}"
    folder.mkdir(parents=True)
    for i, (picture, caption) in enumerate(character("kyoka", told["pictures"])):
        picture.resize((told["side"], told["side"])).save(folder / f"{i}.png")
        if told["prompt"] is None:
            (folder / f"{i}.txt").write_text(caption)
    if told["name"] == "mini":
        _mini(work / "models" / "mini")
        for name in ("tokenizer", "tokenizer_2"):
            _older(work / "models" / "mini" / name, work / "models" / "mini" / name)
        for name in TOKENIZERS:
            _older(work / "models" / "mini" / "tokenizer", work / "tokenizers" / name)


def _mini(into: Path) -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from core import models

    torch.manual_seed(0)
    nano = models.load("nano")
    shape: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (CHANNELS, 2 * CHANNELS, 4 * CHANNELS), "layers_per_block": 2, "attention_head_dim": (1, 2, 4),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    words = {name: getattr(nano.text_encoder.config, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    one = CLIPTextConfig(hidden_size=768, projection_dim=768, intermediate_size=256, num_attention_heads=12, num_hidden_layers=12, **words)
    two = CLIPTextConfig(hidden_size=1280, projection_dim=1280, intermediate_size=256, num_attention_heads=20, num_hidden_layers=3, **words)
    nano.vae.register_to_config(scaling_factor=SCALE)
    own = {"unet": UNet2DConditionModel(**shape), "text_encoder": CLIPTextModel(one), "text_encoder_2": CLIPTextModelWithProjection(two)}
    StableDiffusionXLPipeline(**{**nano.components, **own}).save_pretrained(into)


def _older(tokenizer: Path, into: Path) -> None:
    """A tokenizer in the form that transformers 4 reads."""
    into.mkdir(parents=True, exist_ok=True)
    told = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (into / "vocab.json").write_text(json.dumps(told["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["merges"]]
    (into / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    if tokenizer != into:
        shutil.copyfile(tokenizer / "tokenizer_config.json", into / "tokenizer_config.json")


def mini(work: Path):
    """mini among the base models."""
    from core import presets
    from core.types import Model

    presets.models()["mini"] = Model(name="mini", title="mini", source=str(work / "models" / "mini"), native_size=128, licence="none")
    return presets.models()["mini"]


def prepared(work: Path, told: dict[str, Any], recipe: str = "nano-quick", **overrides: Any):
    """The folder of a run as `told` describes it."""
    from core.data.dataset import Dataset, Sample
    from core.train import runs

    mini(work)
    side, samples = told["side"], []
    folder = work / told["name"] / f"{told['repeats']}_{GROUP}"
    for i in range(told["pictures"]):
        caption = (folder / f"{i}.txt").read_text() if told["prompt"] is None else told["prompt"]
        samples.append(Sample(file=f"{i}.png", name=f"{i}.png", caption=caption, width=side, height=side, repeats=told["repeats"], group=GROUP))
    data = Dataset(folder=folder, samples=tuple(samples))
    sizes = {"resolution": side, "least_side": side, "most_side": side}
    usual = {"optimizer": "AdamW", "scheduler": "constant", "precision": "float32", "preview_every": 0, "save_every": 100_000}
    run, _ = runs.settled(data, recipe, told["name"], overrides={**usual, **sizes, **told["settings"], **overrides})
    return runs.prepared(run, data, work / told["run"])


def ours(work: Path, told: dict[str, Any]) -> None:
    """Train as the process of a run does."""
    from core.events import Failed
    from core.train.loop import train

    folder = prepared(work, told)
    with folder.owned():
        for event in train(folder):
            if isinstance(event, Failed):
                raise SystemExit(event.message)


def first(work: Path, told: dict[str, Any]) -> dict[str, float]:
    """Our loss and gradient on a peer's first batch, with its matrices, noise and times; theirs beside them.

    The sizes are those that we find ourselves, and so is the text where there is but one caption.
    """
    from safetensors.torch import load_file

    from core import models
    from core.blocks import to_sai
    from core.encode import Conditioning
    from core.events import Loss
    from core.train.fellows import Alone
    from core.train.loop import Session
    from core.train.run import read

    seen = load_file(told["first"])
    folder = prepared(work, told, steps=1)
    run = read(folder)
    session = Session(folder, Alone(), run, models.load(run.model))
    theirs = {name.removeprefix("lora ").replace(".default.", "."): value for name, value in seen.items() if name.startswith("lora ")}
    parts = {"lora_A": "lora_down", "lora_B": "lora_up"}
    for name, matrix in session.adapter.pipeline.unet.named_parameters():
        if matrix.requires_grad:
            path, part, _ = name.replace(".default.", ".").rsplit(".", 2)
            kohyas = f"lora_unet_{to_sai(path.replace('.', '_'))}.{parts[part]}.weight"
            value = theirs.pop(kohyas if kohyas in theirs else f"{path}.{part}.weight")
            matrix.data.copy_(value.view_as(matrix))
    assert not theirs, f"not trained by us: {list(theirs)[:3]}"
    for _ in session.lessons.prepare():
        pass
    own = session.lessons.batch(0, range(len(seen["times"])))
    text = Conditioning(seen["states"], seen["pooled"]) if told["prompt"] is None else own.text
    batch = own._replace(clean=seen["clean"], noise=seen["noise"], times=seen["times"], text=text)
    session.lessons.batch = lambda *_: batch
    (loss,) = (event for event in session.steps(math.inf) if isinstance(event, Loss))
    return {"loss": loss.loss, "their_loss": float(seen["loss"]), "gradient": loss.norm, "their_gradient": float(seen["norm"])}


def main() -> None:
    """`peers.py PART WORK REPORT TURNS ARGUMENTS`: do a part in the folder WORK and tell of it in the file REPORT.

    TURNS are the descriptors that a training waits at and tells at, and how many steps come before the turns and in each.
    """
    part, work, report, turns, arguments = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]), sys.argv[4], sys.argv[5:]
    if part in ("diffusers", "kohya"):
        watch = Watch(work, turns)
        {"diffusers": diffusers, "kohya": kohya}[part](watch, arguments)
        found: Any = watch.told()
    else:
        sys.path.insert(0, str(ROOT))
        told = json.loads(arguments[0])
        if part == "ours":
            watch = Watch(work, turns)
            ours(work, told)
            found = watch.told()
        else:
            found = {"make": make, "first": first}[part](work, told)
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
