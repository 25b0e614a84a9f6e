"""Visitors beside each other and visitors who leave: each gets what is theirs alone, and whoever closes the tab holds no place."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gradio_client import Client
from safetensors.torch import save_file

from core import gpu, record
from core.train import runs
from tests.model import fingerprint, is_free, unet_calls
from tests.train.parts import SMALL, assert_same, dataset, followed, prepared
from tests.trust.visitor import Visitor

SLOW = {"width": 256, "height": 256, "seed": 3}
"""Two so large that a step takes longer than to notice that somebody left."""


def files(raw: bytes) -> set[str]:
    """The pictures that a stream speaks of, by their paths."""
    return {path for path in re.findall(r'"path":\s*"([^"]+)"', raw.decode()) if path.endswith((".png", ".webp"))}


def watched(url: str, asked: dict[str, Any]) -> tuple[set[bytes], dict[int, bytes]]:
    """What one session sees of its job on the page: the previews, and the finished pictures by their seeds."""
    visitor = Visitor(url)
    visitor.join("_make", **asked)
    assert visitor.ended()["success"], visitor.raw[-500:]
    shown = {Path(path) for path in files(visitor.raw)}
    finished = {path for path in shown if re.fullmatch(r"\d\d-\d+\.png", path.name)}
    told = {record.read_picture(path).fields["seed"]: path.read_bytes() for path in finished}
    return {path.read_bytes() for path in shown - finished}, told


def together(studio: str, lora: str, rounds: int) -> None:
    """Two sessions at once, with a LoRA and a seed each; each sees what it sees alone, and nothing else."""
    name = Path(lora).stem
    for number in range(rounds):
        jobs = [
            {"prompt": "1girl, smile <lora:nano-airbrush:2>", "seed": 100 + number},
            {"prompt": f"1girl, {name}, red hair", "lora": {"path": lora, "meta": {"_type": "gradio.FileData"}}, "Strength": 1.5, "seed": 500 + number},
        ]
        jobs = [{**job, "Steps": 3, "width": 64, "height": 64} for job in jobs]
        alone = [watched(studio, job) for job in jobs]
        with ThreadPoolExecutor(2) as both:
            beside = list(both.map(lambda job: watched(studio, job), jobs))
        assert beside == alone, f"round {number}: a session saw something else beside another one than by itself"
        (mine, my_pictures), (its, its_pictures) = beside
        assert mine
        assert its
        assert not mine & its, "a preview was shown to both"
        assert my_pictures.keys() == {100 + number}
        assert its_pictures.keys() == {500 + number}
        assert all(b"<lora:nano-airbrush:2>" in picture for picture in my_pictures.values())
        assert all(b"<lora:mine:1.5>" in picture for picture in its_pictures.values())


@pytest.fixture(scope="module")
def lora(studio: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA of one's own, uploaded."""
    torch.manual_seed(0)
    key = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_v"
    file = tmp_path_factory.mktemp("lora") / "mine.safetensors"
    save_file({f"{key}.lora_down.weight": torch.randn(4, 72), f"{key}.lora_up.weight": torch.randn(72, 4), f"{key}.alpha": torch.tensor(2.0)}, file)
    with file.open("rb") as opened:
        (uploaded,) = httpx.post(f"{studio}gradio_api/upload", files={"files": opened}).json()
    return uploaded


def test_case_16_two_sessions_at_once_see_only_their_own(studio: str, lora: str) -> None:
    together(studio, lora, rounds=5)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_case_16_two_sessions_at_once_see_only_their_own_twenty_times(studio: str, lora: str) -> None:
    together(studio, lora, rounds=20)


def test_case_16_nobody_is_told_of_anothers_run(studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is known to the browser that began it; its name cannot be guessed, and no list has it."""
    folder, _ = prepared(dataset(tmp_path / "data"), runs.RUNS / ("a" * 31 + "7"), steps=2)
    list(gpu.lesson(folder.path))
    owner, other = Visitor(studio), Visitor(studio)
    known: dict[str, Any] = {owner.named(owner.jobs["_attached"]["inputs"][0]): folder.name}
    owner.join("_attached", **known)
    assert folder.name in json.dumps(owner.ended())
    other.join("_attached")
    assert other.ended()["success"]
    assert folder.name not in other.raw.decode()
    assert folder.name not in other.get("config").decode() + other.get("").decode() + other.get("gradio_api/info").decode()


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        ("_make", {"prompt": "1girl <lora:nano-airbrush:2>", "Steps": 50, "Pictures": 2, **SLOW}),
        ("generate", {"prompt": "1girl <lora:nano-airbrush:2>", "steps": 50, "count": 2, **SLOW}),
        ("sweep", {"lora": "nano-airbrush", "prompts": "1girl\n1boy", "seeds": "91-98", "strengths": "0-3 (+0.25)"}),
        ("_sweep", {"sweep-shelf": "nano-airbrush", "prompts": "1girl\n1boy", "seeds": "81-88", "strengths": "0-3 (+0.25)"}),
        ("transfer", {"loras": ["nano-airbrush"], "models": ["nano"], "seeds": "71-78", "strengths": "0.65, 1"}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_case_22_whoever_leaves_holds_no_place(studio: str, client: Client, job: str, asked: dict[str, Any]) -> None:
    """The job of a tab that is closed, or of a script that ended, stops within two steps; the next one has the model at once, as it was."""
    before, visitor = fingerprint(), Visitor(studio)
    with unet_calls() as calls:
        visitor.join(job, **asked)
        for message in visitor.messages():
            if message["msg"] == "process_generating" and len(calls) >= 2:
                break
        made = len(calls)
        visitor.hang_up()
        time.sleep(0.05)  # a job that is between two steps has the model, too
        is_free()
        assert len(calls) - made <= (2 if "seed" in asked else 8), "steps went on for somebody who left"  # small pictures take less time than the news
        assert fingerprint() == before
        (_,), report = client.predict(prompt="1girl", seed=5, steps=1, width=64, height=64, api_name="/generate")
    assert report["seeds"] == [5]


def test_case_22_a_slice_of_training_that_nobody_watches_any_more_goes_on_later(tmp_path: Path) -> None:
    """On a lent GPU a run is part of the visitor's own event: what it had saved stays, and the end is the same."""
    data = dataset(tmp_path / "data", sizes=((64, 64),))
    straight, left = (prepared(data, tmp_path / name, steps=4, save_every=2, batch=1, **SMALL)[0] for name in "ab")
    followed(straight)
    slice_ = gpu.lesson(left.path)
    while sum(line["kind"] == "loss" for line in left.said()) < 3:
        next(slice_)
    slice_.close()  # type: ignore[attr-defined]
    state = left.state()
    assert state is not None
    assert state[0] == 2
    assert not left.is_owned()
    list(gpu.lesson(left.path))
    assert_same(straight, left)
