"""The example of the shelf, swept once, for all tests that ask something of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.events import Failed
from core.plan import plan
from core.sweep import Study

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
PROMPTS = "1girl, blue hair, short hair, red eyes, smile, upper body, white background\n1girl, red hair, ponytail, purple eyes, frown, upper body, beach"
Swept = Callable[..., Study]


@pytest.fixture(scope="session")
def swept() -> Swept:
    """Plan and run a sweep to its end."""

    def run(**values: Any) -> Study:
        study = Study(plan({"lora": str(EXAMPLE), "seeds": "1, 2", **values}))
        failed = [event for event in study.run() if isinstance(event, Failed)]
        assert not failed
        return study

    return run


@pytest.fixture(scope="session")
def study(swept: Swept) -> Study:
    """From 0 to 5 by halves, two prompts, two seeds."""
    return swept(strengths="0-5 (+0.5)", prompts=PROMPTS)
