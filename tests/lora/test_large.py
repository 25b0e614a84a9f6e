"""A large file is read and hashed once while it does not change, and not taken for another."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.lora import apply as lora
from core.models import bases, lora_library
from core.prompts.infotext import create_infotext
from core.runtime import torch_thread
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import tensor_files
from core.system.tensor_files import SETTLE_SECONDS
from tests.bench.large_lora import write_lora
from tests.model import PLAIN_REQUEST, fingerprint

RANK = 80


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of 10 MB for nano."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    write_lora(path, RANK)
    time.sleep(2 * SETTLE_SECONDS)
    return path


@pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the bytes that a process reads are told by Linux alone"
)
def test_a_picture_with_a_file_that_is_known_reads_nothing_of_it(file: Path) -> None:
    def count_bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    def prepare_picture(seed: int) -> None:
        request = replace(PLAIN_REQUEST, seed=seed, loras=lora_library.check_loras([LoraUse(path=str(file))]))
        torch_thread.run_on_torch_thread(
            lambda: create_infotext(request, extra=lora_library.hash_loras(request.loras))
        )
        with lora.apply_loras(bases.load_model("nano"), request.loras):
            pass

    prepare_picture(1)
    before = count_bytes_read()
    prepare_picture(2)
    assert count_bytes_read() - before < file.stat().st_size / 100


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    """Times can be set, by `cp -p` or by hand, but not the one that the system keeps."""
    path, other = tmp_path / "it.safetensors", tmp_path / "other.safetensors"
    write_lora(path, 2)
    write_lora(other, 2)
    content = bytearray(other.read_bytes())
    content[-2:] = b"\x00\x3c"  # another last number
    time.sleep(2 * SETTLE_SECONDS)
    first, hashes, told = (
        lora.get_lora_file(str(path)),
        (tensor_files.calculate_sha256(path), tensor_files.calculate_payload_sha256(path)),
        path.stat(),
    )
    path.write_bytes(content)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert lora.get_lora_file(str(path)) is not first
    assert set(hashes).isdisjoint(
        (tensor_files.calculate_sha256(path), tensor_files.calculate_payload_sha256(path))
    )
    with pytest.raises(
        UserError,
        match=r"^lora: it\.safetensors was changed or removed while it was in use; choose it again\.$",
    ):
        first.load_tensors()
    path.unlink()
    with pytest.raises(UserError, match="was changed or removed"):
        first.load_tensors()


def test_a_rank_above_the_layers_own_is_the_same_change(tmp_path: Path) -> None:
    """Its product takes the place of its two matrices, in the weights and beside them."""
    write_lora(path := tmp_path / "it.safetensors", 2 * 192)
    pipeline, before, use = bases.load_model("nano"), fingerprint(), LoraUse(path=str(path), strength=1.5)
    found = lora.get_lora_file(str(path))
    tensors, plain = (
        found.load_tensors(),
        {name: weight.clone() for name, weight in pipeline.unet.named_parameters()},
    )
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    given = (
        x,
        torch.tensor([500, 500]),
        torch.randn(2, 77, 160),
        {"text_embeds": torch.randn(2, 96), "time_ids": torch.zeros(2, 6)},
    )

    def run_unet() -> torch.Tensor:
        with torch.no_grad():
            return pipeline.unet(*given[:3], added_cond_kwargs=given[3]).sample

    with lora.apply_loras(pipeline, [use]) as worn:
        for module, layer in lora.match_layers(pipeline, found)[::20]:
            up, down = (tensors[module.keys[part]].double().flatten(1) for part in ("up", "down"))
            name = next(name for name, own in pipeline.unet.named_modules() if own is layer)
            wanted = plain[f"{name}.weight"].double() + 1.5 * module.scale * (up @ down).view(
                layer.weight.shape
            )
            torch.testing.assert_close(layer.weight.double(), wanted, atol=1e-6, rtol=1e-5)
        whole = run_unet()
        worn.set_strengths([[use], [replace(use, strength=0.5)]])
        torch.testing.assert_close(run_unet()[0], whole[0], atol=1e-4, rtol=1e-4)
    assert fingerprint() == before


def test_what_is_kept_of_files_has_an_end(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lora(small := tmp_path / "small.safetensors", 1)
    pipeline = bases.load_model("nano")
    monkeypatch.setattr(lora, "DELTA_CACHE_BYTES", 2**20)
    for path in (small, file, small):
        with lora.apply_loras(pipeline, [LoraUse(path=str(path))]):
            pass
    assert [state[0][0] for state in lora._cached_deltas[pipeline.unet]] == [str(small)]
