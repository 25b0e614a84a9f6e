"""What recipes are for: a style that a sweep finds, and an outfit that comes when its trigger is said, and only then."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import gpu, models, tools
from core.caption import Tagger
from core.data.dataset import Dataset, joined, save
from core.data.intake import imported
from core.data.tagging import tagged
from core.events import Failed, Picture
from core.nano.lessons import airbrushed, dressed, others
from core.nano.world import STYLES
from core.plan import plan
from core.report import reported
from core.sweep import Study
from core.train import runs
from core.train.run import last
from core.types import Cell, LoraUse, Request
from tests.train.parts import followed

LOOKS = (
    "blue hair, short hair, red eyes, smile, upper body, white background",
    "pink hair, twintails, blue eyes, open mouth, upper body, blue sky",
    "black hair, long hair, green eyes, smile, upper body, classroom",
    "red hair, ponytail, blue eyes, frown, upper body, beach",
)
SEEDS = range(1, 6)


def drawn(lesson: Iterable[tuple[Image.Image, str]], folder: Path, captions: bool = True) -> list[Path]:
    folder.mkdir()
    for i, (picture, caption) in enumerate(lesson):
        picture.save(folder / f"{i}.png")
        if captions:
            (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
    return sorted(folder.iterdir())


def trained(data: Dataset, recipe: str, trigger: str, into: Path) -> Path:
    """The LoRA of a run with the recipe's own numbers."""
    save(data)
    run, warnings = runs.settled(data, recipe, trigger=trigger, overrides={"preview_every": 0})
    assert not warnings
    folder = runs.prepared(run, data, into)
    followed(folder)
    assert runs.status(folder).state == "done", runs.status(folder)
    lora = last(folder)
    assert lora is not None
    return lora


@pytest.mark.soak
def test_fifteen_soft_gradients_become_a_style_with_a_sweet_spot(tmp_path: Path) -> None:
    soft = drawn(airbrushed(), tmp_path / "soft", captions=False)
    tagger = Tagger(tools.file("tagger", models.find("nano").tagger or ""))
    data = tagged(imported(soft, tmp_path / "data"), tagger, drop=STYLES)
    lora = trained(data, "doro-soft-gradients", "", tmp_path / "run")
    study = Study(plan({"lora": str(lora), "strengths": "0, 1, 2-4 (+0.5)", "seeds": "1, 2", "references": [str(file) for file in soft]}))
    assert not [event for event in study.run() if isinstance(event, Failed)]
    report = reported(study)
    assert report["recommended"] is not None, report["why"]
    assert report["sweet_spot"][0] >= 1.5, "alpha is half the rank: not at 1"
    at = {row["strength"]: row for row in report["curve"]}
    best = min(at, key=lambda strength: abs(strength - report["recommended"]))
    assert at[best]["style"] > at[0.0]["style"] + 0.03
    assert at[best]["prompt"] >= 0.8


@pytest.mark.soak
def test_an_outfit_comes_with_its_trigger_and_not_without(tmp_path: Path) -> None:
    girls = imported(drawn(dressed("kyoka"), tmp_path / "girls"), tmp_path / "data")
    rest = imported(drawn(others(), tmp_path / "others"), tmp_path / "rest", regularisation=True)
    lora = trained(joined(girls, rest), "character-15", "kyoka", tmp_path / "run")
    assert purple(picture for picture, _ in dressed("kyoka")) == 1
    assert purple(picture for picture, _ in others()) == 0
    assert purple(pictures(lora, "1girl, kyoka")) >= 0.8
    assert purple(pictures(lora, "1girl")) <= 0.2


def pictures(lora: Path, subject: str) -> list[Image.Image]:
    """At strength 1, of every look and seed."""
    told = {"model": "nano", "negative": "low quality", "width": 128, "height": 128, "steps": 25, "cfg": 5.0, "sampler": "Euler a"}
    use = (LoraUse(path=str(lora)),)
    cells = [Cell(label=look, request=Request(prompt=f"{subject}, {look}", seed=seed, loras=use, **told)) for look in LOOKS for seed in SEEDS]  # type: ignore[arg-type]
    found = [event.image for event in gpu.run(cells) if isinstance(event, Picture)]
    assert len(found) == len(cells)
    return found


def purple(pictures: Iterable[Image.Image]) -> float:
    """Share of pictures whose lowest third, where the clothes are, is purple in an eighth of it."""
    shares = []
    for picture in pictures:
        hue, saturation, value = np.moveaxis(np.asarray(picture.convert("HSV"), int)[80:], -1, 0)
        shares.append(((hue > 178) & (hue < 208) & (saturation > 140) & (value > 150)).mean() > 0.12)
    return float(np.mean(shares))
