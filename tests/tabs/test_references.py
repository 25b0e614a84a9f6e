"""References come by themselves: from a LoRA's folder, its training run, or its card on the Hub."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.context import LocalContext
from huggingface_hub import HfApi
from PIL import Image

from core.hub import client
from core.models import from_hub
from core.train import runs
from tabs.shared.references import find_references
from tabs.sweep.controls import fill_in_references
from tabs.train.progress import open_in_sweep
from tests.hub.server_state import Hub
from tests.models.library import write_lora
from tests.publish.test_card import EXAMPLE
from tests.train.parts import make_dataset

CARD = """---
license: cc0-1.0
widget:
- text: 1girl
  output:
    url: images/clip.mp4
- output: {url: images/a.png}
- output: {url: "https://huggingface.co/ann/soft/resolve/main/b.jpg"}
- output: {url: "https://huggingface.co/bob/other/resolve/main/b.jpg"}
- output: {url: "http://127.0.0.1/secret.png"}
- output: {url: ../../../etc/passwd.png}
- output: {url: images/fake.png}
- output: {url: images/torn.png}
- text: without an image
- just text
---
"""
SHARE_LINK: Any = SimpleNamespace(headers={"host": "a1b2.gradio.live"})


@pytest.fixture
def hub_lora(hub_server: Hub) -> Path:
    """A LoRA whose card shows two images of its own, and other things."""
    api = HfApi(token="hf_ann")
    api.create_repo("ann/soft")
    for name, body in (
        ("README.md", CARD.encode()),
        ("soft.safetensors", EXAMPLE.read_bytes()),
        ("images/a.png", draw_image("png", "red")),
        ("b.jpg", draw_image("jpeg", "blue")),
        ("images/fake.png", b"<svg onload=alert(1)>"),
        ("images/torn.png", draw_image("png", "red")[:-30]),
        ("images/clip.mp4", b"\x00" * 5000),
    ):
        api.upload_file(path_or_fileobj=body, path_in_repo=name, repo_id="ann/soft")
    hub_server.requests.clear()
    return from_hub.fetch_lora("ann/soft")


def draw_image(kind: str, colour: str) -> bytes:
    Image.new("RGB", (32, 32), colour).save(out := io.BytesIO(), kind)
    return out.getvalue()


def test_the_images_on_its_card_are_the_references(
    hub_lora: Path, hub_server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, a sweep of somebody's style says no more than where images change."""
    small = len(draw_image("png", "red"))
    monkeypatch.setattr(from_hub, "MAX_GALLERY_BYTES", 3 * small + len(draw_image("jpeg", "blue")))
    found, note = find_references(str(hub_lora))
    assert [file.suffix for file in found] == [".png", ".jpg"], "the card's own images, nothing else"
    assert note == "The references are the images on its card on Hugging Face."
    asked = [request for request in hub_server.requests if "resolve" in request.path]
    assert all(request.path.startswith("/ann/soft/") for request in asked), "only its own files are asked for"
    assert not [request for request in asked if "authorization" in request.headers]


def test_a_hub_that_does_not_answer_is_said(hub_lora: Path, hub_server: Hub) -> None:
    client._listings.clear()
    hub_server.fail("GET /api/models/ann/soft", "404", times=9)
    found, note = find_references(str(hub_lora))
    assert not found
    assert note.startswith("The images on its card could not be fetched: ")


def test_the_page_brings_them_and_keeps_a_persons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    data = make_dataset(tmp_path / "data")
    run = runs.create_run(runs.plan_run(data, "nano-quick", trigger="flow")[0], data)
    run.loras.mkdir(exist_ok=True)
    mine_too = write_lora(tmp_path / "final.safetensors")
    shutil.copy(mine_too, run.loras)
    (filled,) = fill_in_references(str(mine_too), None, None, [])
    assert len(filled["references"]) == len(data.samples)
    assert filled["references_note"] == "The references are images of the run that trained this LoRA."
    mine = ["mine.png", *filled["references"]]
    again = list(fill_in_references(str(mine_too), None, mine, filled["references"]))
    assert again == [{"references_note": ""}], "a person's own images stay"
    brought = open_in_sweep(run.name, str(run.loras / "final.safetensors"))
    assert (brought["preset"], brought["model"]) == ("nano", "")
    assert brought["references"] == brought["found_references"], "they go with the LoRA"
    assert len(brought["references"]) == len(data.samples)
    (run.dataset / "dataset.json").rename(run.dataset / "gone.json")
    damaged, said = find_references(str(mine_too))
    assert not damaged
    assert said.startswith("The images of the run that trained this LoRA cannot be read: ")
    (run.dataset / "gone.json").rename(run.dataset / "dataset.json")
    shared = LocalContext.request.set(SHARE_LINK)
    (strange,) = fill_in_references(str(mine_too), None, None, [])
    assert "references" not in strange, "not through a share link"
    LocalContext.request.reset(shared)
    other = tmp_path / "other.safetensors"
    other.write_bytes(mine_too.read_bytes()[:-1] + b"\x01")
    gone, nothing = fill_in_references(str(other), None, filled["references"], filled["references"])
    assert gone == {"references": None, "found_references": [], "references_note": ""}, "they go first"
    assert nothing == {"references_note": ""}


def test_images_in_the_folder_beside_a_library_lora_are_its_references(shelf: Path) -> None:
    """So the first sweep of the LoRA that comes with the studio is held against something."""
    (example,) = fill_in_references(None, "nano-airbrush", None, [])
    assert len(example["references"]) == 15
    lora = write_lora(shelf / "own.safetensors")
    (shelf / "own").mkdir()
    (shelf / "own" / "a.jpg").write_bytes(draw_image("jpeg", "blue"))
    (shelf / "own" / "a.txt").write_text("1girl")
    (shelf / "own" / "torn.png").write_bytes(draw_image("png", "blue")[:-30])
    found, note = find_references(str(lora))
    assert [file.suffix for file in found] == [".jpg"]
    assert "in the folder beside this LoRA" in note
    shared = LocalContext.request.set(SHARE_LINK)
    assert find_references(str(lora)) == ([], ""), "a guest is not shown what lies in the owner's folders"
    assert len(find_references(str(EXAMPLE))[0]) == 15
    LocalContext.request.reset(shared)
