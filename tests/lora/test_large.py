"""A large file: read and hashed once for as long as it stays as it is, and never taken for another."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import digest, gpu, lora, models, shelf
from core.digest import SETTLED
from core.infotext import infotext
from core.types import LoraUse, UserError
from tests.bench.large_lora import write
from tests.model import PLAIN, fingerprint

RANK = 80


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 MB, for nano."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    write(path, RANK)
    time.sleep(2 * SETTLED)
    return path


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the bytes that a process reads are told by Linux alone")
def test_a_picture_with_a_file_that_is_known_reads_nothing_of_it(file: Path) -> None:
    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    def picture(seed: int) -> None:
        request = replace(PLAIN, seed=seed, loras=shelf.checked([LoraUse(path=str(file))]))
        gpu.lane(lambda: infotext(request, extra=shelf.hashes(request.loras)))
        with lora.loaded(models.load("nano"), request.loras):
            pass

    picture(1)
    before = read()
    picture(2)
    assert read() - before < file.stat().st_size / 100


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    """Times can be set, by `cp -p` or by hand; not the one that the system keeps."""
    path, other = tmp_path / "it.safetensors", tmp_path / "other.safetensors"
    write(path, 2)
    write(other, 2)
    content = bytearray(other.read_bytes())
    content[-2:] = b"\x00\x3c"  # another last number
    time.sleep(2 * SETTLED)
    first, hashes, told = lora.file(str(path)), (digest.content(path), digest.payload(path)), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert lora.file(str(path)) is not first
    assert set(hashes).isdisjoint((digest.content(path), digest.payload(path)))
    with pytest.raises(UserError, match=r"^lora: it\.safetensors was changed or removed while it was in use; choose it again\.$"):
        first.tensors()
    path.unlink()
    with pytest.raises(UserError, match="was changed or removed"):
        first.tensors()


def test_a_rank_above_the_layers_own_is_the_same_change(tmp_path: Path) -> None:
    """Its product is held in the place of its two matrices, in the weights and beside them."""
    write(path := tmp_path / "it.safetensors", 2 * 192)
    pipeline, before, use = models.load("nano"), fingerprint(), LoraUse(path=str(path), strength=1.5)
    found = lora.file(str(path))
    tensors, plain = found.tensors(), {name: weight.clone() for name, weight in pipeline.unet.named_parameters()}
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    given = (x, torch.tensor([500, 500]), torch.randn(2, 77, 160), {"text_embeds": torch.randn(2, 96), "time_ids": torch.zeros(2, 6)})

    def out() -> torch.Tensor:
        with torch.no_grad():
            return pipeline.unet(*given[:3], added_cond_kwargs=given[3]).sample

    with lora.loaded(pipeline, [use]) as worn:
        for module, layer in lora.placed(pipeline, found)[::20]:
            up, down = (tensors[module.keys[part]].double().flatten(1) for part in ("up", "down"))
            name = next(name for name, own in pipeline.unet.named_modules() if own is layer)
            wanted = plain[f"{name}.weight"].double() + 1.5 * module.scale * (up @ down).view(layer.weight.shape)
            torch.testing.assert_close(layer.weight.double(), wanted, atol=1e-6, rtol=1e-5)
        whole = out()
        worn.set([[use], [replace(use, strength=0.5)]])
        torch.testing.assert_close(out()[0], whole[0], atol=1e-4, rtol=1e-4)
    assert fingerprint() == before


def test_what_is_kept_of_files_has_an_end(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(small := tmp_path / "small.safetensors", 1)
    pipeline = models.load("nano")
    monkeypatch.setattr(lora, "KEPT_BYTES", 2**20)
    for path in (small, file, small):
        with lora.loaded(pipeline, [LoraUse(path=str(path))]):
            pass
    assert [state[0] for state in lora._ready[pipeline.unet]] == [str(small)]
