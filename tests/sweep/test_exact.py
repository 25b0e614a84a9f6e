"""Cells equal diffusers' own `set_adapters`, and no sweep leaves the model changed."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig

from core.generate import batching
from core.generate.features import VAE
from core.generate.pipeline import generate
from core.hub import client as hub
from core.lora.file import read_lora_file
from core.models import bases, lora_library
from core.prompts.infotext import create_infotext
from core.runtime import gpu, torch_thread
from core.schema.errors import UserError
from core.schema.events import Features, Picture, Step
from core.schema.records import read_form
from core.schema.types import Cell, Request
from core.sweep import cell_cache
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.report import build_sweep_report
from core.sweep.study import SweepStudy
from core.system import paths
from tests.euler_ancestral import make_euler_ancestral
from tests.model import fingerprint
from tests.sweep.conftest import EXAMPLE
from tests.zero import get_home_environment

ROOT = Path(__file__).parent.parent.parent
SWEEP_VALUES = {
    "lora": str(EXAMPLE),
    "prompts": "1girl, blue hair, smile\n1girl, red hair, beach",
    "seeds": "5, 6",
    "strengths": "0-3 (+1)",
}


@pytest.fixture(scope="module")
def reference() -> StableDiffusionXLPipeline:
    """Return nano with the example applied by PEFT, from the file's own matrices and alpha."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    found = read_lora_file(EXAMPLE)
    pipeline.unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "it"
    )
    tensors, layers = (
        found.load_tensors(),
        {
            name.replace(".", "_"): layer
            for name, layer in pipeline.unet.named_modules()
            if hasattr(layer, "lora_A")
        },
    )
    assert len(found.modules) == len(layers)
    with torch.no_grad():
        for module in found.modules:
            layers[module.name].lora_A["it"].weight.copy_(tensors[module.down])
            layers[module.name].lora_B["it"].weight.copy_(tensors[module.up])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_euler_ancestral(pipeline.scheduler.config)
    return pipeline


def sample_latents(pipeline: StableDiffusionXLPipeline, request: Request, strength: float) -> np.ndarray:
    pipeline.unet.set_adapters("it", [strength])
    found = pipeline(
        request.prompt.partition(" <lora")[0],
        negative_prompt=request.negative,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).images
    return np.asarray(found[0])


@pytest.mark.parametrize("mixed", [False, True])
def test_every_cell_is_what_set_adapters_makes(
    reference: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    monkeypatch.setattr(batching, "is_mixed_faster", lambda *_: mixed)
    study, before = (
        SweepStudy(
            plan_sweep(
                read_form(
                    SweepForm, {**SWEEP_VALUES, "strengths": "0, 1.5, 3", "seeds": "5" if mixed else "5, 6"}
                )
            )
        ),
        fingerprint(),
    )
    jobs = [
        Cell(label="", request=study.build_request(strength, item))
        for strength in study.strengths
        for item in study.items
    ]
    pictures = {
        event.index: event
        for event in torch_thread.run_on_torch_thread(lambda: list(generate(jobs, feature_extractor=VAE)))
        if isinstance(event, Picture)
    }
    assert len(pictures) == len(jobs) == (6 if mixed else 12)
    for i, job in enumerate(jobs):
        strength = job.request.loras[0].strength if job.request.loras else 0.0
        expected, look = (
            torch_thread.run_on_torch_thread(sample_latents, reference, job.request, strength),
            pictures[i].features,
        )
        assert isinstance(look, Features)
        assert look.latents is not None
        reach = expected.max() - expected.min()
        assert np.abs(look.latents.astype(np.float32) - expected).max() <= 1e-3 * reach, (
            strength,
            job.request.seed,
        )
    assert fingerprint() == before


@pytest.mark.usefixtures("few_steps")
def test_a_sweep_that_is_stopped_leaves_the_model_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cell_cache, "FOLDER", tmp_path)
    study, before = SweepStudy(plan_sweep(read_form(SweepForm, SWEEP_VALUES))), fingerprint()
    events = study.run(gpu.generate_on_gpu)
    for event in events:
        if isinstance(event, Step) and len(study.pictures) >= 8 and event.step == 3:
            break
    events.close()
    assert fingerprint() == before
    stopped = len(study.pictures)
    assert 8 <= stopped < 16
    assert build_sweep_report(study)["why"] == f"Stopped: {stopped} of 16 images are finished."
    assert build_sweep_report(study)["sweet_spot"] is None
    again = SweepStudy(plan_sweep(read_form(SweepForm, SWEEP_VALUES)))
    made = [event for event in again.run(gpu.generate_on_gpu) if isinstance(event, Picture)]
    assert (again.cells_found, len(made), len(again.pictures)) == (stopped, 16 - stopped, 16)
    assert again.verdict is not None
    assert fingerprint() == before


