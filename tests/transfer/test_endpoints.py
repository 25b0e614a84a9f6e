"""`/transfer` through gradio_client, and what a client gets wrong."""

import zipfile
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.transfer.conftest import EXAMPLE, PROMPTS

ASKED: dict[str, Any] = {"prompts": PROMPTS, "seeds": "1, 2", "strengths": "0.65, 1"}


@pytest.mark.usefixtures("few_steps")
def test_a_file_and_a_name_are_crossed(client: Client) -> None:
    loras = [handle_file(EXAMPLE), {"lora": "nano-airbrush", "home": "nano"}]
    sheet, archive, report = client.predict(loras=loras, models=["nano", "nano-paint"], **ASKED, api_name="/transfer")
    assert open(sheet, "rb").read(4) == b"\x89PNG"  # noqa: PTH123, SIM115
    with zipfile.ZipFile(archive) as opened:
        assert {"report.json", "study.html", "cells.csv", "heat.png", "sheet.png"} <= set(opened.namelist())
    assert report["models"] == ["nano", "nano-paint"]
    assert report["loras"] == ["nano-airbrush", "nano-airbrush (2)"]
    keys = {"model", "lora", "strength", "effect", "style_kept", "base_style_kept", "prompt", "why"}
    assert all(keys <= set(cell) for cell in report["cells"])
    assert len(report["cells"]) == 2 * 2 * 2
    assert {"model", "lora", "sweet_spot", "needs_times", "verdict"} <= set(report["per_pair"][0])
    assert report["lineage"]["tree"] == ["nano", "   └─ nano-paint"]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"loras": []}, "loras: choose at least one."),
        ({"loras": ["none"]}, "lora: 'none' is not on the shelf"),
        ({"loras": [{"lora": "nano-airbrush", "strength": 1}]}, "loras: 'strength' is not a setting"),
        ({"loras": [{"lora": "nano-airbrush", "home": "mars"}]}, "home: 'mars' is unknown"),
        ({"loras": [{"path": "/etc/passwd"}]}, "lora: it takes an uploaded file"),
        ({"loras": [{"run": "0" * 32}]}, "run: '0000"),
        ({"models": []}, "models: choose at least one."),
        ({"models": ["nano", "mars"]}, "model: 'mars' is unknown"),
        ({"strengths": "0-9 (+1)"}, "strengths: 6 is not allowed"),
        ({"strengths": "0-5 (+0.1)", "seeds": "1-16", "models": ["nano", "nano-cel", "nano-paint", "nano-merge"]}, "pictures"),
        ({"clip_skip": 3}, "clip_skip: 3 is not allowed"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(client: Client, said: dict[str, Any], sentence: str) -> None:
    with pytest.raises((AppError, ValueError), match=r".") as error:
        client.predict(**{"loras": ["nano-airbrush"], "models": ["nano"], **ASKED, **said}, api_name="/transfer")
    assert sentence in str(error.value)
    assert "Traceback" not in str(error.value)
