"""Measure how long a list of 5,000 LoRAs takes: `python tests/bench/library.py`.

Makes 5,000 small files in 50 folders, each with a sidecar and an empty preview beside it, lists them as
every tab does, ten times, and reads what is known of one. Prints seconds; the first list is the cold one.
"""

import json
import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent.parent
FILES, FOLDERS, ROUNDS = 5000, 50, 10


def main() -> None:
    """Make the files, list them, and write `results/library.json`."""
    with TemporaryDirectory() as home:
        os.environ["SWEETSPOT_HOME"] = home
        sys.path.insert(0, str(ROOT))
        from core.models import lora_library
        from core.models.lora_facts import read_lora_facts
        from core.system.device import detect_machine
        from tabs.shared.lora_choices import list_lora_choices

        example = (lora_library.EXAMPLES_FOLDER / "nano-airbrush.safetensors").read_bytes()
        for number in range(FILES):
            folder = Path(home) / "models/loras" / f"{number % FOLDERS:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"lora-{number:04d}.safetensors").write_bytes(example)
            (folder / f"lora-{number:04d}.json").write_text(json.dumps({"preferred weight": 0.8}))
            (folder / f"lora-{number:04d}.preview.png").write_bytes(b"")
        seconds = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            choices = list_lora_choices()
            seconds.append(time.perf_counter() - begin)
        assert len(choices) == FILES + 1, "the files and the example"
        chosen = lora_library.locate_lora("lora-4999")
        begin = time.perf_counter()
        read_lora_facts(chosen)
        made = {
            "date": date.today().isoformat(),
            "device": detect_machine().describe().removeprefix("Running on: "),
            "files": FILES,
            "first_list_seconds": round(seconds[0], 3),
            "median_list_seconds": round(statistics.median(seconds), 3),
            "facts_of_one_seconds": round(time.perf_counter() - begin, 3),
        }
    text = json.dumps(made, indent=1)
    (ROOT / "tests/bench/results/library.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
