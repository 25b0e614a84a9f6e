"""Denoising from a picture and inside a mask, against diffusers' img2img and inpaint pipelines."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from core.generate.stages import schedules
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
OLD, OLD_KARRAS = samplers.OLD_SCHEDULES
PAIRS = [("Euler a", OLD), ("DPM++ 2M", OLD_KARRAS), ("DDIM", OLD), ("Euler", OLD), ("Heun", OLD)]


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


def load_diffusers_pipeline(kind: type, sampler: str, schedule: str):
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    made = kind(**pipeline.components, requires_aesthetics_score=False)
    made.scheduler = samplers.make_scheduler(sampler, schedule, pipeline.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def denoise_to_end(request: Request, start: DenoiseStart) -> torch.Tensor:
    *_, moment = denoise(bases.load_model("nano"), [request], start)
    return moment.latents


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_from_a_picture_as_img2img(clean_latents: torch.Tensor, sampler: str, schedule: str) -> None:
    request = replace(REQUEST, sampler=sampler, schedule=schedule)
    reference = load_diffusers_pipeline(StableDiffusionXLImg2ImgPipeline, sampler, schedule)(
        image=clean_latents, **to_pipeline_kwargs(request)
    ).images
    difference = (
        (denoise_to_end(request, DenoiseStart(clean_latents, SCHEDULE_STEPS)) - reference).abs().max()
    )
    assert difference <= 1e-4, f"{sampler}: {difference:.1e}"


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS[:3])
def test_inside_a_mask_as_inpaint(clean_latents: torch.Tensor, sampler: str, schedule: str) -> None:
    request = replace(REQUEST, sampler=sampler, schedule=schedule)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 6:14] = 1
    pixels = mask.repeat_interleave(8, -1).repeat_interleave(8, -2)
    reference = load_diffusers_pipeline(StableDiffusionXLInpaintPipeline, sampler, schedule)(
        image=clean_latents, mask_image=pixels, width=128, height=128, **to_pipeline_kwargs(request)
    ).images
    made = denoise_to_end(request, DenoiseStart(clean_latents, SCHEDULE_STEPS, mask))
    assert (made - reference).abs().max() <= 1e-4
    assert torch.equal((made * (1 - mask)), clean_latents * (1 - mask)), (
        "outside the mask the latents stay bit for bit"
    )
    assert (made - clean_latents).abs().max() > 0.1


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_keeps_what_lies_outside_a_mask(clean_latents: torch.Tensor, sampler: str) -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 6:14] = 1
    request = replace(REQUEST, sampler=sampler)
    made = denoise_to_end(request, DenoiseStart(clean_latents, SCHEDULE_STEPS, mask))
    assert torch.equal(made * (1 - mask), clean_latents * (1 - mask)), "bit for bit"
    assert 0.1 < (made - clean_latents).abs().max() < 8


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_redraws_a_picture_that_still_resembles_it(
    clean_latents: torch.Tensor, sampler: str
) -> None:
    """Started at a low level, as hires is, a sampler must not begin with other noise than it takes away."""
    request = replace(REQUEST, sampler=sampler, steps=4, cfg=1.5)
    made = denoise_to_end(request, DenoiseStart(clean_latents, 20))
    assert (made - clean_latents).std() < 0.6 * clean_latents.std()


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_every_sampler_ends_at_the_picture_that_the_model_predicts(
    clean_latents: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    prediction_type: str,
    zero_snr: bool,
) -> None:
    """Whether it predicts noise or v, and also where the last level has no signal at all."""
    pipeline = bases.load_model("nano")
    config = {**pipeline.scheduler.config, "rescale_betas_zero_snr": zero_snr}
    config["prediction_type"] = prediction_type
    monkeypatch.setattr(pipeline, "scheduler", pipeline.scheduler.from_config(config))
    own = schedules.find_model_levels(pipeline.scheduler.config)

    def predict(seen: torch.Tensor, t: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = float(schedules.sigma_at(own, float(t)))
        signal, noise = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        said = (seen - signal * clean_latents) / noise
        if prediction_type == "v_prediction":
            said = signal * said - noise * clean_latents
        return said, said

    monkeypatch.setattr("core.generate.stages.denoise.make_predictor", lambda *_: predict)
    *_, made = denoise(pipeline, [replace(REQUEST, sampler=sampler, schedule="Karras", steps=8)])
    assert (made.latents - clean_latents).abs().max() < 2e-3


def test_the_vae_gives_back_a_picture(clean_latents: torch.Tensor) -> None:
    (picture,) = decode(bases.load_model("nano"), clean_latents)
    drawn = draw_scene(make_scene(3, (128, 128)))
    off = torch.tensor(list(picture.tobytes())).float() - torch.tensor(list(drawn.tobytes())).float()
    assert off.abs().mean() < 16, "mean error in 0..255"
