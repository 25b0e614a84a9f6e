"""Denoising from a picture and inside a mask, against diffusers' img2img and inpaint pipelines."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from core.generate.stages.denoise import DenoiseStart, decode, denoise, encode_pictures
from core.models import bases
from core.nano.draw import draw_scene
from core.nano.pictures import make_scene
from core.schema import samplers
from core.schema.types import Request
from core.system import paths

SCHEDULE_STEPS, DENOISE = 10, 0.6
REQUEST = Request(
    model="nano",
    prompt="1girl, red hair",
    negative="low quality",
    width=128,
    height=128,
    steps=6,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
)
SAMPLERS = ["Euler a", "DPM++ 2M Karras", "DDIM", "Euler", "Heun"]


@pytest.fixture(scope="module")
def clean_latents() -> torch.Tensor:
    return encode_pictures(bases.load_model("nano"), [draw_scene(make_scene(3, (128, 128)))])


def to_pipeline_kwargs(request: Request) -> dict:
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "num_inference_steps": SCHEDULE_STEPS,
        "strength": DENOISE,
        "guidance_scale": request.cfg,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "latent",
    }


def load_diffusers_pipeline(kind: type, sampler: str):
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    made = kind(**pipeline.components, requires_aesthetics_score=False)
    made.scheduler = samplers.make_scheduler(sampler, pipeline.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def denoise_to_end(request: Request, start: DenoiseStart) -> torch.Tensor:
    *_, moment = denoise(bases.load_model("nano"), [request], start)
    return moment.latents


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_a_picture_as_img2img(clean_latents: torch.Tensor, sampler: str) -> None:
    request = replace(REQUEST, sampler=sampler)
    reference = load_diffusers_pipeline(StableDiffusionXLImg2ImgPipeline, sampler)(
        image=clean_latents, **to_pipeline_kwargs(request)
    ).images
    difference = (
        (denoise_to_end(request, DenoiseStart(clean_latents, SCHEDULE_STEPS)) - reference).abs().max()
    )
    assert difference <= 1e-4, f"{sampler}: {difference:.1e}"


@pytest.mark.parametrize("sampler", SAMPLERS[:3])
def test_inside_a_mask_as_inpaint(clean_latents: torch.Tensor, sampler: str) -> None:
    request = replace(REQUEST, sampler=sampler)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 6:14] = 1
    pixels = mask.repeat_interleave(8, -1).repeat_interleave(8, -2)
    reference = load_diffusers_pipeline(StableDiffusionXLInpaintPipeline, sampler)(
        image=clean_latents, mask_image=pixels, width=128, height=128, **to_pipeline_kwargs(request)
    ).images
    made = denoise_to_end(request, DenoiseStart(clean_latents, SCHEDULE_STEPS, mask))
    assert (made - reference).abs().max() <= 1e-4
    assert torch.equal((made * (1 - mask)), clean_latents * (1 - mask)), (
        "outside the mask the latents stay bit for bit"
    )
    assert (made - clean_latents).abs().max() > 0.1


def test_the_vae_gives_back_a_picture(clean_latents: torch.Tensor) -> None:
    (picture,) = decode(bases.load_model("nano"), clean_latents)
    drawn = draw_scene(make_scene(3, (128, 128)))
    off = torch.tensor(list(picture.tobytes())).float() - torch.tensor(list(drawn.tobytes())).float()
    assert off.abs().mean() < 16, "mean error in 0..255"
