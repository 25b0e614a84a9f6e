"""The denoising loop beside diffusers' own pipeline, alone and in batches."""

import threading
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from core import gpu, models, paths, samplers
from core.denoise import denoise
from core.device import on_zero_gpu
from core.events import Failed, Picture, Step
from core.generate import generate
from core.together import batches
from core.types import Cell, Request

REQUEST = Request(model="nano", prompt="1girl, blue hair, smile", negative="low quality", width=128, height=128, steps=6, cfg=5.0, sampler="Euler a", seed=7)


def cells(*requests: Request) -> list[Cell]:
    return [Cell(label=str(r.seed), request=r) for r in requests]


def latents(*requests: Request) -> torch.Tensor:
    *_, last = denoise(models.load("nano"), requests)
    return last.latents


@pytest.fixture(scope="module")
def theirs() -> StableDiffusionXLPipeline:
    """diffusers' pipeline, opened with no help of ours."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(models.find("nano").source))
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):  # in memory as ours are: at another alignment BLAS adds up in another order
        for weight in part.parameters():
            weight.data = weight.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_diffusers(pipeline: StableDiffusionXLPipeline, request: Request) -> torch.Tensor:
    own, pipeline.scheduler = pipeline.scheduler, samplers.make(request.sampler, pipeline.scheduler.config)
    made = pipeline(
        request.prompt,
        negative_prompt=request.negative or None,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).images
    assert isinstance(made, torch.Tensor)
    pipeline.scheduler = own  # or the next sampler would inherit this one's settings
    return made


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_makes_diffusers_latents(theirs: StableDiffusionXLPipeline, sampler: str) -> None:
    request = replace(REQUEST, sampler=sampler)
    difference = (latents(request) - by_diffusers(theirs, request)).abs().max()
    assert difference <= 1e-4, f"{sampler}: {difference:.1e}"


@pytest.mark.parametrize("change", [{"width": 192}, {"height": 192}, {"cfg": 1.0}, {"negative": ""}, {"cfg": 7.5, "seed": 2**32 - 1}, {"steps": 1}])
def test_every_setting_makes_diffusers_latents(theirs: StableDiffusionXLPipeline, change: dict) -> None:
    request = replace(REQUEST, **change)
    assert (latents(request) - by_diffusers(theirs, request)).abs().max() <= 1e-4


def test_a_batch_is_its_single_runs() -> None:
    requests = [
        replace(REQUEST, seed=seed, cfg=cfg, prompt=prompt) for seed, cfg, prompt in ((1, 3, "1girl"), (2, 5, "1girl"), (3, 5, "apple"), (4, 9, "1girl"))
    ]
    together = latents(*requests)
    for i, request in enumerate(requests):
        difference = (together[i : i + 1] - latents(request)).abs().max()
        assert difference <= 5e-5 * request.cfg, f"picture {i} of the batch differs from its single run"  # guidance multiplies the noise of batching


def test_one_request_does_not_touch_the_next() -> None:
    before = latents(REQUEST)
    latents(replace(REQUEST, sampler="DPM++ 2M Karras", cfg=9.0, prompt="apple"))
    torch.manual_seed(123)
    stopped = generate(cells(replace(REQUEST, seed=9)))
    next(stopped)
    stopped.close()
    assert torch.equal(before, latents(REQUEST))


def test_a_job_takes_no_global_randomness() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(generate(cells(REQUEST)))
    assert torch.equal(before, torch.get_rng_state())


def test_events_tell_of_every_step_and_picture() -> None:
    events = list(generate(cells(REQUEST, replace(REQUEST, seed=8), replace(REQUEST, width=64)), previews=True))
    steps, pictures = [e for e in events if isinstance(e, Step)], [e for e in events if isinstance(e, Picture)]
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6] * 2
    assert [e.index for e in pictures] == [0, 1, 2]
    assert [e.image.size for e in pictures] == [(128, 128), (128, 128), (64, 128)]
    assert len(steps[0].previews) == 2, "a preview of each picture of the batch"
    assert not steps[5].previews, "the last step needs no preview: the picture follows"
    assert steps[-1].pictures_done == 2
    assert steps[0].seconds_left > steps[-1].seconds_left == 0


def test_batches_hold_what_goes_together() -> None:
    long = ", ".join(["blue hair"] * 60)
    changes = [{}, {"width": 64}, {"seed": 2}, {"cfg": 1.0}, {"sampler": "DDIM"}, {"prompt": long}, {"negative": long}]
    mixed = [replace(REQUEST, **change) for change in changes]
    pipeline = models.load("nano")
    assert sorted(batches(pipeline, mixed)) == [[0, 2], [1], [3], [4], [5, 6]]
    assert [len(b) for b in batches(pipeline, [replace(REQUEST, seed=i) for i in range(20)])] == [7, 7, 6]


def test_the_door_turns_what_a_person_should_know_into_an_event() -> None:
    (event,) = gpu.run(cells(replace(REQUEST, model="nothing")))
    assert isinstance(event, Failed)
    assert "'nothing' is unknown" in event.message


def test_zero_gpu_is_asked_for_whole_bounded_seconds() -> None:
    large = replace(REQUEST, width=1024, height=1024, steps=25)
    models.load("nano")
    assert gpu.duration(cells(REQUEST)) == 16
    assert gpu.duration(cells(large)) == 18
    assert gpu.duration(cells(*[large] * 100)) == gpu.LONGEST


@pytest.mark.skipif(on_zero_gpu(), reason="jobs that run at once have a GPU and a model each")
def test_one_job_at_a_time_has_the_model() -> None:
    """A stopped job's place is given away before it has cleaned up; the next one waits for it all the same."""
    first = gpu.run(cells(replace(REQUEST, steps=40)))
    next(first)
    done: list[float] = []

    def second() -> None:
        list(gpu.run(cells(REQUEST)))
        done.append(1)

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(timeout=1.5)
    assert not done, "the second job began while the first had the model"
    first.close()
    thread.join(timeout=60)
    assert done
