"""`/transfer` through gradio_client, and what a client gets wrong."""

import zipfile
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.transfer.conftest import EXAMPLE, PROMPTS

TRANSFER_VALUES: dict[str, Any] = {"prompts": PROMPTS, "seeds": "1, 2", "strengths": "0.65, 1"}


@pytest.mark.usefixtures("few_steps")
def test_a_file_and_a_name_are_crossed(client: Client) -> None:
    loras = [handle_file(EXAMPLE), {"lora": "nano-airbrush", "home": "nano"}]
    sheet, archive, report = client.predict(
        loras=loras, models=["nano", "nano-paint"], **TRANSFER_VALUES, api_name="/transfer"
    )
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
        ({"loras": []}, "loras: choose at least one LoRA."),
        ({"loras": ["none"]}, "lora: 'none' is not in the LoRA library"),
        (
            {"loras": [{"lora": "nano-airbrush", "strength": 1}]},
            "loras: entry 1, strength: it is not a field",
        ),
        ({"loras": [{"lora": "nano-airbrush", "run": "0" * 32}]}, "lora: give either a LoRA or a run."),
        ({"loras": [{"run": "0" * 32, "home": "nano"}]}, "home: it does not go with a run; leave it out."),
        ({"loras": [{"lora": "nano-airbrush", "last": True}]}, "last: it does not go with a lora"),
        (
            {"loras": [{"lora": "nano-airbrush", "blocks": "STYLE", "apart": True}]},
            "apart: it does not go with blocks",
        ),
        ({"loras": [{"lora": "nano-airbrush", "home": "mars"}]}, "home: 'mars' is unknown"),
        ({"loras": [{"path": "/etc/passwd"}]}, "lora: use an uploaded file"),
        ({"loras": [{"run": "0" * 32}]}, "run: '0000"),
        ({"models": []}, "models: choose at least one model."),
        ({"models": ["nano", "mars"]}, "models: 'mars' is unknown"),
        ({"strengths": "0-9 (+1)"}, "strengths: 6 is not valid"),
        (
            {
                "strengths": "0-5 (+0.1)",
                "seeds": "1-16",
                "models": ["nano", "nano-cel", "nano-paint", "nano-merge"],
            },
            "images; the limit is",
        ),
        ({"clip_skip": 3}, "clip_skip: 3 is not valid"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(client: Client, said: dict[str, Any], sentence: str) -> None:
    with pytest.raises((AppError, ValueError), match=r".") as error:
        client.predict(
            **{"loras": ["nano-airbrush"], "models": ["nano"], **TRANSFER_VALUES, **said},
            api_name="/transfer",
        )
    assert sentence in str(error.value)
    assert "Traceback" not in str(error.value)
