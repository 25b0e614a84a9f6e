"""The sha256 of files and of the tensors in them, each read once for as long as it stays as it is."""

import hashlib
import os
import time
from collections.abc import Generator
from pathlib import Path

import torch
from safetensors import safe_open

from core.aside import drain
from core.recent import Recent

BLOCK = 2**24
"""Bytes that are read at once."""
SETTLED = 0.1
"""Seconds: a file that changed later than that may change again and show the same time, since clocks of disks tick."""
Identity = tuple[str, int, int, int, int, int]
"""Path, device, inode, bytes, and the times (ns) at which a file's content and its entry last changed."""


def identity(file: Path) -> Identity:
    """What tells one state of a file from all others. The last time is the system's own: nobody can set it back."""
    return _identity(file, file.stat())


def _identity(file: Path, told: os.stat_result) -> Identity:
    return str(file), told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns


def is_settled(state: Identity) -> bool:
    """Whether what is read of a file in this state may be kept for it."""
    return time.time() - state[-1] / 1e9 > SETTLED


def content(file: Path) -> str:
    """The sha256 of a file."""
    return drain(hash_file(file))


def payload(file: Path) -> str:
    """The sha256 of what follows a safetensors file's header: of its tensors, whatever is said of them."""
    return drain(hash_file(file, beyond_header=True))


def hash_file(file: Path, beyond_header: bool = False) -> Generator[int, None, str]:
    """The sha256 of a file, or of what follows its header, after the number of bytes that each block brought."""
    with file.open("rb") as opened:
        state = _identity(file, os.fstat(opened.fileno()))
        if (known := _hashes.get((state, beyond_header))) is not None:
            return known
        if beyond_header:
            opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        digest = hashlib.sha256()
        while block := opened.read(BLOCK):
            digest.update(block)
            yield len(block)
        if is_settled(state) and _identity(file, os.fstat(opened.fileno())) == state:
            _hashes[state, beyond_header] = digest.hexdigest()
    return digest.hexdigest()


_hashes: Recent[tuple[Identity, bool], str] = Recent(10_000)


def hash_tensors(file: Path, prefixes: tuple[tuple[str, str], ...]) -> Generator[int, None, dict[str, str]]:
    """Part -> the sha256 of the tensors of a safetensors file whose names begin with its prefix; parts that it has. Yields as `hash_file`."""
    state = identity(file)
    if (known := _parts.get((state, prefixes))) is not None:
        return known
    found = {}
    with safe_open(file, framework="pt") as opened:
        for part, prefix in prefixes:
            names = sorted(name for name in opened.keys() if name.startswith(prefix))  # noqa: SIM118  (no mapping)
            digest = hashlib.sha256()
            for name in names:
                value = opened.get_tensor(name)
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().view(torch.uint8).numpy())
                yield value.nbytes
            if names:
                found[part] = digest.hexdigest()
    if is_settled(state) and identity(file) == state:
        _parts[state, prefixes] = found
    return found


_parts: Recent[tuple[Identity, tuple[tuple[str, str], ...]], dict[str, str]] = Recent(64)
