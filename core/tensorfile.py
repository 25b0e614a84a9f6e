"""Tensors and what is said of them as a safetensors file: whole at any time, and the same bytes for the same content."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.atomic import replacing


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the file, or nothing. Tensors that share their memory are each written whole."""
    with replacing(file) as unfinished:
        save_file(_separate(tensors), unfinished, dict(metadata or {}))
        _sorted(unfinished)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, none in another's memory: safetensors refuses those, and bitsandbytes has one table for all its groups."""
    found, places = {}, set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if place in places else plain
        places.add(place)
    return found


def _sorted(file: Path) -> None:
    """Put the metadata in order: the library writes it in another one each time, and a file would never have the same hash twice."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        told = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(told) <= size, "the library writes its header in more words than are needed"
        opened.seek(8)
        opened.write(told.ljust(size))
