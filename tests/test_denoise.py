"""Denoising from a picture and inside a mask, beside diffusers' img2img and inpaint pipelines."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline

from core import models, paths, samplers
from core.denoise import Start, decode, denoise, encode_pictures
from core.nano.draw import draw
from core.nano.pictures import scene
from core.types import Request

SCHEDULE, DENOISE = 10, 0.6
REQUEST = Request(model="nano", prompt="1girl, red hair", negative="low quality", width=128, height=128, steps=6, cfg=5.0, sampler="Euler a", seed=7)
SAMPLERS = ["Euler a", "DPM++ 2M Karras", "DDIM", "Euler", "Heun"]


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    return encode_pictures(models.load("nano"), [draw(scene(3, (128, 128)))])


def settings(request: Request) -> dict:
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "num_inference_steps": SCHEDULE,
        "strength": DENOISE,
        "guidance_scale": request.cfg,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "latent",
    }


def theirs(kind: type, sampler: str):
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(models.find("nano").source))
    made = kind(**pipeline.components, requires_aesthetics_score=False)
    made.scheduler = samplers.make(sampler, pipeline.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def last(request: Request, start: Start) -> torch.Tensor:
    *_, moment = denoise(models.load("nano"), [request], start)
    return moment.latents


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_a_picture_as_img2img(clean: torch.Tensor, sampler: str) -> None:
    request = replace(REQUEST, sampler=sampler)
    reference = theirs(StableDiffusionXLImg2ImgPipeline, sampler)(image=clean, **settings(request)).images
    difference = (last(request, Start(clean, SCHEDULE)) - reference).abs().max()
    assert difference <= 1e-4, f"{sampler}: {difference:.1e}"


@pytest.mark.parametrize("sampler", SAMPLERS[:3])
def test_inside_a_mask_as_inpaint(clean: torch.Tensor, sampler: str) -> None:
    request = replace(REQUEST, sampler=sampler)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 6:14] = 1
    pixels = mask.repeat_interleave(8, -1).repeat_interleave(8, -2)
    reference = theirs(StableDiffusionXLInpaintPipeline, sampler)(image=clean, mask_image=pixels, width=128, height=128, **settings(request)).images
    made = last(request, Start(clean, SCHEDULE, mask))
    assert (made - reference).abs().max() <= 1e-4
    assert torch.equal((made * (1 - mask)), clean * (1 - mask)), "outside the mask the latents stay bit for bit"
    assert (made - clean).abs().max() > 0.1


def test_the_vae_gives_back_a_picture(clean: torch.Tensor) -> None:
    (picture,) = decode(models.load("nano"), clean)
    drawn = draw(scene(3, (128, 128)))
    off = torch.tensor(list(picture.tobytes())).float() - torch.tensor(list(drawn.tobytes())).float()
    assert off.abs().mean() < 16, "mean error in 0..255"
