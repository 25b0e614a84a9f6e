"""SDXL's own U-Net and VAE, with few channels and random weights, at sides that are multiples of 8 only.

The U-Net halves a latent's sides twice. Where that leaves a rest, the way up must come back to the same
sides. 840 x 1000 pixels have the rests of 72 x 104.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

import core.models
from core.generate.stages.denoise import decode, denoise
from core.generate.stages.hires import output_size, prepare_hires_start
from core.models import bases
from core.schema import samplers
from core.schema.types import Hires, Request

CONFIGS = Path(core.models.__file__).parent / "sdxl"
SCHEDULE = next(iter(samplers.OLD_SCHEDULES))


@pytest.fixture(scope="module")
def small_sdxl() -> StableDiffusionXLPipeline:
    """SDXL with nano's text encoders."""
    torch.manual_seed(0)
    nano = bases.load_model("nano")
    unet, vae = (
        json.loads((CONFIGS / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae")
    )
    unet |= {"block_out_channels": (16, 32, 32), "attention_head_dim": (2, 4, 4), "norm_num_groups": 8}
    unet |= {name: nano.unet.config[name] for name in unet if name.endswith(("attention_dim", "embed_dim"))}
    unet["projection_class_embeddings_input_dim"] = nano.unet.config["projection_class_embeddings_input_dim"]
    vae |= {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
    parts = {"unet": UNet2DConditionModel.from_config(unet), "vae": AutoencoderKL.from_config(vae)}
    pipeline = StableDiffusionXLPipeline(
        **{**nano.components, **{name: part.eval() for name, part in parts.items()}}
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("width", "height"), [(72, 104), (120, 88), (80, 112)])
def test_a_picture_has_the_sides_that_were_chosen(
    small_sdxl: StableDiffusionXLPipeline, width: int, height: int
) -> None:
    """And is diffusers' own, before and after a second pass to sides of the same kind."""
    request = Request(
        prompt="1girl, red hair",
        negative="low quality",
        width=width,
        height=height,
        steps=2,
        cfg=5.0,
        sampler="Euler",
        schedule=SCHEDULE,
        model="nano",
        seed=7,
        hires=Hires(upscaler="Latent", factor=1.3, denoise=0.5),
    )
    *_, first = denoise(small_sdxl, [request])
    (picture,) = decode(small_sdxl, first.latents)
    assert picture.size == (width, height)

    reference = StableDiffusionXLPipeline(
        **{
            **small_sdxl.components,
            "scheduler": samplers.make_scheduler("Euler", SCHEDULE, small_sdxl.scheduler.config),
        }
    )
    reference.set_progress_bar_config(disable=True)
    theirs = reference(
        prompt=request.prompt,
        negative_prompt=request.negative,
        width=width,
        height=height,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    assert isinstance(theirs, torch.Tensor)
    assert (first.latents - theirs).abs().max() <= 1e-4

    larger = output_size(request)
    start = prepare_hires_start(small_sdxl, [request], first.latents, [picture])
    *_, second = denoise(small_sdxl, [replace(request, width=larger[0], height=larger[1])], start)
    assert decode(small_sdxl, second.latents)[0].size == larger
