"""Save what a script measured."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def save_report(name: str, measured: Mapping[str, Any]) -> None:
    """Print the measurements, with the date and the machine, and save them as `results/<name>.json`."""
    device = f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    text = json.dumps({"date": date.today().isoformat(), "device": device, **measured}, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
