"""A person's files are found where they lie, in the layouts of the programs that brought them."""

import time
from pathlib import Path

import pytest

from core.models import bases, folders, lora_library, tools
from core.runtime.selfcheck import run_selfcheck
from core.schema.errors import UserError
from core.system import paths

LAYOUTS = {
    "A1111": ("models/Lora", "models/Stable-diffusion", "models/ESRGAN"),
    "ComfyUI": ("models/loras", "models/checkpoints", "models/upscale_models"),
    "SwarmUI": ("Models/Lora", "Models/Stable-Diffusion", "Models/upscale_models"),
    "Stability Matrix": ("Data/Models/Lora", "Data/Models/StableDiffusion", "Data/Models/ESRGAN"),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the studio's own `models/`, which is empty."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    (tmp_path / "models").mkdir()
    return tmp_path


def put(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    return file


@pytest.mark.parametrize("program", LAYOUTS)
def test_an_installation_is_named_by_its_root(program: str, home: Path) -> None:
    """Nothing is copied: hundreds of gigabytes stay where they are."""
    root = home / "elsewhere"
    loras, checkpoints, upscalers = (root / place for place in LAYOUTS[program])
    lora = put(loras / "characters" / "arona.safetensors")
    checkpoint = put(checkpoints / "mine.safetensors")
    put(checkpoints / "old.ckpt")
    upscaler = put(upscalers / "4x-sharp.pth")
    (home / "paths.toml").write_text(f"roots = ['{root}']\n")
    assert lora_library.locate_lora("arona") == lora
    assert bases.find_model("mine").source == str(checkpoint)
    assert set(folders.list_files("checkpoint")) == {"mine"}, "a pickle is no model"
    assert tools.list_owner_files("upscaler") == {"4x-sharp.pth": upscaler}


def test_single_folders_and_files_with_one_name(home: Path) -> None:
    own = put(home / "models/loras/style.safetensors")
    theirs = put(home / "shared/sub/style.safetensors")
    (home / "paths.toml").write_text('[folders]\nloras = ["shared"]\n')
    assert folders.list_files("lora") == {"style": own, "sub/style": theirs}
    assert lora_library.locate_lora("sub/style") == theirs


def test_a_new_file_needs_no_restart(home: Path) -> None:
    assert "fresh" not in lora_library.list_loras()
    put(home / "models/loras/a/b/fresh.safetensors")
    assert "fresh" in lora_library.list_loras()
    assert "nano-airbrush" in lora_library.list_loras(), "the examples are still there"


def test_five_thousand_files_are_listed_at_once(home: Path) -> None:
    for number in range(5000):
        put(home / "models/loras" / f"{number % 50}" / f"{number}.safetensors")
    start = time.monotonic()
    assert len(folders.list_files("lora")) == 5000
    assert time.monotonic() - start < 20, "it reads what is in the files"


def test_a_link_that_leads_out_is_followed_at_home_and_not_on_a_space(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = put(home / "secret/theirs.safetensors")
    shelf = home / "models/loras"
    put(shelf / "own.safetensors")
    (shelf / "linked").symlink_to(secret.parent)
    (shelf / "file.safetensors").symlink_to(secret)
    (shelf / "circle").symlink_to(shelf)
    assert set(folders.list_files("lora")) == {"own", "theirs", "file"}
    monkeypatch.setattr(folders, "is_space", lambda: True)
    assert set(folders.list_files("lora")) == {"own"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("roots = 3", r"roots: use a folder, or a list of folders, in quotes"),
        ("root = ['x']", r"'root' is not valid. Use roots = \[...\]"),
        ("[folders]\nlora = ['x']", r"'lora' is not valid. .* checkpoints, loras, upscalers, detectors"),
        ("folders = 3", r"'folders' is not valid"),
        ("roots = [", r"it is not TOML"),
    ],
)
def test_a_wrong_line_is_one_sentence(text: str, sentence: str, home: Path) -> None:
    (home / "paths.toml").write_text(text)
    with pytest.raises(UserError, match=rf"^paths\.toml: {sentence}"):
        folders.list_files("lora")


def test_a_folder_that_is_not_there_is_said_at_the_start(home: Path) -> None:
    (home / "paths.toml").write_text("roots = ['gone']\n")
    assert lora_library.list_loras() == ["nano-airbrush"]
    problems = " ".join(run_selfcheck(home / "files").problems)
    assert "The folder 'gone' of paths.toml or SWEETSPOT_MODELS is not there." in problems
