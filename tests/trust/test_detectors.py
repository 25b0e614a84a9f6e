"""A detector that a visitor uploads is a program.

Its input size, time, memory and number of boxes are limited, and it is refused in one sentence.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from core.generate.stages import details
from core.generate.stages.detector import Detector
from core.generate.stages.sandbox import SandboxedDetector
from core.models import tools
from core.nano.draw import draw_with_face
from core.nano.pictures import FIRST_HELD_OUT, make_scene
from core.schema import limits
from core.schema.errors import UserError
from core.schema.types import Detail, Request

REQUEST = Request(
    model="nano",
    prompt="1girl",
    negative="",
    width=256,
    height=256,
    steps=2,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
    detail=Detail(),
)


def save_model(file: Path, nodes: list[onnx.NodeProto], side: int = 64, **constants: object) -> Path:
    """Save a model in YOLOv8's layout whose nodes make `out`, declared as (1, 5, 8) floats.

    Its input is (1, 3, `side`, `side`); `constants` are initializers by name.
    """
    wanted = helper.make_tensor_value_info("in", TensorProto.FLOAT, [1, 3, side, side])
    given = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 8])
    known = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "detector", [wanted], [given], known)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def save_endless_loop(file: Path) -> Path:
    """Save a model with a loop of 2^62 turns."""
    kinds = {
        "turn": (TensorProto.INT64, []),
        "on": (TensorProto.BOOL, []),
        "boxes": (TensorProto.FLOAT, [1, 5, 8]),
    }
    takes = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    gives = [helper.make_tensor_value_info(f"{name}_then", *kinds[name]) for name in ("on", "boxes")]
    turn = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_then"]) for name in ("on", "boxes")],
        "turn",
        takes,
        gives,
    )
    loop = helper.make_node("Loop", ["turns", "yes", "none"], ["out"], body=turn)
    return save_model(
        file, [loop], turns=np.int64(2**62), yes=np.bool_(True), none=np.zeros((1, 5, 8), np.float32)
    )


def save_doubling_calls(file: Path) -> Path:
    """Save a model of 40 functions that each call the next one twice.

    That makes 2^40 steps, which are expanded while the file is opened.
    """
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    names = [f"f{i}" for i in range(40)]

    def twice(name: str, domain: str) -> list[onnx.NodeProto]:
        return [helper.make_node(name, [one], [other], domain=domain) for one, other in ("ab", "bc")]

    calls = [*((name, "own") for name in names[1:]), ("Neg", "")]
    functions = [
        helper.make_function("own", name, ["a"], ["c"], twice(*call), opsets)
        for name, call in zip(names, calls, strict=True)
    ]
    model = onnx.load(
        save_model(
            file,
            [helper.make_node("f0", ["none"], ["out"], domain="own")],
            none=np.zeros((1, 5, 8), np.float32),
        )
    )
    model.functions.extend(functions)
    model.opset_import.extend(opsets[1:])
    onnx.save(model, file)
    return file


def save_immense_tensor(file: Path) -> Path:
    """Save a model that makes a tensor of 16 GB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["all"]),
        helper.make_node("Reshape", ["all", "shape"], ["out"]),
    ]
    return save_model(file, nodes, many=np.array([2**32]), shape=np.array([1, 5, 8]))


def save_wide_input(file: Path) -> Path:
    """Save a model whose input picture takes 30 GB."""
    return save_model(
        file,
        [helper.make_node("Identity", ["none"], ["out"])],
        side=100_000,
        none=np.zeros((1, 5, 8), np.float32),
    )


def save_crowd(file: Path) -> Path:
    """Save a model that finds 10,000 boxes, side by side."""
    x, y = (each.ravel() for each in np.meshgrid(np.arange(100), np.arange(100)))
    boxes = np.stack(
        [
            0.64 * x + 0.32,
            0.64 * y + 0.32,
            np.full(10_000, 0.6),
            np.full(10_000, 0.6),
            np.linspace(0.5, 1, 10_000),
        ]
    )[None]
    return save_model(file, [helper.make_node("Identity", ["all"], ["out"])], all=boxes.astype(np.float32))


def test_as_the_same_detector_in_this_process() -> None:
    file, picture = (
        tools.fetch_tool("detector", "nano face"),
        draw_with_face(make_scene(FIRST_HELD_OUT, (128, 128))).picture,
    )
    found = SandboxedDetector(file).find(picture, 0.3)
    assert found
    assert found == Detector(file).find(picture, 0.3)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (save_endless_loop, r"detector: x\.onnx took longer than 2 seconds\."),
        (save_doubling_calls, r"detector: x\.onnx took longer than 2 seconds\."),
        (save_immense_tensor, r"detector: x\.onnx ran out of memory on an image; choose a smaller one\."),
        (
            save_wide_input,
            r"detector: x\.onnx expects images of 100000 pixels a side. Use a model of 32 to 2048\.",
        ),
    ],
)
def test_a_hostile_one_is_refused_when_it_is_opened(
    model: Callable[[Path], Path], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the others keep the time that a busy machine takes to start a process
    if model in (save_endless_loop, save_doubling_calls):
        monkeypatch.setattr(limits, "DETECTOR_SECONDS", 2)
    with pytest.raises(UserError, match=f"^{sentence}$"):
        SandboxedDetector(model(tmp_path / "x.onnx"))


def test_a_crowd_is_counted_and_made_anew_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded = Detector(save_crowd(tmp_path / "crowd.onnx"))
    picture = Image.new("RGB", (2048, 2048))
    assert len(crowded.find(picture, 0.3)) == limits.DETECTED_BOXES
    monkeypatch.setattr(details, "find_detector", lambda _name: (crowded, None))
    found, ((note,),) = details.find_detail_regions([picture], [REQUEST], native_size=128)
    assert len(found) == limits.DETAIL_REGIONS
    assert (
        note == f"detail: of {limits.DETECTED_BOXES} regions, "
        f"only the {limits.DETAIL_REGIONS} largest were refined."
    )
