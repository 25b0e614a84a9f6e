"""When Gradio or `spaces` moves, whoever moves it looks through what is used of their insides."""

import ast
from importlib.metadata import version
from pathlib import Path

import gradio as gr

from core.runtime import zerogpu
from tabs.server import gradio_internals

ROOT = Path(__file__).parent.parent.parent


def test_the_insides_are_those_that_were_tried() -> None:
    assert version("gradio") == gradio_internals.TRIED_WITH
    assert version("spaces") == zerogpu.TRIED_WITH


def test_one_file_imports_gradios_insides() -> None:
    for file in [ROOT / "app.py", *(ROOT / "tabs").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gradio":
                assert file.name == "gradio_internals.py", f"{file.name} imports {node.module}"


def test_a_slider_leaves_its_value_to_the_forms() -> None:
    """A preset moves its ends; Generate pressed at that moment would be refused without a field's name."""
    assert gr.Slider(768, 2048, 768).preprocess(128) == 128
