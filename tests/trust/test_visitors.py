"""Visitors at the same time, and visitors who leave.

Each gets only their own results, and whoever closes the tab holds no place.
"""

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

from core.prompts import png_metadata
from core.runtime import gpu
from core.train import runs
from tests.model import count_unet_calls, fingerprint, wait_until_free
from tests.train.parts import SMALL_SIZES, assert_same, make_dataset, prepare_run, run_training
from tests.trust.visitor import Visitor

SLOW_VALUES = {"width": 256, "height": 256, "seed": 3}
"""Two pictures so large that a step takes longer than noticing that somebody left."""


def find_pictures(stream: bytes) -> set[str]:
    """Return the paths of the pictures in a stream."""
    return {
        path
        for path in re.findall(r'"path":\s*"([^"]+)"', stream.decode())
        if path.endswith((".png", ".webp"))
    }


def watch_job(url: str, values: dict[str, Any]) -> tuple[set[bytes], dict[int, bytes]]:
    """Run a job on the page as one session and return what it sees.

    That is the bytes of the previews, and those of the finished pictures by seed.
    """
    visitor = Visitor(url)
    visitor.join("_generate_pictures", **values)
    assert visitor.wait_for_result()["success"], visitor.stream_bytes[-500:]
    shown = {Path(path) for path in find_pictures(visitor.stream_bytes)}
    finished = {path for path in shown if re.fullmatch(r"\d\d-\d+\.png", path.name)}
    told = {png_metadata.read_infotext(path).fields["seed"]: path.read_bytes() for path in finished}
    return {path.read_bytes() for path in shown - finished}, told


def compare_together(studio: str, lora: str, rounds: int) -> None:
    """Assert that two sessions at once see what each sees alone, and nothing else.

    Each has its own LoRA and seed.
    """
    name = Path(lora).stem
    for number in range(rounds):
        jobs = [
            {"prompt": "1girl, smile <lora:nano-airbrush:2>", "seed": 100 + number},
            {
                "prompt": f"1girl, {name}, red hair",
                "lora": {"path": lora, "meta": {"_type": "gradio.FileData"}},
                "Strength": 1.5,
                "seed": 500 + number,
            },
        ]
        jobs = [{**job, "Steps": 3, "width": 64, "height": 64} for job in jobs]
        alone = [watch_job(studio, job) for job in jobs]
        with ThreadPoolExecutor(2) as both:
            beside = list(both.map(lambda job: watch_job(studio, job), jobs))
        assert beside == alone, (
            f"round {number}: a session saw something else beside another one than by itself"
        )
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
    """Upload a small random LoRA and return its path."""
    torch.manual_seed(0)
    key = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_v"
    file = tmp_path_factory.mktemp("lora") / "mine.safetensors"
    save_file(
        {
            f"{key}.lora_down.weight": torch.randn(4, 72),
            f"{key}.lora_up.weight": torch.randn(72, 4),
            f"{key}.alpha": torch.tensor(2.0),
        },
        file,
    )
    with file.open("rb") as opened:
        (uploaded,) = httpx.post(f"{studio}gradio_api/upload", files={"files": opened}).json()
    return uploaded


def test_case_16_two_sessions_at_once_see_only_their_own(studio: str, lora: str) -> None:
    compare_together(studio, lora, rounds=5)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_case_16_two_sessions_at_once_see_only_their_own_twenty_times(studio: str, lora: str) -> None:
    compare_together(studio, lora, rounds=20)


def test_case_16_nobody_is_told_of_anothers_run(
    studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the browser that began a run knows it: no list has its name, which cannot be guessed."""
    folder, _ = prepare_run(make_dataset(tmp_path / "data"), runs.RUNS / ("a" * 31 + "7"), steps=2)
    list(gpu.train_slice(folder.path))
    owner, other = Visitor(studio), Visitor(studio)
    known: dict[str, Any] = {owner.get_component_name(owner.jobs["_restore_runs"]["inputs"][0]): folder.name}
    owner.join("_restore_runs", **known)
    assert folder.name in json.dumps(owner.wait_for_result())
    other.join("_restore_runs")
    assert other.wait_for_result()["success"]
    assert folder.name not in other.stream_bytes.decode()
    assert (
        folder.name
        not in other.get("config").decode() + other.get("").decode() + other.get("gradio_api/info").decode()
    )


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        (
            "_generate_pictures",
            {"prompt": "1girl <lora:nano-airbrush:2>", "Steps": 50, "Batch count": 2, **SLOW_VALUES},
        ),
        ("generate", {"prompt": "1girl <lora:nano-airbrush:2>", "steps": 50, "count": 2, **SLOW_VALUES}),
        (
            "sweep",
            {"lora": "nano-airbrush", "prompts": "1girl\n1boy", "seeds": "91-98", "strengths": "0-3 (+0.25)"},
        ),
        (
            "_sweep",
            {
                "sweep-shelf": "nano-airbrush",
                "prompts": "1girl\n1boy",
                "seeds": "81-88",
                "strengths": "0-3 (+0.25)",
            },
        ),
        (
            "transfer",
            {"loras": ["nano-airbrush"], "models": ["nano"], "seeds": "71-78", "strengths": "0.65, 1"},
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_case_22_whoever_leaves_holds_no_place(
    studio: str, client: Client, job: str, asked: dict[str, Any]
) -> None:
    """The job of a closed tab or an ended script stops within two steps.

    The next job gets the model at once, unchanged.
    """
    before, visitor = fingerprint(), Visitor(studio)
    with count_unet_calls() as calls:
        visitor.join(job, **asked)
        for message in visitor.read_messages():
            if message["msg"] == "process_generating" and len(calls) >= 2:
                break
        made = len(calls)
        visitor.hang_up()
        time.sleep(0.05)  # a job between two steps still holds the model
        wait_until_free()
        # small pictures take less time than noticing that somebody left
        assert len(calls) - made <= (2 if "seed" in asked else 8), "steps went on for somebody who left"
        assert fingerprint() == before
        (_,), report = client.predict(
            prompt="1girl", seed=5, steps=1, width=64, height=64, api_name="/generate"
        )
    assert report["seeds"] == [5]


def test_case_22_a_slice_of_training_that_nobody_watches_any_more_goes_on_later(tmp_path: Path) -> None:
    """On ZeroGPU a run is part of the visitor's own event and ends with it.

    What it had saved stays, and the end of the resumed run is the same.
    """
    data = make_dataset(tmp_path / "data", sizes=((64, 64),))
    straight, left = (
        prepare_run(data, tmp_path / name, steps=4, save_every=2, batch=1, **SMALL_SIZES)[0] for name in "ab"
    )
    run_training(straight)
    slice_ = gpu.train_slice(left.path)
    while sum(line["kind"] == "loss" for line in left.read_events()) < 3:
        next(slice_)
    slice_.close()  # type: ignore[attr-defined]
    state = left.load_state()
    assert state is not None
    assert state[0] == 2
    assert not left.is_locked()
    list(gpu.train_slice(left.path))
    assert_same(straight, left)
