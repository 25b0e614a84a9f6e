"""Opening a model: its progress, a Stop on the way, memory that runs out.

Nothing stays half open, and the next job has its model.
"""

import gc
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from core.models import bases, loader
from core.runtime import gpu
from core.schema.events import Failed, LoadProgress, ModelLoaded, Picture
from core.schema.types import Cell
from core.system import tensor_files
from tests.bench.large_lora import write_lora
from tests.model import PLAIN_REQUEST
from tests.models.parts import NANO, ROOT, ModelTable, assert_same_weights, make_model

LAYOUTS = ("folder", "file")


@pytest.fixture
def layouts(table: ModelTable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> ModelTable:
    """nano once more in both layouts, opened in steps of a megabyte."""
    monkeypatch.setattr(loader, "PROGRESS_BYTES", 2**20)
    table["folder"], table["file"] = (
        make_model("folder", NANO),
        make_model("file", checkpoint, config=str(NANO)),
    )
    return table


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opening_a_model_shows_how_far_it_is(
    layout: str, layouts: ModelTable, nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "_pipelines", {})
    for known in (tensor_files._file_hashes, tensor_files._tensor_hashes):
        known.clear()  # of tests before
    events = list(bases.open_model(layout))
    copied = [event for event in events if event.bytes_done]
    ((what, size),) = {(event.title, event.bytes_total) for event in copied}
    assert (what, size > 12_000_000) == (f"The {layout}", True)
    assert len(copied) >= 8
    assert events[: -len(copied)], "that it is checked what it shares is not shown"
    done = [event.bytes_done for event in copied]
    assert done == sorted(set(done))
    assert size - done[-1] < 2**21
    assert_same_weights(bases.load_model(layout), nano)


@pytest.mark.parametrize("fits", [True, False], ids=["beside another", "alone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stop_on_the_way_leaves_nothing_half_open(
    layout: str,
    fits: bool,
    layouts: ModelTable,
    nano: StableDiffusionXLPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loaded model stays; where two do not fit, it has gone already and none is there.

    Either way the next load gives a whole model.
    """
    if not fits:
        monkeypatch.setattr(bases, "_free_memory", lambda: 1)
    before = set(map(id, find_unets()))
    steps = bases.open_model(layout)
    event = next(event for event in steps if event.bytes_done)
    (half,) = (weakref.ref(unet) for unet in find_unets() if id(unet) not in before)
    steps.close()
    assert half() is None, "half a model stays in memory"
    assert 0 < event.bytes_done < event.bytes_total
    assert bases.get_loaded_name() == ("nano" if fits else None)
    assert_same_weights(bases.load_model(layout), nano)
    assert bases.load_model("nano") is not None


def find_unets() -> list[UNet2DConditionModel]:
    """Return all U-Nets in memory."""
    return [each for each in gc.get_objects() if type(each) is UNet2DConditionModel]


def test_a_stop_reaches_a_model_that_is_being_opened(layouts: ModelTable) -> None:
    """A page closes the job's generator between two steps; the next job has the model at once."""
    cell = Cell(label="", request=replace(PLAIN_REQUEST, model="file"))
    job = gpu.generate_on_gpu([cell])
    assert any(isinstance(event, LoadProgress) and event.bytes_done for event in job)
    job.close()
    assert bases.get_loaded_name() == "nano"
    kinds = [type(event) for event in gpu.generate_on_gpu([cell])]
    assert Picture in kinds
    assert kinds.index(LoadProgress) < kinds.index(ModelLoaded) < kinds.index(Picture)
    assert Failed not in kinds


MEMORY_LIMIT_SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from core.lora.file import read_lora_file
from core.models import bases
from core.schema import presets
from core.schema.errors import UserError
from tests.models.parts import NANO, make_model

lora_file, single = map(Path, sys.argv[1:])
table = {"nano": make_model("nano", NANO), "folder": make_model("folder", NANO),\
 "file": make_model("file", single, config=str(NANO))}
presets.get_models = lambda: table
bases.load_model("nano")
bases.load_model("file")  # whatever a library keeps from its first use on
bases.load_model("nano")

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
    for name, call in (("folder", lambda: bases.load_model("folder")),\
 ("file", lambda: bases.load_model("file")),\
 ("lora", lambda: read_lora_file(lora_file))):
        print(room, name, within(room * 2**20, call), bases.get_loaded_name(), sep="|")
        bases.load_model("nano")
print("end")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that holds a process to so much memory")
def test_an_allocator_that_refuses_while_a_model_opens_is_told_as_memory(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The system really refuses, at several places; the next load has the whole model."""
    write_lora(tmp_path / "large.safetensors", 80)
    command = [sys.executable, "-c", MEMORY_LIMIT_SCRIPT, tmp_path / "large.safetensors", checkpoint]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert told[-1] == ["end"], done.stderr[-2000:]
    refused = [(name, said) for _, name, said, _ in told[:-1] if said != "done"]
    assert {name for name, _ in refused} == {"folder", "file", "lora"}
    for name, said in refused:
        assert "does not fit into this machine's memory" in said, (name, said)
