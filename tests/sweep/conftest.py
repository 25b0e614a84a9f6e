"""The example LoRA of the library, swept once for all tests that need its sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.runtime import gpu
from core.schema.events import Failed
from core.schema.records import read_form
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.study import SweepStudy

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
PROMPTS = (
    "1girl, blue hair, short hair, red eyes, smile, upper body, white background\n"
    "1girl, red hair, ponytail, purple eyes, frown, upper body, beach\n"
    "1girl, pink hair, twintails, blue eyes, open mouth, upper body, blue sky\n"
    "1girl, black hair, long hair, green eyes, smile, upper body, classroom\n"
    "1girl, blonde hair, long hair, blue eyes, smile, upper body, sunset\n"
    "1girl, white hair, short hair, purple eyes, smile, upper body, night sky"
)
PICTURES = 12
"""Of a strength: 6 prompts x 2 seeds."""
RunSweep = Callable[..., SweepStudy]


@pytest.fixture(scope="session")
def run_sweep() -> RunSweep:
    """Return a function that plans a sweep and runs it to its end."""

    def run(**values: Any) -> SweepStudy:
        study = SweepStudy(
            plan_sweep(read_form(SweepForm, {"lora": str(EXAMPLE), "seeds": "1, 2", **values}))
        )
        failed = [event for event in study.run(gpu.generate_on_gpu) if isinstance(event, Failed)]
        assert not failed
        return study

    return run


@pytest.fixture(scope="session")
def study(run_sweep: RunSweep) -> SweepStudy:
    """Sweep the example from 0 to 3 in steps of 0.5, over six prompts and two seeds."""
    return run_sweep(strengths="0-3 (+0.5)", prompts=PROMPTS)
