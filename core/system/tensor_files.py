"""Hash files and the tensors in them, and write safetensors files reproducibly.

The same content always gives the same bytes.
"""

import hashlib
import json
import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.system.atomic_files import replace_file
from core.system.concurrency import BoundedDict, drain

CHUNK_BYTES = 2**24
"""Bytes to read at once."""
SETTLE_SECONDS = 0.1
"""A file that changed within the last so many seconds may change again without a new time stamp.

The clocks of disks tick that coarsely.
"""
FileIdentity = tuple[str, int, int, int, int, int]
"""Path, device, inode, bytes, and the times (ns) when a file's content and entry last changed."""


def identify_file(file: Path) -> FileIdentity:
    """Return what tells one state of a file from all others.

    Its last item is the system's own time of change, which nobody can set back.
    """
    return _make_identity(file, file.stat())


def _make_identity(file: Path, stat: os.stat_result) -> FileIdentity:
    return str(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def is_settled(state: FileIdentity) -> bool:
    """Whether data read from a file in this state may be cached for it."""
    return time.time() - state[-1] / 1e9 > SETTLE_SECONDS


def calculate_sha256(file: Path) -> str:
    """Return the sha256 of a file as hex."""
    return drain(hash_file(file))


def calculate_payload_sha256(file: Path) -> str:
    """Return the sha256 of a safetensors file's tensors, that is of what follows its header."""
    return drain(hash_file(file, beyond_header=True))


def hash_file(file: Path, beyond_header: bool = False) -> Generator[int, None, str]:
    """Return the sha256 of a file, or of what follows a safetensors file's header.

    Yields the number of bytes of each block that was read.
    """
    with file.open("rb") as opened:
        state = _make_identity(file, os.fstat(opened.fileno()))
        if (known := _file_hashes.get((state, beyond_header))) is not None:
            return known
        if beyond_header:
            opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        digest = hashlib.sha256()
        while block := opened.read(CHUNK_BYTES):
            digest.update(block)
            yield len(block)
        if is_settled(state) and _make_identity(file, os.fstat(opened.fileno())) == state:
            _file_hashes[state, beyond_header] = digest.hexdigest()
    return digest.hexdigest()


_file_hashes: BoundedDict[tuple[FileIdentity, bool], str] = BoundedDict(10_000)


def hash_tensors(file: Path, prefixes: tuple[tuple[str, str], ...]) -> Generator[int, None, dict[str, str]]:
    """Return part -> the sha256 of a safetensors file's tensors whose names begin with its prefix.

    `prefixes` has pairs of part and prefix; parts without tensors are left out. Yields the number
    of bytes of each tensor that was read.
    """
    state = identify_file(file)
    if (known := _tensor_hashes.get((state, prefixes))) is not None:
        return known
    found = {}
    with safe_open(file, framework="pt") as opened:
        for part, prefix in prefixes:
            names = sorted(name for name in opened.keys() if name.startswith(prefix))  # noqa: SIM118
            digest = hashlib.sha256()
            for name in names:
                value = opened.get_tensor(name)
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().view(torch.uint8).numpy())
                yield value.nbytes
            if names:
                found[part] = digest.hexdigest()
    if is_settled(state) and identify_file(file) == state:
        _tensor_hashes[state, prefixes] = found
    return found


_tensor_hashes: BoundedDict[tuple[FileIdentity, tuple[tuple[str, str], ...]], dict[str, str]] = BoundedDict(
    64
)


def write_tensors(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Tensors that share memory are each written whole."""
    with replace_file(file) as unfinished:
        save_file(_separate_storage(tensors), unfinished, dict(metadata or {}))
        _sort_metadata(unfinished)


def _separate_storage(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, none sharing another's memory.

    safetensors refuses shared memory, and bitsandbytes has one table for all its groups.
    """
    found, places = {}, set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if place in places else plain
        places.add(place)
    return found


def _sort_metadata(file: Path) -> None:
    """Sort the metadata in the file's header.

    The library writes it in another order each time, and a file would never have the same hash
    twice.
    """
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        told = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(told) <= size, "the library writes its header in more words than are needed"
        opened.seek(8)
        opened.write(told.ljust(size))
