"""Cells beside diffusers' own `set_adapters`, and a model that is what it was, whatever happens to a sweep."""

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

from core import cells, gpu, hub, models, paths, samplers, shelf, together
from core.events import Look, Picture, Step
from core.features import VAE
from core.generate import generate
from core.infotext import infotext
from core.lorafile import read
from core.plan import plan
from core.report import reported
from core.sweep import Study
from core.types import Cell, Request, UserError
from tests.model import fingerprint
from tests.sweep.conftest import EXAMPLE
from tests.zero import at_home

ROOT = Path(__file__).parent.parent.parent
ASKED = {"lora": str(EXAMPLE), "prompts": "1girl, blue hair, smile\n1girl, red hair, beach", "seeds": "5, 6", "strengths": "0-3 (+1)"}


@pytest.fixture(scope="module")
def reference() -> StableDiffusionXLPipeline:
    """nano with the example on it by PEFT, from the file's own matrices and alpha."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(models.find("nano").source))
    found = read(EXAMPLE)
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "it")
    tensors, layers = found.tensors(), {name.replace(".", "_"): layer for name, layer in pipeline.unet.named_modules() if hasattr(layer, "lora_A")}
    assert len(found.modules) == len(layers)
    with torch.no_grad():
        for module in found.modules:
            layers[module.name].lora_A["it"].weight.copy_(tensors[module.down])
            layers[module.name].lora_B["it"].weight.copy_(tensors[module.up])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = samplers.make("Euler a", pipeline.scheduler.config)
    return pipeline


def latents_of(pipeline: StableDiffusionXLPipeline, request: Request, strength: float) -> np.ndarray:
    pipeline.unet.set_adapters("it", [strength])
    found = pipeline(
        request.prompt.partition(" <lora")[0], negative_prompt=request.negative, width=request.width, height=request.height,
        num_inference_steps=request.steps, guidance_scale=request.cfg, generator=torch.Generator().manual_seed(request.seed), output_type="latent",
    ).images  # fmt: skip
    return np.asarray(found[0])


@pytest.mark.parametrize("mixed", [False, True])
def test_every_cell_is_what_set_adapters_makes(reference: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch, mixed: bool) -> None:
    monkeypatch.setattr(together, "is_faster", lambda *_: mixed)
    study, before = Study(plan({**ASKED, "strengths": "0, 1.5, 3", "seeds": "5" if mixed else "5, 6"})), fingerprint()
    jobs = [Cell(label="", request=study.request(strength, item)) for strength in study.strengths for item in study.items]
    pictures = {event.index: event for event in gpu.lane(lambda: list(generate(jobs, eye=VAE))) if isinstance(event, Picture)}
    assert len(pictures) == len(jobs) == (6 if mixed else 12)
    for i, job in enumerate(jobs):
        strength = job.request.loras[0].strength if job.request.loras else 0.0
        expected, look = gpu.lane(latents_of, reference, job.request, strength), pictures[i].look
        assert isinstance(look, Look)
        assert look.latents is not None
        reach = expected.max() - expected.min()
        assert np.abs(look.latents.astype(np.float32) - expected).max() <= 1e-3 * reach, (strength, job.request.seed)
    assert fingerprint() == before


@pytest.mark.usefixtures("few_steps")
def test_a_sweep_that_is_stopped_leaves_the_model_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cells, "FOLDER", tmp_path)
    study, before = Study(plan(ASKED)), fingerprint()
    events = study.run()
    for event in events:
        if isinstance(event, Step) and len(study.pictures) >= 8 and event.step == 3:
            break
    events.close()
    assert fingerprint() == before
    stopped = len(study.pictures)
    assert 8 <= stopped < 16
    assert reported(study)["why"] == f"Stopped: {stopped} of 16 pictures are there."
    assert reported(study)["sweet_spot"] is None
    again = Study(plan(ASKED))
    made = [event for event in again.run() if isinstance(event, Picture)]
    assert (again.found, len(made), len(again.pictures)) == (stopped, 16 - stopped, 16)
    assert again.verdict is not None
    assert fingerprint() == before


def test_a_sweep_that_is_killed_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGKILL in the middle; what it had finished is found, whole, and the end is the same as without it."""
    code = f"""if True:
        import json
        from core.plan import plan
        from core.sweep import Study
        study = Study(plan(json.loads({json.dumps(json.dumps(ASKED))})))
        for event in study.run():
            print(len(study.pictures), flush=True)
    """
    there = {**at_home(), "SWEETSPOT_CELLS": str(tmp_path / "killed")}
    first = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=there, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if int(line) >= 4:
            time.sleep(0.3)
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    ends = []
    for name in ("killed", "whole"):
        monkeypatch.setattr(cells, "FOLDER", tmp_path / name)
        study = Study(plan(ASKED))
        for _ in study.run():
            pass
        ends.append((study.found, reported(study)["curve"]))
    (found, resumed), (none, whole) = ends
    assert (4 <= found < 16, none) == (True, 0)
    for a, b in zip(resumed, whole, strict=True):
        assert a == pytest.approx(b, abs=2e-3), "batches differ by their noise only"


