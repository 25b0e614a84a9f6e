"""Opening a model: how far it is, a Stop on the way, memory that runs out. Nothing stays half open, and the next job has its model."""

import gc
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from core import digest, gpu, models, opening
from core.events import Failed, Loaded, Opening, Picture
from core.types import Cell
from tests.bench.large_lora import write
from tests.model import PLAIN
from tests.models.parts import NANO, ROOT, Table, assert_same_weights, model

LAYOUTS = ("folder", "file")


@pytest.fixture
def layouts(table: Table, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """nano once more in both layouts, of which a step of opening is a megabyte."""
    monkeypatch.setattr(opening, "STEP", 2**20)
    table["folder"], table["file"] = model("folder", NANO), model("file", checkpoint, config=str(NANO))
    return table


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opening_a_model_shows_how_far_it_is(layout: str, layouts: Table, nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_loaded", {})
    for known in (digest._hashes, digest._parts):
        known.clear()  # of tests before
    events = list(models.open_model(layout))
    copied = [event for event in events if event.done]
    ((what, size),) = {(event.what, event.total) for event in copied}
    assert (what, size > 12_000_000) == (f"The {layout}", True)
    assert len(copied) >= 8
    assert events[: -len(copied)], "that it is checked what it shares is not shown"
    done = [event.done for event in copied]
    assert done == sorted(set(done))
    assert size - done[-1] < 2**21
    assert_same_weights(models.load(layout), nano)


@pytest.mark.parametrize("fits", [True, False], ids=["beside another", "alone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stop_on_the_way_leaves_nothing_half_open(
    layout: str, fits: bool, layouts: Table, nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that was there stays; where two do not fit, it has gone already and none is there. Either way the next load has a whole one."""
    if not fits:
        monkeypatch.setattr(models, "_free", lambda: 1)
    before = set(map(id, unets()))
    steps = models.open_model(layout)
    event = next(event for event in steps if event.done)
    (half,) = (weakref.ref(unet) for unet in unets() if id(unet) not in before)
    steps.close()
    assert half() is None, "half a model stays in memory"
    assert 0 < event.done < event.total
    assert models.loaded() == ("nano" if fits else None)
    assert_same_weights(models.load(layout), nano)
    assert models.load("nano") is not None


def unets() -> list[UNet2DConditionModel]:
    """All that are in memory."""
    return [each for each in gc.get_objects() if type(each) is UNet2DConditionModel]


def test_a_stop_reaches_a_model_that_is_being_opened(layouts: Table) -> None:
    """As a page stops a job: its generator is closed between two steps, and the next job has the model at once."""
    cell = Cell(label="", request=replace(PLAIN, model="file"))
    job = gpu.run([cell])
    assert any(isinstance(event, Opening) and event.done for event in job)
    job.close()
    assert models.loaded() == "nano"
    kinds = [type(event) for event in gpu.run([cell])]
    assert Picture in kinds
    assert kinds.index(Opening) < kinds.index(Loaded) < kinds.index(Picture)
    assert Failed not in kinds


REFUSING = """
import resource, sys
from pathlib import Path
import torch
from core import lorafile, models, presets
from core.types import UserError
from tests.models.parts import NANO, model

lora_file, single = map(Path, sys.argv[1:])
table = {"nano": model("nano", NANO), "folder": model("folder", NANO), "file": model("file", single, config=str(NANO))}
presets.models = lambda: table
models.load("nano")
models.load("file")  # whatever a library keeps from its first use on
models.load("nano")

def within(room, call):
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (taken + room, resource.RLIM_INFINITY))
    try:
        call()
        return "done"
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

torch.ones(256, 256) @ torch.ones(256, 256)
for room in (2, 4, 8, 12):
    for name, call in (("folder", lambda: models.load("folder")), ("file", lambda: models.load("file")), ("lora", lambda: lorafile.read(lora_file))):
        print(room, name, within(room * 2**20, call), models.loaded(), sep="|")
        models.load("nano")
print("end")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that holds a process to so much memory")
def test_an_allocator_that_refuses_while_a_model_opens_is_told_as_memory(checkpoint: Path, tmp_path: Path) -> None:
    """Really refused, by the system, at several places on the way; the next load has the whole model."""
    write(tmp_path / "large.safetensors", 80)
    command = [sys.executable, "-c", REFUSING, tmp_path / "large.safetensors", checkpoint]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert told[-1] == ["end"], done.stderr[-2000:]
    refused = [(name, said) for _, name, said, _ in told[:-1] if said != "done"]
    assert {name for name, _ in refused} == {"folder", "file", "lora"}
    for name, said in refused:
        assert "does not fit into this machine's memory" in said, (name, said)
