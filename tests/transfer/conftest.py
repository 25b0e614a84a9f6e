"""Studies of the library's example LoRA on the built-in models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.runtime import gpu
from core.schema import presets
from core.schema.records import read_form
from core.schema.types import Model
from core.transfer.plan import TransferForm, plan_transfer
from core.transfer.study import TransferStudy

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
PROMPTS = (
    "1girl, blue hair, short hair, red eyes, smile, upper body, white background\n"
    "1girl, pink hair, twintails, blue eyes, open mouth, upper body, blue sky"
)
FOUR_PROMPTS = (
    PROMPTS
    + """
1girl, black hair, long hair, green eyes, smile, upper body, classroom
1girl, red hair, ponytail, purple eyes, frown, upper body, beach"""
)
"""As many as a verdict needs."""
RunTransfer = Callable[..., TransferStudy]


def build_values(**values: Any) -> dict[str, Any]:
    return {
        "loras": [{"lora": str(EXAMPLE), "home": "nano"}],
        "models": ["nano"],
        "seeds": "1, 2",
        "prompts": PROMPTS,
        **values,
    }


@pytest.fixture(scope="session")
def run_transfer() -> RunTransfer:
    """Return a function that plans a study and runs it to its end."""

    def run(**values: Any) -> TransferStudy:
        study = TransferStudy(plan_transfer(read_form(TransferForm, build_values(**values))))
        for _ in study.run(gpu.generate_on_gpu):
            pass
        return study

    return run


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """Replace the table of base models by a copy with "twin", which is nano under another name."""
    table = dict(presets.get_models())
    table["twin"] = replace(table["nano"], name="twin", title="nano under another name")
    monkeypatch.setattr(presets, "get_models", lambda: table)
    return table
