"""A run that is interrupted ends bit for bit as one that is not.

Whatever the optimiser, and however often it is interrupted.
"""

from pathlib import Path

import pytest

from tests.train.parts import assert_same, make_dataset, prepare_run, read_losses, run_training

OPTIMIZERS = ("AdamW", "AdamW8bit", "Lion8bit", "Adafactor", "Prodigy")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_case_20_every_optimiser_goes_on_exactly_twice(optimizer: str, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    straight, broken = (
        prepare_run(
            data, tmp_path / name, optimizer=optimizer, rate=rate, save_every=4, shuffle=True, tag_dropout=0.2
        )[0]
        for name in "ab"
    )
    run_training(straight)
    for end in (6, 5):  # events: between the events of a step, before the next state
        run_training(broken, end)
    run_training(broken)
    assert len(read_losses(straight)) == 12
    assert_same(straight, broken)


TEXT_ENCODER_CASES = [
    *((optimizer, {}) for optimizer in OPTIMIZERS),
    ("Prodigy", {"text_rate": 1.0}),
    ("Lion8bit", {"text_rate": 2e-4}),
]


@pytest.mark.parametrize(
    ("optimizer", "more"),
    TEXT_ENCODER_CASES,
    ids=[f"{name} {'with' if more else 'without'} a text rate" for name, more in TEXT_ENCODER_CASES],
)
def test_every_optimiser_trains_the_text_encoders_and_goes_on_exactly(
    optimizer: str, more: dict, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")
    how = {
        "optimizer": optimizer,
        "rate": 1.0 if optimizer == "Prodigy" else 1e-3,
        "text_encoders": True,
        "steps": 4,
        "save_every": 2,
        **more,
    }
    straight, broken = (prepare_run(data, tmp_path / name, **how)[0] for name in "ab")
    run_training(straight)
    # the third event is of the LoRA: the state of step 2 is not written yet
    run_training(broken, 3)
    run_training(broken)
    assert len(read_losses(straight)) == 4
    assert_same(straight, broken)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "DoRA"},
        {"kind": "LoKr"},
        {"ema": 0.9, "held_out": 1, "flip": True, "noise_offset": 0.05},
        {"precision": "bfloat16", "accumulation": 2},
        {"text_encoders": True, "dropout": 0.2, "caption_dropout": 0.3},
        {
            "targets": "attention + feed-forward + convolution",
            "min_snr": 5.0,
            "scheduler": "cosine_with_restarts",
            "cycles": 2,
            "warmup": 3,
        },
    ],
    ids=lambda settings: next(iter(settings)) + "=" + str(next(iter(settings.values()))),
)
def test_case_20_every_setting_goes_on_exactly(settings: dict, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    straight, broken = (
        prepare_run(data, tmp_path / name, steps=6, save_every=3, **settings)[0] for name in "ab"
    )
    run_training(straight)
    run_training(broken, 5)
    run_training(broken)
    assert len(read_losses(straight)) == 6
    assert_same(straight, broken)
