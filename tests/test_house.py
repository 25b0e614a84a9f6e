"""A newcomer finds what they look for by one search for its usual name in files and functions."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUESTIONS = {
    "where is a LoRA applied": ("apply_lora", "core/lora"),
    "CFG": ("cfg", "core/generate"),
    "the seed's noise": ("seed_noise", "core/generate"),
    "the sampler table": ("sampler", "core/schema"),
    "prompt weights": ("prompt_weights", "core/prompts"),
    "the latent cache": ("latent_cache", "core/train"),
    "min-SNR": ("min_snr", "core/train"),
    "the learning-rate schedule": ("lr_schedule", "core/train"),
    "the sweet-spot verdict": ("verdict", "core/sweep"),
    "the cell cache": ("cell_cache", "core/sweep"),
    "batching": ("batching", "core/generate"),
    "the sandbox": ("sandbox", "core/generate"),
    "disk clean-up": ("cleanup", "core/runtime"),
    "run access": ("access", "core/train"),
    "CSRF and the origin check": ("origin_guard", "tabs/server"),
}
"""Question -> the field's word for it, and the room in which its answer stands."""


def list_names() -> list[tuple[str, str]]:
    """Return (name, room) of every file and function."""
    found = []
    for top in ("core", "tabs"):
        for file in sorted((ROOT / top).rglob("*.py")):
            room = "/".join(file.relative_to(ROOT).parts[:2])
            found.append((file.stem, room))
            tree = ast.parse(file.read_text(encoding="utf-8"))
            functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
            found += [(function.name, room) for function in functions]
    return found


NAMES = list_names()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_newcomer_finds_it_by_one_search(question: str) -> None:
    word, room = QUESTIONS[question]
    rooms = Counter(place for name, place in NAMES if word in name)
    assert rooms, f"no file and no function is called {word}"
    assert rooms.most_common(1)[0][0] == room, rooms
    assert rooms.total() <= 8, "too many to look through"
