"""A person's files are found where they lie, in the layouts of the programs that brought them."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.hub.names import is_hub_name
from core.models import bases, folders, loader, lora_library, tools
from core.models import files as models_files
from core.prompts.grammar import extract_lora_tags
from core.runtime.selfcheck import run_selfcheck
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import paths
from tests.models.parts import NANO

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
    assert folders.list_files("lora") == {"style": own, "style (shared/sub)": theirs}


def test_of_two_files_with_one_name_each_has_its_own(home: Path) -> None:
    """`pony/style` would be a stranger's repository on the Hub, and a tag of one would bring the other."""
    roots = [home / "A", home / "B"]
    files = [put(home / "models/loras/style.safetensors")]
    files += [put(root / "Lora" / at / "style.safetensors") for root in roots for at in ("", "pony")]
    files.append(put(home / "A/Lora/style.SAFETENSORS"))
    put(home / "A/Lora/._style.safetensors")  # what macOS leaves on other file systems
    (home / "A/Lora/gone.safetensors").symlink_to(home / "nowhere")
    (home / "paths.toml").write_text(f"roots = {[str(root) for root in roots]}\n")
    found = folders.list_files("lora")
    assert sorted(found.values()) == sorted(files)
    for name, file in found.items():
        assert not is_hub_name(name)
        assert lora_library.find_lora(name) == file
        (tag,) = extract_lora_tags(lora_library.format_lora_tag(LoraUse(path=str(file))))[1]
        assert lora_library.locate_lora(tag.name) == file


def test_a_checkpoint_that_was_replaced_is_read_again(home: Path, checkpoint: Path) -> None:
    """A new download under the old name would draw the old pictures."""
    own = home / "models/checkpoints/mine.safetensors"
    own.parent.mkdir()
    weights = load_file(checkpoint)
    save_file(weights, own)
    with pytest.MonkeyPatch.context() as patch:
        for module in (models_files, loader):
            patch.setattr(module, "SDXL_CONFIGS", NANO)  # nano's file is of nano's size
        first = bases.load_model("mine")
        assert bases.load_model("mine") is first
        weights["model.diffusion_model.out.2.bias"] += 1
        save_file(weights, own)
        assert not torch.equal(bases.load_model("mine").unet.conv_out.bias, first.unet.conv_out.bias)


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
        (
            "[folders]\nlora = ['x']",
            r"'lora' is not valid. .* checkpoints, loras, embeddings, upscalers, detectors",
        ),
        ("folders = 3", r"'folders' is not valid"),
        ("roots = [", r"it is not TOML.* Write paths with / or in single quotes\."),
        ('roots = ["D:\\sd"]', r"it is not TOML.* Write paths with / or in single quotes\."),
    ],
)
def test_a_wrong_line_is_one_sentence(text: str, sentence: str, home: Path) -> None:
    (home / "paths.toml").write_text(text)
    with pytest.raises(UserError, match=rf"^paths\.toml: {sentence}"):
        folders.list_files("lora")


def test_a_folder_that_is_not_there_is_said_at_the_start(home: Path) -> None:
    (home / "paths.toml").write_text(f"roots = ['gone', '~nobody-at-all/x', '{'x' * 300}']\n")
    assert [*lora_library.list_loras()] == ["nano-airbrush"]
    problems = " ".join(run_selfcheck(home / "files").problems)
    assert "The folder 'gone' of paths.toml or SWEETSPOT_MODELS is not there." in problems
