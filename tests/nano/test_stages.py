"""The stages that make the embedded family: each runs from nothing, and resumes where it was stopped."""

import importlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

STAGES = ("tagger", "detector", "upscaler", "expander", "text", "vae", "unet", "descend")


def run_in_new_process(work: Callable[..., Any], *told: object) -> Any:
    """Run `work` where no other test has started a thread: a stage forks its workers."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *told).result(timeout=280)


def train_line(build: Path, stops: tuple[int, ...]) -> torch.Tensor:
    """Train one linear layer, stopped at each of `stops`; return its weight."""
    from core.nano import stage

    stage.BUILD_FOLDER, stage.SAVE_EVERY_SECONDS = build, 0
    for stop in (*stops, None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def compute_loss(step: int, rng: torch.Generator, model=model, stop=stop) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return (model(torch.randn(4, 3, generator=rng)) - 1).square().mean()

        try:
            stage.train_model("line", model, compute_loss, steps=40, learning_rate=0.1)
        except KeyboardInterrupt:
            continue
    return model.weight.detach()


def test_a_stopped_stage_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole = run_in_new_process(train_line, tmp_path / "whole", ())
    assert torch.equal(whole, run_in_new_process(train_line, tmp_path / "cut", (7, 7, 23)))


def make_family(build: Path, weights: Path) -> None:
    """Run `make nano` with two steps a stage, on a handful of pictures."""
    from core.nano import __main__, pictures, vae

    modules = [importlib.import_module(f"core.nano.{name}") for name in (*STAGES, "pictures", "stage")]
    for module in modules:
        for name, value in {"STEPS": 2, "BUILD_FOLDER": build}.items():
            if hasattr(module, name):
                setattr(module, name, value)
    vae.CRITIC_STEPS, __main__.WEIGHTS, __main__.BUILD_FOLDER = 2, weights, build
    pictures.PICTURE_COUNTS.update(dict.fromkeys(pictures.PICTURE_COUNTS, 40))
    __main__.main()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_make_nano_makes_every_file_of_the_family(tmp_path: Path) -> None:
    from core.nano.__main__ import WEIGHTS

    run_in_new_process(make_family, tmp_path / "build", tmp_path / "weights")
    assert list_files(tmp_path / "weights") == list_files(WEIGHTS)


def list_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
