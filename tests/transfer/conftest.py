"""Studies of the shelf's example on the embedded family."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import presets
from core.transfer.plan import plan
from core.transfer.study import Study
from core.types import Model

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
PROMPTS = (
    "1girl, blue hair, short hair, red eyes, smile, upper body, white background\n1girl, pink hair, twintails, blue eyes, open mouth, upper body, blue sky"
)
Crossed = Callable[..., Study]


def asked(**values: Any) -> dict[str, Any]:
    return {"loras": [{"lora": str(EXAMPLE), "home": "nano"}], "models": ["nano"], "seeds": "1, 2", "prompts": PROMPTS, **values}


@pytest.fixture(scope="session")
def crossed() -> Crossed:
    """Plan and run a study to its end."""

    def run(**values: Any) -> Study:
        study = Study(plan(asked(**values)))
        for _ in study.run():
            pass
        return study

    return run


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """The base models, to add to."""
    table = dict(presets.models())
    table["twin"] = replace(table["nano"], name="twin", title="nano under another name")
    monkeypatch.setattr(presets, "models", lambda: table)
    return table
