"""Train the example LoRA: `python -m tests.lora.example`.

It writes presets/loras/nano-airbrush.safetensors, a style LoRA by plain PEFT: 15 airbrushed
drawings, soft gradients without a line, whose captions do not name the style; attention of nano's
U-Net only, rank 4, alpha 2, 300 steps of 4 at 5e-4. In kohya's layout, as most LoRAs are, with twice
the alpha, so that it works near 1, as most LoRAs do. The drawings go into the folder of its name.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from core.lora.blocks import to_sai
from core.nano.lessons import CaptionedPictures, make_airbrush_set

ROOT = Path(__file__).parent.parent.parent
NANO = ROOT / "core" / "nano" / "weights" / "nano"
EXAMPLE_FILE = ROOT / "presets" / "loras" / "nano-airbrush.safetensors"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
STYLE_CONFIG = LoraConfig(r=4, lora_alpha=2, target_modules=ATTENTION)
FILE_ALPHA = 4
STEPS, LEARNING_RATE = 300, 5e-4


def train_lora(
    pipeline: StableDiffusionXLPipeline,
    samples: CaptionedPictures,
    name: str,
    config: LoraConfig,
    steps: int = STEPS,
    rate: float = LEARNING_RATE,
) -> None:
    """Train a plain PEFT LoRA on the U-Net: batches of 4, epsilon, AdamW."""
    unet, vae = pipeline.unet, pipeline.vae
    torch.manual_seed(0)
    unet.requires_grad_(False)
    unet.add_adapter(config, adapter_name=name)
    pixels = torch.stack(
        [torch.tensor(np.asarray(p)).permute(2, 0, 1).float() / 127.5 - 1 for p, _ in samples]
    )
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        states, _, pooled, _ = pipeline.encode_prompt(
            [text for _, text in samples],  # type: ignore[arg-type]
            do_classifier_free_guidance=False,
        )
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimiser = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=rate)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]]).repeat(4, 1)
    for _ in range(steps):
        pick = torch.randint(len(samples), (4,))
        noise, t = torch.randn(4, *latents.shape[1:]), torch.randint(1000, (4,))
        noisy = schedule.add_noise(latents[pick], noise, t)  # type: ignore[arg-type]
        predicted = unet(
            noisy, t, states[pick], added_cond_kwargs={"text_embeds": pooled[pick], "time_ids": ids}
        ).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        optimiser.step()
        optimiser.zero_grad()


def save_lora(
    pipeline: StableDiffusionXLPipeline, name: str, config: LoraConfig, samples: CaptionedPictures, file: Path
) -> None:
    """Save the adapter in kohya's layout, half precision, with kohya's metadata on its training."""
    tensors: dict[str, torch.Tensor] = {}
    for key, value in get_peft_model_state_dict(pipeline.unet, adapter_name=name).items():
        module, part, _ = key.rsplit(".", 2)
        flat = f"lora_unet_{to_sai(module.replace('.', '_'))}"
        tensors[f"{flat}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value.half().contiguous()
        tensors[f"{flat}.alpha"] = torch.tensor(float(FILE_ALPHA))
    counts = Counter(tag for _, caption in samples for tag in caption.split(", "))
    told = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.r,
        "ss_network_alpha": FILE_ALPHA,
        "ss_base_model_version": "nano",
        "ss_sd_model_name": "nano",
        "ss_resolution": "(128, 128)",
        "ss_learning_rate": LEARNING_RATE,
        "ss_max_train_steps": STEPS,
        "ss_tag_frequency": json.dumps({"1_airbrush": counts}),
        "modelspec.title": "nano airbrush",
        "modelspec.license": "apache-2.0",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {key: str(value) for key, value in told.items()})


def main() -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(NANO)
    samples = make_airbrush_set()
    train_lora(pipeline, samples, "style", STYLE_CONFIG)
    save_lora(pipeline, "style", STYLE_CONFIG, samples, EXAMPLE_FILE)
    EXAMPLE_FILE.with_suffix("").mkdir(exist_ok=True)
    for number, (picture, _) in enumerate(samples):  # the references of a sweep of it
        picture.save(EXAMPLE_FILE.with_suffix("") / f"{number:02}.png", optimize=True)
    print(f"{EXAMPLE_FILE.relative_to(ROOT)}: {EXAMPLE_FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
