"""`make space` passes on this checkout, reports each fault, and uploads no more than needed."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from tests import space


def test_this_checkout_is_what_a_space_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.space"], cwd=space.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "hf upload OWNER/NAME . . --repo-type space --exclude '.git/*'" in done.stdout


def test_a_space_that_cannot_install_is_told_of(tmp_path: Path) -> None:
    """A Space installs Gradio with its extras beside requirements.txt.

    A version that does not fit would fail there, after the upload.
    """
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copyfile(space.ROOT / name, tmp_path / name)
    replace_text("requirements.txt", "starlette==1.10.0", "starlette==0.1.0")(tmp_path)
    assert "starlette" in str(space.try_installing(tmp_path))


@pytest.fixture(scope="module")
def checkout_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    copy = tmp_path_factory.mktemp("space") / "copy"
    for file in space.list_files(space.ROOT):
        at = copy / file.relative_to(space.ROOT)
        at.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, at)
    assert space.find_problems(copy) == []
    return copy


def replace_text(name: str, old: str, new: str) -> Callable[[Path], Path]:
    def change(root: Path) -> Path:
        text = (root / name).read_text(encoding="utf-8")
        assert old in text
        (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        return root / name

    return change


def set_line(line: str) -> Callable[[Path], Path]:
    """Return what writes this line of README.md's front matter in place of the one with its key."""
    key, lines = line.partition(":")[0], (space.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return replace_text("README.md", next(each for each in lines if each.startswith(f"{key}:")), line)


def add_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def change(root: Path) -> Path:
        (root / name).write_bytes(content)
        return root / name

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_line("colorFrom: teal"), "colorFrom: 'teal' is not valid. Use one of: red, yellow, green"),
        (set_line("python_version: 3.10"), "python_version: 3.1 is a number, in which 3.10 is 3.1; quote it"),
        (set_line('python_version: "3.10"'), "python_version: 3.10 is not valid"),
        (set_line(f"short_description: {61 * 'a'}"), "61 characters are too many; the limit is 60"),
        (set_line("sdk_version: 6.99.0"), "sdk_version: 6.99.0 is not the Gradio of requirements.txt"),
        (set_line("app_file: main.py"), "app_file: main.py does not exist"),
        (
            replace_text("README.md", "hf_oauth: true", "hf_oath: true"),
            "hf_oath is not a key that a Space reads",
        ),
        (
            replace_text("README.md", "  - contribute-repos", "  - manage-repos"),
            "hf_oauth_scopes: manage-repos is wider than is needed",
        ),
        (replace_text("README.md", "---\ntitle", "title"), "it does not begin with the front matter"),
        (replace_text("README.md", "tags:\n", "tags: [\n"), "the front matter is not YAML"),
        (replace_text("requirements.txt", "torchvision==0.25.0\n", ""), "torchvision is missing"),
        (
            replace_text("requirements.txt", "torch==2.10.0", "torch==2.12.0"),
            "torch==2.12.0 is none that ZeroGPU has: 2.8.0",
        ),
        (
            replace_text("pyproject.toml", '    "spandrel>=0.4.2,<0.5",\n', ""),
            "it imports spandrel, which pyproject.toml does not ask for",
        ),
        (replace_text("requirements.txt", "peft==0.21.2", "peft = 1"), "requirements.txt: Expected"),
        (
            replace_text(
                "app.py", "from core.runtime import gpu", "import torch\nfrom core.runtime import gpu"
            ),
            "torch is imported before spaces",
        ),
        (
            replace_text("core/runtime/gpu.py", "import spaces", "import safetensors as spaces"),
            "is never imported",
        ),
        (
            add_file("core/big.png", bytes(11 * 2**20)),
            "core/big.png: 11.0 MiB are too many; a file may have 10",
        ),
        (add_file("core/more.safetensors", bytes(9 * 2**20)), "in all are too many; up to 32 are kept"),
        (add_file("core/state.pt", b"x"), "core/state.pt: it is a pickle, or called like one"),
        (add_file("core/state.dat", pickle.dumps({"a": 1})), "core/state.dat: it is a pickle"),
    ],
)
def test_a_broken_one_is_told_of(change: Callable[[Path], Path], sentence: str, checkout_copy: Path) -> None:
    before = {
        name: (checkout_copy / name).read_bytes()
        for name in ("README.md", "pyproject.toml", "requirements.txt", "app.py", "core/runtime/gpu.py")
    }
    changed = change(checkout_copy)
    try:
        found = space.find_problems(checkout_copy)
        assert any(sentence in problem for problem in found), found
        assert all("\n" not in problem for problem in found)
    finally:
        if (name := changed.relative_to(checkout_copy).as_posix()) in before:
            changed.write_bytes(before[name])
        else:
            changed.unlink()


def test_the_command_uploads_what_runs_and_no_more(checkout_copy: Path) -> None:
    litter = [
        ".git/config",
        ".venv/bin/python",
        ".venv",
        "build/x.png",
        "core/__pycache__/a.pyc",
        "models/loras/mine.safetensors",
        "runs/a/run.json",
    ]
    names = [file.relative_to(checkout_copy).as_posix() for file in space.list_files(checkout_copy)]
    sent = set(filter_repo_objects([*names, *litter], ignore_patterns=space.list_excludes(checkout_copy)))
    assert not sent & set(litter)
    assert not [name for name in sent if name.startswith("tests/")]
    needed = [
        name
        for name in names
        if name.startswith(("app.py", "core/", "tabs/", "presets/", "docs/", "requirements.txt", "README.md"))
    ]
    assert sent >= set(needed)
    assert len(needed) > 150
