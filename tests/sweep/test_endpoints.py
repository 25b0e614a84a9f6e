"""`/sweep` and `/edit_lora` through gradio_client."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, ValidationError
from PIL import Image
from safetensors.torch import load_file

from core.prompts import png_metadata
from core.runtime import torch_thread
from core.system.device import is_zerogpu
from tests.sweep.conftest import EXAMPLE


def test_sweep_returns_sheet_curve_cells_and_report(client: Client, tmp_path: Path) -> None:
    prompts = "1girl, blue hair, smile, white background\n1girl, red hair, frown, beach"
    sheet, curve, archive, report = client.predict(
        lora="nano-airbrush", prompts=prompts, seeds="1, 2", strengths="0-4 (+2)", api_name="/sweep"
    )
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 128
    assert [row["strength"] for row in curve] == [0, 2, 4] == report["strengths"]
    assert set(report) >= {
        "lora", "model", "noise_floor", "strengths", "curve", "onset", "sweet_spot", "breakdown",
        "recommended", "confidence", "why", "normalise_by", "cells", "seconds", "unet_calls",
    }  # fmt: skip
    assert (report["lora"], report["model"]) == ("nano-airbrush", "nano")
    assert curve[0]["effect"] == 0
    assert curve[1]["effect_low"] <= curve[1]["effect"] <= curve[1]["effect_high"]
    assert curve[1]["style"] > 0, "the images beside the example are its references"
    assert "style" not in report["unmeasured"]
    assert report["unet_calls"] >= 25
    with zipfile.ZipFile(archive) as found:
        assert set(found.namelist()) >= {
            "sheet.png",
            "curves.png",
            "curves.csv",
            "nano-airbrush.json",
            "report.json",
            *(cell["picture"] for cell in report["cells"]),
        }
        assert json.loads(found.read("report.json")) == report
        (tmp_path / "cell.png").write_bytes(found.read(report["cells"][-1]["picture"]))
    assert len(report["cells"]) == 12
    fields = png_metadata.read_infotext(tmp_path / "cell.png").fields
    assert fields["prompt"].endswith("<lora:nano-airbrush:4>")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"lora": "nowhere"}, "lora: 'nowhere' is not in the LoRA library"),
        ({"lora": {"path": "/etc/passwd"}}, "lora: use an uploaded file"),
        ({"lora": "owner/name"}, "lora: owner/name cannot be downloaded"),
        ({"strengths": "0-9"}, "strengths: 6 is not valid. Use strengths from -5 to 5"),
        ({"strengths": "much"}, "strengths: 'much' is neither a number"),
        ({"seeds": "1.5"}, "seeds: 1.5 is not valid"),
        ({"preset": "none"}, "preset: 'none' is unknown"),
        ({"preset": "baxl-v3"}, "lora: nano-airbrush.safetensors is made for nano"),
        ({"prompts": "x" * 20_000}, "prompts: 20,000 characters"),
        ({"prompts": "\n".join(f"{i} girls" for i in range(40))}, "prompts: 40 are too many"),
        ({"seeds": "1-16", "strengths": "0-5 [64]", "prompts": "a\nb"}, "are 2048 images; the limit is 1024"),
        ({"prompts": "1girl <lora:nano-airbrush:1>"}, "contains a LoRA, or another"),
        ({"prompts": "1girl <lora:x:abc>"}, "contains a LoRA, or another <tag:...>"),
        ({"references": 5}, "references: use a list"),
        ({"references": [{"path": "/etc/passwd"}]}, "references: use an uploaded file"),
    ],
)
def test_sweep_refuses_before_any_work(client: Client, asked: dict[str, Any], why: str) -> None:
    with pytest.raises((AppError, ValidationError, ValueError)) as refused:
        client.predict(**{"lora": "nano-airbrush", **asked}, api_name="/sweep")
    assert why in str(refused.value)


def test_edit_lora_moves_the_sweet_spot_to_one(client: Client) -> None:
    file, told = client.predict(lora="nano-airbrush", multiply=2.75, api_name="/edit_lora")
    assert told["scale"] == pytest.approx(2.75)
    before, after = load_file(EXAMPLE), load_file(file)
    assert all(torch.equal(after[key], value) for key, value in before.items() if not key.endswith(".alpha"))
    uploaded = handle_file(file)
    _, again = client.predict(lora=uploaded, keep="style", api_name="/edit_lora")
    assert list(again["blocks"]) == ["OUT01"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"multiply": -1}, "multiply: -1 is not valid"),
        ({"keep": "hat"}, "keep: 'hat' is not valid"),
    ]
    for asked, why in cases:
        with pytest.raises(AppError, match=why):
            client.predict(**{"lora": "nano-airbrush", **asked}, api_name="/edit_lora")


@pytest.mark.skipif(
    is_zerogpu(),
    reason="the page's process has no job to wait for: tests/tabs/test_api.py has what a look says there",
)
def test_a_look_at_a_file_never_waits_for_a_job(client: Client) -> None:
    """While a job has the model, what needs the model is left out.

    Calls that waited for it would take the threads that the job needs.
    """
    assert torch_thread.model_lock.acquire(timeout=5)
    try:
        told = client.predict(lora="nano-airbrush", api_name="/inspect_lora")
    finally:
        torch_thread.model_lock.release()
    assert told["rank"] == 4
    assert told["effective_norm"] is None
    assert told["why"].startswith("A job is using the model")
