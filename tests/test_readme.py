"""The README is true: its paths exist, its commands are there, its example runs as pasted."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_path_exists() -> None:
    listed = re.findall(r"^((?:app\.py|(?:tabs|core|presets|tests)/)\S*)\s{2,}\S", README, re.MULTILINE)
    assert len(listed) > 20
    missing = [path for path in listed if not (ROOT / path).exists()]
    missing += [path for path in re.findall(r"!\[.*?\]\((.*?)\)", README) if not (ROOT / path).exists()]
    assert not missing


def test_every_file_is_listed() -> None:
    files = [file.relative_to(ROOT).as_posix() for folder in ("core", "tabs") for file in (ROOT / folder).rglob("*.py") if file.name != "__init__.py"]
    assert not [file for file in files if f"\n{file} " not in README]


def test_the_commands_are_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)\b(?= |`|\n|\.)", README)) - {"it"}
    assert {"run", "test", "nano"} <= named & targets


def test_the_example_runs_as_pasted(studio: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "gradio_client" in block)
    exec(compile(example.replace("http://127.0.0.1:7860", studio), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert ".png" in printed
    assert "[7]" in printed


def test_the_front_matter_is_what_a_space_reads() -> None:
    card = yaml.safe_load(README.split("---")[1])
    assert card["sdk"] == "gradio"
    assert card["python_version"] == "3.12", "quoted: unquoted 3.10 would be 3.1"
    assert card["app_file"] == "app.py"
    assert len(card["short_description"]) <= 60
    assert card["hf_oauth_scopes"] == ["contribute-repos"]
    import gradio

    assert card["sdk_version"] == gradio.__version__
