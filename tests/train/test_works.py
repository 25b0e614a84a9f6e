"""What recipes are for: a style that a sweep finds, and an outfit that its trigger brings.

Without the trigger the outfit does not come.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.dataset.dataset import Dataset, merge_datasets, save_dataset
from core.dataset.intake import import_dataset
from core.dataset.tagging import tag_dataset
from core.models import bases, tools
from core.models.tagger import Tagger
from core.nano.lessons import make_airbrush_set, make_outfit_set, make_regularisation_set
from core.nano.world import STYLES
from core.runtime import gpu
from core.schema.events import Failed, Picture
from core.schema.records import read_form
from core.schema.types import Cell, LoraUse, Request
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.report import build_sweep_report
from core.sweep.study import SweepStudy
from core.train import runs
from core.train.trainer.run_record import find_final_lora
from tests.train.parts import run_training

APPEARANCES = (
    "blue hair, short hair, red eyes, smile, upper body, white background",
    "pink hair, twintails, blue eyes, open mouth, upper body, blue sky",
    "black hair, long hair, green eyes, smile, upper body, classroom",
    "red hair, ponytail, blue eyes, frown, upper body, beach",
)
SEEDS = range(1, 6)


def save_pictures(
    samples: Iterable[tuple[Image.Image, str]], folder: Path, captions: bool = True
) -> list[Path]:
    folder.mkdir()
    for i, (picture, caption) in enumerate(samples):
        picture.save(folder / f"{i}.png")
        if captions:
            (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
    return sorted(folder.iterdir())


def train_lora(data: Dataset, recipe: str, trigger: str, run_folder: Path) -> Path:
    """Train a run with the recipe's own settings and return its LoRA."""
    save_dataset(data)
    run, warnings = runs.plan_run(data, recipe, trigger=trigger, overrides={"preview_every": 0})
    assert not warnings
    folder = runs.create_run(run, data, run_folder)
    run_training(folder)
    assert runs.read_status(folder).state == "done", runs.read_status(folder)
    lora = find_final_lora(folder)
    assert lora is not None
    return lora


@pytest.mark.soak
def test_fifteen_soft_gradients_become_a_style_with_a_sweet_spot(tmp_path: Path) -> None:
    soft = save_pictures(make_airbrush_set(), tmp_path / "soft", captions=False)
    tagger = Tagger(tools.fetch_tool("tagger", bases.find_model("nano").tagger or ""))
    data = tag_dataset(import_dataset(soft, tmp_path / "data"), tagger, drop=STYLES)
    lora = train_lora(data, "doro-soft-gradients", "", tmp_path / "run")
    study = SweepStudy(
        plan_sweep(
            read_form(
                SweepForm,
                {
                    "lora": str(lora),
                    "strengths": "0, 1, 2-4 (+0.5)",
                    "seeds": "1, 2",
                    "references": [str(file) for file in soft],
                },
            )
        )
    )
    assert not [event for event in study.run(gpu.generate_on_gpu) if isinstance(event, Failed)]
    report = build_sweep_report(study)
    assert report["recommended"] is not None, report["why"]
    assert report["sweet_spot"][0] >= 1.5, "alpha is half the rank: not at 1"
    at = {row["strength"]: row for row in report["curve"]}
    best = min(at, key=lambda strength: abs(strength - report["recommended"]))
    assert at[best]["style"] > at[0.0]["style"] + 0.03
    assert at[best]["prompt"] >= 0.8


@pytest.mark.soak
def test_an_outfit_comes_with_its_trigger_and_not_without(tmp_path: Path) -> None:
    girls = import_dataset(save_pictures(make_outfit_set("kyoka"), tmp_path / "girls"), tmp_path / "data")
    rest = import_dataset(
        save_pictures(make_regularisation_set(), tmp_path / "others"), tmp_path / "rest", regularisation=True
    )
    lora = train_lora(merge_datasets(girls, rest), "character-15", "kyoka", tmp_path / "run")
    assert purple_share(picture for picture, _ in make_outfit_set("kyoka")) == 1
    assert purple_share(picture for picture, _ in make_regularisation_set()) == 0
    assert purple_share(generate_pictures(lora, "1girl, kyoka")) >= 0.8
    assert purple_share(generate_pictures(lora, "1girl")) <= 0.2


def generate_pictures(lora: Path, subject: str) -> list[Image.Image]:
    """Generate pictures of the subject at strength 1, one per appearance and seed."""
    told = {
        "model": "nano",
        "negative": "low quality",
        "width": 128,
        "height": 128,
        "steps": 25,
        "cfg": 5.0,
        "sampler": "Euler a",
    }
    use = (LoraUse(path=str(lora)),)
    cells = [
        Cell(label=look, request=Request(prompt=f"{subject}, {look}", seed=seed, loras=use, **told))
        for look in APPEARANCES
        for seed in SEEDS
    ]  # type: ignore[arg-type]
    found = [event.image for event in gpu.generate_on_gpu(cells) if isinstance(event, Picture)]
    assert len(found) == len(cells)
    return found


def purple_share(pictures: Iterable[Image.Image]) -> float:
    """Return the share of pictures with purple clothes.

    That is purple in more than 12 % of the lowest rows, from 80 on, where the clothes are.
    """
    shares = []
    for picture in pictures:
        hue, saturation, value = np.moveaxis(np.asarray(picture.convert("HSV"), int)[80:], -1, 0)
        shares.append(((hue > 178) & (hue < 208) & (saturation > 140) & (value > 150)).mean() > 0.12)
    return float(np.mean(shares))
