"""A detector that a visitor brings is a program: it has a side, a time, a memory and a number of places, and is refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from core import details, limits, tools
from core.apart import Apart
from core.detect import Detector
from core.nano.draw import drawing
from core.nano.pictures import HELD_OUT, scene
from core.types import Detail, Request, UserError

REQUEST = Request(model="nano", prompt="1girl", negative="", width=256, height=256, steps=2, cfg=5.0, sampler="Euler a", seed=7, detail=Detail())


def made(at: Path, nodes: list[onnx.NodeProto], side: int = 64, **constants: object) -> Path:
    """A model in YOLOv8's layout that gives `out`, (1, 5, 8) if it comes that far."""
    wanted = helper.make_tensor_value_info("in", TensorProto.FLOAT, [1, 3, side, side])
    given = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 8])
    known = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "detector", [wanted], [given], known)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), at)
    return at


def endless(at: Path) -> Path:
    """A loop of 2^62 turns."""
    kinds = {"turn": (TensorProto.INT64, []), "on": (TensorProto.BOOL, []), "boxes": (TensorProto.FLOAT, [1, 5, 8])}
    takes = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    gives = [helper.make_tensor_value_info(f"{name}_then", *kinds[name]) for name in ("on", "boxes")]
    turn = helper.make_graph([helper.make_node("Identity", [name], [f"{name}_then"]) for name in ("on", "boxes")], "turn", takes, gives)
    loop = helper.make_node("Loop", ["turns", "yes", "none"], ["out"], body=turn)
    return made(at, [loop], turns=np.int64(2**62), yes=np.bool_(True), none=np.zeros((1, 5, 8), np.float32))


def doubling(at: Path) -> Path:
    """Functions that call the next one twice: 2^40 steps, written out while the file is opened."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    names = [f"f{i}" for i in range(40)]

    def twice(name: str, domain: str) -> list[onnx.NodeProto]:
        return [helper.make_node(name, [one], [other], domain=domain) for one, other in ("ab", "bc")]

    calls = [*((name, "own") for name in names[1:]), ("Neg", "")]
    functions = [helper.make_function("own", name, ["a"], ["c"], twice(*call), opsets) for name, call in zip(names, calls, strict=True)]
    model = onnx.load(made(at, [helper.make_node("f0", ["none"], ["out"], domain="own")], none=np.zeros((1, 5, 8), np.float32)))
    model.functions.extend(functions)
    model.opset_import.extend(opsets[1:])
    onnx.save(model, at)
    return at


def immense(at: Path) -> Path:
    """Numbers of 16 GB."""
    nodes = [helper.make_node("ConstantOfShape", ["many"], ["all"]), helper.make_node("Reshape", ["all", "shape"], ["out"])]
    return made(at, nodes, many=np.array([2**32]), shape=np.array([1, 5, 8]))


def wide(at: Path) -> Path:
    """A picture of 30 GB."""
    return made(at, [helper.make_node("Identity", ["none"], ["out"])], side=100_000, none=np.zeros((1, 5, 8), np.float32))


def crowd(at: Path) -> Path:
    """A thing at each of 10,000 places, side by side."""
    x, y = (each.ravel() for each in np.meshgrid(np.arange(100), np.arange(100)))
    boxes = np.stack([0.64 * x + 0.32, 0.64 * y + 0.32, np.full(10_000, 0.6), np.full(10_000, 0.6), np.linspace(0.5, 1, 10_000)])[None]
    return made(at, [helper.make_node("Identity", ["all"], ["out"])], all=boxes.astype(np.float32))


def test_as_the_same_detector_in_this_process() -> None:
    file, picture = tools.file("detector", "nano face"), drawing(scene(HELD_OUT, (128, 128))).picture
    found = Apart(file).find(picture, 0.3)
    assert found
    assert found == Detector(file).find(picture, 0.3)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (endless, r"detector: x\.onnx took longer than 2 seconds\."),
        (doubling, r"detector: x\.onnx took longer than 2 seconds\."),
        (immense, r"detector: x\.onnx ran out of memory on a picture; choose a smaller one\."),
        (wide, r"detector: x\.onnx takes pictures of 100000 pixels a side; it takes a model of 32 to 2048\."),
    ],
)
def test_a_hostile_one_is_refused_when_it_is_opened(model: Callable[[Path], Path], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if model in (endless, doubling):  # the others have the time that a busy machine takes to start a process
        monkeypatch.setattr(limits, "DETECTOR_SECONDS", 2)
    with pytest.raises(UserError, match=f"^{sentence}$"):
        Apart(model(tmp_path / "x.onnx"))


def test_a_crowd_is_counted_and_made_anew_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = Detector(crowd(tmp_path / "crowd.onnx"))
    picture = Image.new("RGB", (2048, 2048))
    assert len(crowded.find(picture, 0.3)) == limits.FOUND
    monkeypatch.setattr(details, "finder", lambda _name: (crowded, None))
    found, ((note,),) = details.places([picture], [REQUEST], native=128)
    assert len(found) == limits.PLACES
    assert note == f"detail: of {limits.FOUND} places the {limits.PLACES} largest were made anew."