@pytest.mark.usefixtures("few_steps")
def test_a_torn_cell_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cells, "FOLDER", tmp_path)
    asked = {**ASKED, "strengths": "0, 1", "prompts": "1girl"}
    list(Study(plan(asked)).run())
    torn, *_ = sorted(tmp_path.rglob("*.npz"))
    torn.write_bytes(torn.read_bytes()[:1000])
    lost, *_ = [file for file in sorted(tmp_path.rglob("*.png")) if not torn.stem.startswith(file.stem)]
    lost.unlink()
    again = Study(plan(asked))
    made = [event for event in again.run() if isinstance(event, Picture)]
    assert (again.found, len(made)) == (2, 2)
    assert len(again.measured) == 2


def test_strength_zero_is_shared_by_every_lora(tmp_path: Path) -> None:
    """Its key knows nothing of the file; another strength's key knows the content and the name, which stands in the picture."""
    same, renamed, other = (tmp_path / name / file for name, file in (("a", EXAMPLE.name), ("b", "renamed.safetensors"), ("c", EXAMPLE.name)))
    for file in (same, renamed, other):
        file.parent.mkdir()
        file.write_bytes(EXAMPLE.read_bytes() if file != other else EXAMPLE.read_bytes()[:-2] + b"\x01\x02")
    ours, *theirs = (Study(plan({**ASKED, "lora": str(file)})) for file in (EXAMPLE, same, renamed, other))
    item = ours.items[0]
    assert {cells.key(each.request(0.0, item)) for each in theirs} == {cells.key(ours.request(0.0, item))}
    alike = [cells.key(each.request(1.0, item)) == cells.key(ours.request(1.0, item)) for each in theirs]
    assert alike == [True, False, False], "the same file elsewhere, another name, another content"
    assert cells.key(ours.request(1.0, item)) != cells.key(ours.request(2.0, item))


def test_case_16_nobodys_words_stand_in_anothers_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an infotext says is in its cell's key: tags that the model never hears of, white space, where a LoRA is from."""
    for words in ("1girl <ad:BUY at evil.example>", "1girl <lora:x:abc>", "1girl <lora:nano-airbrush:1>"):
        with pytest.raises(UserError, match=r"^prompts: "):
            plan({**ASKED, "prompts": words})
    study = Study(plan(ASKED))
    plain, worn = (study.request(strength, study.items[0]) for strength in (0.0, 1.0))
    said = [plain.prompt, f"{plain.prompt} <ad:BUY at evil.example>", f"{plain.prompt} <lora:x:abc>", plain.prompt.replace(" ", "  ")]
    assert len({cells.key(replace(plain, prompt=words)) for words in said}) == len({infotext(replace(plain, prompt=words)) for words in said}) == 4
    before = cells.key(worn), shelf.hashes(worn.loras)
    monkeypatch.setattr(hub, "_origins", {})
    hub.remember(EXAMPLE, "evil/example@0:file.safetensors")
    assert (cells.key(worn) == before[0], shelf.hashes(worn.loras) == before[1]) == (False, False)
