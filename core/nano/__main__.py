"""`make nano`: draws the pictures and trains every embedded model from scratch; resumable."""

import re
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline

from core.nano import descend, detector, expander, tagger, text, unet, upscaler, vae
from core.nano.stage import BUILD_FOLDER

WEIGHTS = Path(__file__).parent / "weights"


def main() -> None:
    """Run the stages in order; a finished one costs seconds."""
    # Denormal values are slow to compute with. Set this before torch starts its threads.
    torch.set_flush_denormal(True)
    tagger.save_tagger(tagger.train_tagger("tagger", tagger.STEPS, seed=0), WEIGHTS / "tagger")
    detector.save_detector(detector.train_detector(), WEIGHTS / "detector")
    upscaler.save_upscaler(upscaler.train_upscaler(), WEIGHTS / "upscaler")
    expander.save_expander(*expander.train_expander(), WEIGHTS / "expander")
    encoders = unet.TextEncoders(*text.train_text_encoders(BUILD_FOLDER / "tokenizer"))
    images = vae.train_vae()
    save_pipeline(images, encoders, unet.train_unet(images, encoders), WEIGHTS / "nano")
    for name in descend.DESCENDANTS:
        descend.train_descendant(name, WEIGHTS / "nano", images, encoders).half().save_pretrained(
            WEIGHTS / f"nano-{name}"
        )
        strip_source_paths(WEIGHTS / f"nano-{name}")


def save_pipeline(
    images: vae.AutoencoderKL, encoders: unet.TextEncoders, denoiser: unet.UNet2DConditionModel, folder: Path
) -> None:
    """Save the model in diffusers' SDXL layout, so that diffusers opens it unaided.

    U-Net and VAE are saved in float16. The text encoders stay float32: diffusers opens either
    precision as float32, but transformers keeps what it finds.
    """
    pipeline = StableDiffusionXLPipeline(
        vae=deepcopy(images).half(),
        text_encoder=encoders.first,
        text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizer,
        tokenizer_2=encoders.tokenizer,
        unet=deepcopy(denoiser).half(),
        scheduler=EulerAncestralDiscreteScheduler.from_config(
            unet.make_ddpm_scheduler().config, timestep_spacing="leading", steps_offset=1
        ),  # type: ignore[arg-type]
        force_zeros_for_empty_prompt=False,  # nano is trained on the empty prompt
        add_watermarker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    strip_source_paths(folder)


def strip_source_paths(folder: Path) -> None:
    """Remove from a folder's configs where its parts were opened from, which is private."""
    for file in folder.rglob("*.json"):
        file.write_text(re.sub(r'\n *"_name_or_path": ".*?",', "", file.read_text()))


if __name__ == "__main__":
    main()
