"""`/caption` and `/train_*` through gradio_client.

From a zip to a LoRA, and what a client gets wrong.
"""

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from core.lora import file as lora_file
from core.nano.lessons import make_airbrush_set
from core.system.device import is_zerogpu

FEW_STEPS = {"steps": 4, "batch": 2, "save_every": 2, "preview_every": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zip four drawings, one with a caption and a mask, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("brought")
    archive = folder / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for i, (picture, caption) in enumerate(make_airbrush_set(4)):
            picture.save(folder / f"{i}.png")
            out.write(folder / f"{i}.png", f"soft {i}.png")
            if i == 0:
                out.writestr("soft 0.txt", caption)
                out.write(folder / f"{i}.png", "soft 0-masklabel.png")
        out.writestr("notes.png", b"no picture")
    return archive


def wait_for_end(client: Client, run: str) -> dict[str, Any]:
    for _ in range(600):
        status = client.predict(run=run, api_name="/train_status")
        if status["state"] in ("done", "failed", "stopped"):
            return status
        time.sleep(0.2)
    raise AssertionError(f"the run does not end: {status}")


def test_from_a_zip_to_a_lora(client: Client, pictures: Path) -> None:
    begun = client.predict(
        dataset=handle_file(pictures),
        recipe="nano-quick",
        trigger="soft",
        overrides=FEW_STEPS,
        api_name="/train_start",
    )
    assert (begun["steps"], begun["images"], begun["buckets"]) == (4, 4, {"128x128": 4})
    assert any("notes.png" in line for line in begun["warnings"]), "a file that was left out is named"
    assert (
        "OneTrainer masks are skipped and not trained as images: 'soft 0-masklabel.png'." in begun["warnings"]
    )
    assert any("3 of 4 images have no caption" in line for line in begun["warnings"])
    status = wait_for_end(client, begun["run"])
    assert (status["state"], status["step"], status["error"], status["seconds_left"]) == (
        "done",
        4,
        None,
        None,
    )
    assert status["loss"] > 0
    assert [Path(file).name for file in status["checkpoints"]] == ["soft-000002.safetensors"]
    assert len(status["previews"]) == 6, "two prompts at strengths 0, 1 and 2"
    assert all(Path(file).read_bytes()[:4] == b"\x89PNG" for file in status["previews"])
    found = lora_file.read_lora_file(Path(status["lora"]))
    assert (found.format, found.rank, found.scale, found.trigger) == ("kohya", 4, 0.5, "soft")
    told = client.predict(lora=handle_file(status["lora"]), api_name="/inspect_lora")
    assert told["trigger"] == "soft"


@pytest.mark.skipif(
    is_zerogpu(),
    reason="a start lasts as long as its slice: "
    "tests/runtime/test_zerogpu.py has a run that is cut off and goes on",
)
def test_stop_and_resume(client: Client, pictures: Path) -> None:
    begun = client.predict(
        dataset=handle_file(pictures),
        recipe="nano-quick",
        trigger="soft",
        overrides={**FEW_STEPS, "steps": 300},
        api_name="/train_start",
    )
    while client.predict(run=begun["run"], api_name="/train_status")["step"] < 2:
        time.sleep(0.2)
    client.predict(run=begun["run"], api_name="/train_stop")
    stopped = wait_for_end(client, begun["run"])
    assert stopped["state"] == "stopped"
    resumed = client.predict(run=begun["run"], api_name="/train_resume")
    assert resumed["state"] in ("waiting", "running")
    while client.predict(run=begun["run"], api_name="/train_status")["step"] <= stopped["step"]:
        time.sleep(0.2)
    client.predict(run=begun["run"], api_name="/train_stop")
    wait_for_end(client, begun["run"])


def test_captions(client: Client, pictures: Path) -> None:
    archive, table = client.predict(
        dataset=handle_file(pictures), trigger="soft", drop="airbrush\n*background", api_name="/caption"
    )
    with zipfile.ZipFile(archive) as found:
        assert len(found.namelist()) == 8
        brought, *new = [found.read(f"000{i}.txt").decode() for i in range(1, 5)]
    assert brought == make_airbrush_set(1)[0][1], "a caption that was brought is replaced"
    assert all(
        text.startswith("soft, ") and "airbrush" not in text and "background" not in text for text in new
    )
    counts = {row["tag"]: row["count"] for row in table}
    assert (counts["soft"], counts["1girl"]) == (3, 4)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"recipe": "none"}, "recipe: 'none' is unknown. Use one of: nano-quick"),
        ({"model": "none"}, "model: 'none' is unknown"),
        ({"overrides": {"rank": 1000}}, "rank: 1000 is not valid. Use a whole number from 1 to 256"),
        ({"dataset": {"path": "/etc/passwd"}}, "dataset: use an uploaded file"),
        ({"dataset": []}, "dataset: use a zip, or a list of images"),
        ({"trigger": "x" * 300}, "trigger: "),
    ],
    ids=str,
)
def test_what_is_not_allowed(asked: dict, why: str, client: Client, pictures: Path) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(
            **{"dataset": handle_file(pictures), "recipe": "nano-quick", "trigger": "soft", **asked},
            api_name="/train_start",
        )
    assert why in str(refused.value)


@pytest.mark.parametrize("run", ["", "..", "../x", "0" * 32, "/etc", None, {"a": 1}])
@pytest.mark.parametrize("name", ["/train_status", "/train_stop", "/train_resume"])
def test_case_11_a_run_that_nobody_was_given(run: Any, name: str, client: Client) -> None:
    with pytest.raises(AppError, match="does not exist"):
        client.predict(run=run, api_name=name)