def test_a_sweep_that_is_killed_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After SIGKILL the finished cells are found whole, and the result is the same."""
    code = f"""if True:
        import json
        from core.sweep.plan import SweepForm, plan_sweep
        from core.runtime import gpu
        from core.sweep.study import SweepStudy
        study = SweepStudy(plan_sweep(SweepForm(**json.loads({json.dumps(json.dumps(SWEEP_VALUES))}))))
        for event in study.run(gpu.generate_on_gpu):
            print(len(study.pictures), flush=True)
    """
    there = {**get_home_environment(), "SWEETSPOT_CELLS": str(tmp_path / "killed")}
    first = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=there, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    lines = 0
    for line in first.stdout:
        lines += 1
        if int(line) >= 4:
            time.sleep(0.3)
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    assert lines, "it never began"
    ends = []
    for name in ("killed", "whole"):
        monkeypatch.setattr(cell_cache, "FOLDER", tmp_path / name)
        study = SweepStudy(plan_sweep(read_form(SweepForm, SWEEP_VALUES)))
        for _ in study.run(gpu.generate_on_gpu):
            pass
        ends.append((study.cells_found, build_sweep_report(study)["curve"]))
    (found, resumed), (none, whole) = ends
    assert (4 <= found < 16, none) == (True, 0)
    for a, b in zip(resumed, whole, strict=True):
        assert a == pytest.approx(b, abs=2e-3), "batches differ by their noise only"


@pytest.mark.usefixtures("few_steps")
def test_a_torn_cell_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cell_cache, "FOLDER", tmp_path)
    asked = {**SWEEP_VALUES, "strengths": "0, 1", "prompts": "1girl"}
    list(SweepStudy(plan_sweep(read_form(SweepForm, asked))).run(gpu.generate_on_gpu))
    torn, *_ = sorted(tmp_path.rglob("*.npz"))
    torn.write_bytes(torn.read_bytes()[:1000])
    lost, *_ = [file for file in sorted(tmp_path.rglob("*.png")) if not torn.stem.startswith(file.stem)]
    lost.unlink()
    again = SweepStudy(plan_sweep(read_form(SweepForm, asked)))
    made = [event for event in again.run(gpu.generate_on_gpu) if isinstance(event, Picture)]
    assert (again.cells_found, len(made)) == (2, 2)
    assert len(again.columns) == 2


def test_strength_zero_is_shared_by_every_lora(tmp_path: Path) -> None:
    """The cache key at strength 0 does not depend on the file.

    At any other strength the key holds its content and its name, since the infotext has the name.
    """
    same, renamed, other = (
        tmp_path / name / file
        for name, file in (("a", EXAMPLE.name), ("b", "renamed.safetensors"), ("c", EXAMPLE.name))
    )
    for file in (same, renamed, other):
        file.parent.mkdir()
        file.write_bytes(EXAMPLE.read_bytes() if file != other else EXAMPLE.read_bytes()[:-2] + b"\x01\x02")
    ours, *theirs = (
        SweepStudy(plan_sweep(read_form(SweepForm, {**SWEEP_VALUES, "lora": str(file)})))
        for file in (EXAMPLE, same, renamed, other)
    )
    item = ours.items[0]
    assert {cell_cache.hash_request(each.build_request(0.0, item)) for each in theirs} == {
        cell_cache.hash_request(ours.build_request(0.0, item))
    }
    alike = [
        cell_cache.hash_request(each.build_request(1.0, item))
        == cell_cache.hash_request(ours.build_request(1.0, item))
        for each in theirs
    ]
    assert alike == [True, False, False], "the same file elsewhere, another name, another content"
    assert cell_cache.hash_request(ours.build_request(1.0, item)) != cell_cache.hash_request(
        ours.build_request(2.0, item)
    )


def test_case_16_nobodys_words_stand_in_anothers_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an infotext says is in its cell's key.

    That includes tags that the model never sees, white space, and where a LoRA is from.
    """
    for words in ("1girl <ad:BUY at evil.example>", "1girl <lora:x:abc>", "1girl <lora:nano-airbrush:1>"):
        with pytest.raises(UserError, match=r"^prompts: "):
            plan_sweep(read_form(SweepForm, {**SWEEP_VALUES, "prompts": words}))
    study = SweepStudy(plan_sweep(read_form(SweepForm, SWEEP_VALUES)))
    plain, worn = (study.build_request(strength, study.items[0]) for strength in (0.0, 1.0))
    said = [
        plain.prompt,
        f"{plain.prompt} <ad:BUY at evil.example>",
        f"{plain.prompt} <lora:x:abc>",
        plain.prompt.replace(" ", "  "),
    ]
    assert (
        len({cell_cache.hash_request(replace(plain, prompt=words)) for words in said})
        == len({create_infotext(replace(plain, prompt=words)) for words in said})
        == 4
    )
    before = cell_cache.hash_request(worn), lora_library.hash_loras(worn.loras)
    monkeypatch.setattr(hub, "_origins", {})
    hub.record_origin(EXAMPLE, "evil/example@0:file.safetensors")
    assert (cell_cache.hash_request(worn) == before[0], lora_library.hash_loras(worn.loras) == before[1]) == (
        False,
        False,
    )
