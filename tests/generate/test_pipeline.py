"""The denoising loop against diffusers' own pipeline, alone and in batches."""

import threading
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from core.generate.batching import group_into_batches
from core.generate.pipeline import generate
from core.generate.stages.denoise import denoise
from core.models import bases
from core.runtime import gpu, zerogpu
from core.schema import samplers
from core.schema.events import Failed, Picture, Step
from core.schema.types import Cell, Request
from core.system import paths
from core.system.device import is_zerogpu
from tests.euler_ancestral import make_euler_ancestral

REQUEST = Request(
    model="nano",
    prompt="1girl, blue hair, smile",
    negative="low quality",
    width=128,
    height=128,
    steps=6,
    cfg=5.0,
    sampler="Euler a",
    schedule="Sweetspot 0.1",
    seed=7,
)
OLD_PAIRS = [(sampler, schedule) for schedule, known in samplers.OLD_SCHEDULES.items() for sampler in known]


def make_cells(*requests: Request) -> list[Cell]:
    return [Cell(label=str(r.seed), request=r) for r in requests]


def denoise_latents(*requests: Request) -> torch.Tensor:
    *_, last = denoise(bases.load_model("nano"), requests)
    return last.latents


@pytest.fixture(scope="module")
def diffusers_pipeline() -> StableDiffusionXLPipeline:
    """diffusers' pipeline, opened without our code."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    # In memory as ours are: at another alignment BLAS adds up in another order.
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        for weight in part.parameters():
            weight.data = weight.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_with_diffusers(pipeline: StableDiffusionXLPipeline, request: Request) -> torch.Tensor:
    own, pipeline.scheduler = (
        pipeline.scheduler,
        make_euler_ancestral(pipeline.scheduler.config)
        if request.schedule == samplers.AUTOMATIC
        else samplers.make_scheduler(request.sampler, request.schedule, pipeline.scheduler.config),
    )
    made = pipeline(
        request.prompt,
        negative_prompt=request.negative or None,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        guidance_rescale=request.cfg_rescale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).images
    assert isinstance(made, torch.Tensor)
    pipeline.scheduler = own  # or the next sampler would inherit this one's settings
    return made


@pytest.mark.parametrize(("sampler", "schedule"), OLD_PAIRS)
def test_every_old_pair_makes_diffusers_latents(
    diffusers_pipeline: StableDiffusionXLPipeline, sampler: str, schedule: str
) -> None:
    request = replace(REQUEST, sampler=sampler, schedule=schedule)
    difference = (denoise_latents(request) - sample_with_diffusers(diffusers_pipeline, request)).abs().max()
    assert difference <= 1e-4, f"{sampler}: {difference:.1e}"


@pytest.mark.parametrize(
    "change",
    [
        {"width": 192},
        {"height": 192},
        {"cfg": 1.0},
        {"negative": ""},
        {"cfg": 7.5, "seed": 2**32 - 1},
        {"steps": 1},
        {"schedule": samplers.AUTOMATIC},
        {"schedule": samplers.AUTOMATIC, "steps": 1},
        {"cfg": 9.0, "cfg_rescale": 0.7},
        {"schedule": samplers.AUTOMATIC, "cfg": 9.0, "cfg_rescale": 1.0},
    ],
)
def test_every_setting_makes_diffusers_latents(
    diffusers_pipeline: StableDiffusionXLPipeline, change: dict
) -> None:
    request = replace(REQUEST, **change)
    assert (denoise_latents(request) - sample_with_diffusers(diffusers_pipeline, request)).abs().max() <= 1e-4


def test_a_batch_is_its_single_runs() -> None:
    requests = [
        replace(REQUEST, seed=seed, cfg=cfg, prompt=prompt)
        for seed, cfg, prompt in ((1, 3, "1girl"), (2, 5, "1girl"), (3, 5, "apple"), (4, 9, "1girl"))
    ]
    together = denoise_latents(*requests)
    for i, request in enumerate(requests):
        difference = (together[i : i + 1] - denoise_latents(request)).abs().max()
        # Guidance multiplies the noise of batching.
        assert difference <= 5e-5 * request.cfg, f"picture {i} of the batch differs from its single run"


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_batch_draws_each_samplers_noise_as_its_single_runs(sampler: str) -> None:
    plain = replace(REQUEST, width=64, height=64, schedule=samplers.AUTOMATIC, sampler=sampler)
    requests = [replace(plain, seed=seed, cfg=1.5) for seed in (1, 2)]
    together = denoise_latents(*requests)
    for i, request in enumerate(requests):
        assert (together[i : i + 1] - denoise_latents(request)).abs().max() <= 1e-4


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_needs_the_negative_prompt_only_where_it_counts(sampler: str) -> None:
    plain = replace(REQUEST, width=64, height=64, schedule=samplers.AUTOMATIC, sampler=sampler, cfg=1.0)
    other = denoise_latents(replace(plain, negative="red hair, beach"))
    assert torch.equal(denoise_latents(plain), other) == (not samplers.SAMPLERS[sampler].unguided)


def test_one_request_does_not_touch_the_next() -> None:
    before = denoise_latents(REQUEST)
    denoise_latents(replace(REQUEST, sampler="DPM++ 2M", schedule="Karras", cfg=9.0, prompt="apple"))
    torch.manual_seed(123)
    stopped = generate(make_cells(replace(REQUEST, seed=9)))
    next(stopped)
    stopped.close()
    assert torch.equal(before, denoise_latents(REQUEST))


def test_a_job_takes_no_global_randomness() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(generate(make_cells(REQUEST)))
    assert torch.equal(before, torch.get_rng_state())


def test_events_tell_of_every_step_and_picture() -> None:
    events = list(
        generate(make_cells(REQUEST, replace(REQUEST, seed=8), replace(REQUEST, width=64)), previews=True)
    )
    steps, pictures = (
        [e for e in events if isinstance(e, Step)],
        [e for e in events if isinstance(e, Picture)],
    )
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6] * 2
    assert [e.index for e in pictures] == [0, 1, 2]
    assert [e.image.size for e in pictures] == [(128, 128), (128, 128), (64, 128)]
    assert len(steps[0].previews) == 2, "a preview of each picture of the batch"
    assert not steps[5].previews, "the last step needs no preview: the picture follows"
    assert steps[-1].pictures_done == 2
    assert steps[0].seconds_left > steps[-1].seconds_left == 0


def test_batches_hold_what_goes_together() -> None:
    long = ", ".join(["blue hair"] * 60)
    changes = [
        {},
        {"width": 64},
        {"seed": 2},
        {"cfg": 1.0},
        {"sampler": "DDIM"},
        {"prompt": long},
        {"negative": long},
        {"schedule": "Karras"},
        {"cfg_rescale": 0.7},
    ]
    mixed = [replace(REQUEST, **change) for change in changes]
    pipeline = bases.load_model("nano")
    assert sorted(group_into_batches(pipeline, mixed)) == [[0, 2], [1], [3], [4], [5, 6], [7], [8]]
    assert [len(b) for b in group_into_batches(pipeline, [replace(REQUEST, seed=i) for i in range(20)])] == [
        7,
        7,
        6,
    ]


def test_the_door_turns_what_a_person_should_know_into_an_event() -> None:
    (event,) = gpu.generate_on_gpu(make_cells(replace(REQUEST, model="nothing")))
    assert isinstance(event, Failed)
    assert "'nothing' is unknown" in event.message


def test_zero_gpu_is_asked_for_whole_bounded_seconds() -> None:
    large = replace(REQUEST, width=1024, height=1024, steps=25)
    bases.load_model("nano")
    assert gpu.estimate_duration(make_cells(REQUEST)) == 16
    assert gpu.estimate_duration(make_cells(large)) == 18
    assert gpu.estimate_duration(make_cells(*[large] * 100)) == zerogpu.MAX_CALL_SECONDS


@pytest.mark.skipif(is_zerogpu(), reason="jobs that run at once have a GPU and a model each")
def test_one_job_at_a_time_has_the_model() -> None:
    """A stopped job gives its place away before it has cleaned up; the next one still waits."""
    first = gpu.generate_on_gpu(make_cells(replace(REQUEST, steps=40)))
    next(first)
    done: list[float] = []

    def run_second_job() -> None:
        list(gpu.generate_on_gpu(make_cells(REQUEST)))
        done.append(1)

    thread = threading.Thread(target=run_second_job)
    thread.start()
    thread.join(timeout=1.5)
    assert not done, "the second job began while the first had the model"
    first.close()
    thread.join(timeout=60)
    assert done
