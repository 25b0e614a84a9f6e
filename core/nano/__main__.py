"""`make nano`: draws the pictures and trains every embedded model, from nothing; resumable."""

import re
import shutil
from pathlib import Path

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline

from core.nano import descend, detector, expander, tagger, text, unet, upscaler, vae
from core.nano.stage import BUILD

WEIGHTS = Path(__file__).parent / "weights"


def main() -> None:
    """Run the stages in order; a finished one costs seconds."""
    torch.set_flush_denormal(True)  # values that fade to nothing are slow; set before torch starts its threads
    tagger.save(tagger.train(), WEIGHTS / "tagger")
    detector.save(detector.train(), WEIGHTS / "detector")
    upscaler.save(upscaler.train(), WEIGHTS / "upscaler")
    expander.save(*expander.train(), WEIGHTS / "expander")
    encoders = unet.Encoders(*text.train(BUILD / "tokenizer"))
    images = vae.train()
    save(images, encoders, unet.train(images, encoders), WEIGHTS / "nano")
    for name in descend.DESCENDANTS:
        descend.train(name, WEIGHTS / "nano", images, encoders).half().save_pretrained(WEIGHTS / f"nano-{name}")
        anonymous(WEIGHTS / f"nano-{name}")


def save(images: vae.AutoencoderKL, encoders: unet.Encoders, denoiser: unet.UNet2DConditionModel, folder: Path) -> None:
    """Write the model as diffusers lays SDXL out, so that its pipeline opens it with no help."""
    pipeline = StableDiffusionXLPipeline(
        vae=images,
        text_encoder=encoders.first,
        text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizer,
        tokenizer_2=encoders.tokenizer,
        unet=denoiser,
        scheduler=EulerAncestralDiscreteScheduler.from_config(unet.schedule().config, timestep_spacing="leading", steps_offset=1),  # type: ignore[arg-type]
        force_zeros_for_empty_prompt=False,  # nano learned the empty prompt itself
        add_watermarker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.unet.half()  # diffusers opens either precision as float32; transformers keeps what it finds,
    pipeline.vae.half()  # so the small text encoders stay float32
    pipeline.save_pretrained(folder)
    anonymous(folder)


def anonymous(folder: Path) -> None:
    """Take out of a folder's configs where its parts were opened from, which is nobody's business."""
    for file in folder.rglob("*.json"):
        file.write_text(re.sub(r'\n *"_name_or_path": ".*?",', "", file.read_text()))


if __name__ == "__main__":
    main()
