"""The sha256 of files and of the tensors in them, each read once for as long as it stays as it is."""

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open

from core.recent import Recent


def content(file: Path) -> str:
    """The sha256 of a file."""
    told = file.stat()
    stamp = (str(file), told.st_mtime_ns, told.st_size)
    if (found := _read.get(stamp)) is None:
        with file.open("rb") as opened:
            found = _read[stamp] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


_read: Recent[tuple[str, int, int], str] = Recent(10_000)


def tensors(file: Path, prefixes: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Part -> the sha256 of the tensors of a safetensors file whose names begin with its prefix; parts that it has."""
    return _tensors(file, file.stat().st_mtime_ns, prefixes)


@lru_cache(64)
def _tensors(file: Path, _: int, prefixes: tuple[tuple[str, str], ...]) -> dict[str, str]:
    found = {}
    with safe_open(file, framework="pt") as opened:
        for part, prefix in prefixes:
            names = sorted(name for name in opened.keys() if name.startswith(prefix))  # noqa: SIM118  (no mapping)
            made = hashlib.sha256()
            for name in names:
                value = opened.get_tensor(name)
                made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                made.update(value.contiguous().view(torch.uint8).numpy())
            if names:
                found[part] = made.hexdigest()
    return found
