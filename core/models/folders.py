"""Finds a person's model files: in the studio's folders, and in those of other programs.

`paths.toml` beside `models/` names them: `roots` are installations of A1111, Forge, ComfyUI, SwarmUI
or Stability Matrix, whose layouts are known; under `[folders]` stand single folders, by kind.
SWEETSPOT_MODELS names roots, too. Nothing is copied or moved, and a new file needs no restart.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from core.schema import toml
from core.schema.errors import UserError
from core.system import paths
from core.system.device import is_space

FOLDER_NAMES = {
    "checkpoint": ("checkpoints", "Stable-diffusion", "Stable-Diffusion", "StableDiffusion"),
    "lora": ("loras", "Lora", "LyCORIS"),
    "embedding": ("embeddings", "Embeddings", "TextualInversion"),
    "upscaler": ("upscalers", "upscale_models", "ESRGAN", "RealESRGAN", "DAT"),
    "detector": ("detectors", "adetailer"),
    "vae": ("vae", "VAE"),
}
"""Kind -> what its folder is called: in `models/` of the studio, then in other programs."""
MODEL_PLACES = ("models", "Models", "Data/Models", "")
"""Where those folders lie in an installation. Stability Matrix has `Data`; "" is the folder of models."""
SUFFIXES = {
    "checkpoint": (".safetensors",),
    "lora": (".safetensors",),
    "embedding": (".safetensors", ".pt", ".bin"),  # pickles only to say what they are
    "upscaler": (".safetensors", ".pth"),
    "detector": (".onnx",),
    "vae": (".safetensors",),
}
DIFFUSERS_INDEX = "model_index.json"
"""What the folder of a checkpoint in diffusers' layout holds; the folder counts as one file."""
PATHS_FILE = "paths.toml"


def list_files(kind: str, with_suffix: bool = False) -> dict[str, Path]:
    """Return a person's files of a kind by name, the studio's own folder first.

    The name is the file's, with or without its suffix; of two that are alike, the second says in
    brackets where it lies. Only names and links are looked at, no content. Raises `UserError` for a
    `paths.toml` that cannot be read.
    """
    found: dict[str, Path] = {}
    for folder in _list_folders(kind):
        for file in _walk(folder, SUFFIXES[kind], with_diffusers=kind == "checkpoint"):
            name = file.name if with_suffix or file.is_dir() else file.stem
            if name in found:  # no `folder/name`, which is what the Hub's names look like
                place = file.parent.relative_to(folder.parent).as_posix()
                labels = (f"{name} ({place}{number})" for number in ("", *map(" {}".format, range(2, 1000))))
                name = next(label for label in labels if label not in found)
            found[name] = file
    return found


def list_missing_folders() -> list[str]:
    """List the folders that `paths.toml` or SWEETSPOT_MODELS names and that are not there."""
    roots, single = _read_paths()
    named = [*roots, *(folder for folders in single.values() for folder in folders)]
    return [str(folder) for folder in named if not _is_folder(folder)]


def _list_folders(kind: str) -> list[Path]:
    """List the folders of a kind that are there, each once."""
    roots, single = _read_paths()
    candidates = [paths.MODELS / FOLDER_NAMES[kind][0], *single.get(FOLDER_NAMES[kind][0], ())]
    candidates += [
        root / place / name for root in roots for place in MODEL_PLACES for name in FOLDER_NAMES[kind]
    ]
    found: dict[tuple[int, int | str], Path] = {}
    for folder in candidates:
        # Where a file system takes capitals and small letters for the same, two names are one folder.
        if _is_folder(folder):
            found.setdefault(_identify(folder), folder)
    return list(found.values())


def _is_folder(path: Path) -> bool:
    """Whether a folder is there; a path that cannot be looked at is none, where `is_dir` may raise."""
    return os.path.isdir(path)  # noqa: PTH112


def _identify(folder: Path) -> tuple[int, int | str]:
    """Return what tells a folder from every other one; some network drives have no numbers for it."""
    told = folder.stat()
    return told.st_dev, told.st_ino or os.path.normcase(os.path.realpath(folder))


def _read_paths() -> tuple[list[Path], dict[str, list[Path]]]:
    """Return the roots of installations, and single folders by kind.

    A relative path begins at the folder of `paths.toml`.
    """
    file = paths.MODELS.with_name(PATHS_FILE)
    try:
        table = toml.read_toml(file, PATHS_FILE) if file.is_file() else {}
    except UserError as error:  # what Windows' paths make of double quotes
        raise UserError(PATHS_FILE, f"{error.sentence} Write paths with / or in single quotes.") from error
    single = table.pop("folders", {})
    roots = _check_paths(table.pop("roots", []), "roots")
    kinds = [names[0] for names in FOLDER_NAMES.values()]
    unknown = [*table, *(set(single) - set(kinds) if isinstance(single, dict) else ["folders"])]
    if unknown or not isinstance(single, dict):
        raise UserError(
            PATHS_FILE,
            f"{unknown[0][:40]!r} is not valid. Use roots = [...], and under [folders] {', '.join(kinds)}.",
        )
    return [*roots, *paths.MODEL_ROOTS], {kind: _check_paths(told, kind) for kind, told in single.items()}


def _check_paths(told: object, name: str) -> list[Path]:
    """Return what a line of `paths.toml` names: one path, or several."""
    entries = [told] if isinstance(told, str) else told
    if not isinstance(entries, list) or not all(isinstance(each, str) and each for each in entries):
        raise UserError(PATHS_FILE, f"{name}: use a folder, or a list of folders, in quotes.")
    # An unknown `~user` stays as it is, and is not there.
    return [paths.MODELS.parent / os.path.expanduser(each) for each in entries]  # noqa: PTH111


def _walk(folder: Path, suffixes: tuple[str, ...], with_diffusers: bool) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names, without hidden folders.

    `with_diffusers` yields a folder in diffusers' layout as a whole, instead of its files.
    Links are followed on a person's own machine. On a Space, a file behind a link that leads out of
    the folder is left out.
    """
    inside, seen = folder.resolve(), set[str]()
    for here, folders, files in os.walk(folder, followlinks=not is_space()):
        real = os.path.realpath(here)
        if with_diffusers and DIFFUSERS_INDEX in files:
            folders[:] = files[:] = []
            yield Path(here)
        folders[:] = [] if real in seen else sorted(each for each in folders if not each.startswith("."))
        for name in [] if real in seen else sorted(files):
            file = Path(here, name)
            if name.startswith(".") or not name.lower().endswith(suffixes):
                continue
            target = file.resolve() if file.is_symlink() else file
            if target.exists() and (target == file or not is_space() or target.is_relative_to(inside)):
                yield file
        seen.add(real)
