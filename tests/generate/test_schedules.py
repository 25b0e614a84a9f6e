"""Noise schedules against k-diffusion's and A1111's numbers (tests/bench/samplers.py compares them all)."""

import json

import numpy as np
import pytest

from core.generate.stages import schedules
from core.schema import presets
from core.schema.samplers import AUTOMATIC, SAMPLERS, SCHEDULES, split_sampler

ROOT = presets.PRESETS_FOLDER.parent
CONFIG = json.loads((ROOT / "core/models/sdxl/scheduler/scheduler_config.json").read_text())
SDXL = schedules.find_model_levels(CONFIG)
ZERO_SNR = schedules.find_model_levels({**CONFIG, "rescale_betas_zero_snr": True})
LEVELS = {
    "Karras": [14.614643, 7.902944, 4.027744, 1.910362, 0.828872, 0.321122, 0.107199, 0.029168, 0],
    "Exponential": [14.614647, 6.012982, 2.473953, 1.017872, 0.418789, 0.172304, 0.070892, 0.029168, 0],
    "Polyexponential": [14.614651, 6.012983, 2.473955, 1.017872, 0.418789, 0.172304, 0.070892, 0.029168, 0],
    "SGM Uniform": [14.614647, 7.301984, 4.086083, 2.495968, 1.615581, 1.07116, 0.69515, 0.399702, 0],
    "Simple": [14.614647, 7.297354, 4.081731, 2.492532, 1.612887, 1.068952, 0.693205, 0.397746, 0],
    "Normal": [14.614647, 6.678001, 3.522058, 2.060642, 1.276833, 0.79126, 0.439666, 0.029168, 0],
    "Beta": [14.614647, 13.577006, 11.451765, 8.759599, 5.884216, 3.19205, 1.066808, 0.029168, 0],
    "DDIM": [7.371847, 4.116698, 2.510922, 1.623693, 1.076032, 0.698399, 0.402218, 0.041314, 0],
    "Align Your Steps": [14.615, 5.063013, 2.358453, 1.182566, 0.629398, 0.35457, 0.154371, 0.029, 0],
    "UniPC": [14.614647, 7.301984, 4.086083, 2.495968, 1.615581, 1.07116, 0.69515, 0.399702, 0.029168],
    "LCM": [14.614647, 6.768384, 3.60099, 2.120367, 1.323062, 0.82986, 0.476455, 0.134451, 0],
}
"""8 steps over SDXL's levels by k-diffusion 0.1.1 (`get_sigmas_karras`, `..._exponential`,
`..._polyexponential`, `DiscreteSchedule.get_sigmas`), and by the formulas of A1111 1.10's
modules/sd_schedulers.py and of its samplers UniPC and LCM, computed with k-diffusion's
`DiscreteSchedule` and scipy's `beta.ppf`. tests/bench/samplers.py computes them anew."""


@pytest.mark.parametrize("schedule", LEVELS)
def test_a_schedule_is_a1111s(schedule: str) -> None:
    assert np.allclose(schedules.FORMULAS[schedule](SDXL, 8), LEVELS[schedule], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "first", "last"),
    [
        ("Euler a", 14.6146, 0.0292),
        ("DPM++ 2M", 14.6146, 0.0292),
        ("DPM++ 3M SDE", 14.6146, 0.0399),
        ("DPM2", 14.6146, 0.0473),
        ("DDIM", 11.0283, 0.0413),
    ],
)
def test_automatic_is_what_a1111_takes(sampler: str, first: float, last: float) -> None:
    levels = schedules.build_levels(sampler, AUTOMATIC, SDXL, 20)
    assert levels[0] == pytest.approx(first, abs=1e-3)
    assert levels[-2] == pytest.approx(last, abs=1e-3)
    assert len(levels) == 21
    assert levels[-1] == 0


@pytest.mark.parametrize("schedule", schedules.FORMULAS)
@pytest.mark.parametrize("steps", [8, 20, 28])
def test_a_model_with_zero_terminal_snr_starts_at_pure_noise(schedule: str, steps: int) -> None:
    levels = schedules.FORMULAS[schedule](ZERO_SNR, steps)
    assert levels[0] == pytest.approx(4518.8, abs=0.1), "the picture would begin with light of its own"
    assert (np.diff(levels) < 0).all()


def test_zero_terminal_snr_changes_every_level_of_the_model() -> None:
    assert ZERO_SNR[-1] > 4000
    assert SDXL[-1] == pytest.approx(14.6146, abs=1e-4)
    assert (ZERO_SNR[1:] > SDXL[1:]).all(), "a sampler would be given the betas without the rescale"


@pytest.mark.parametrize(("steps", "rises"), [(8, 0), (20, 1), (35, 1), (36, 2), (50, 2)])
def test_restart_goes_back_up_and_takes_as_many_steps(steps: int, rises: int) -> None:
    levels = schedules.add_restarts(schedules.build_levels("Restart", AUTOMATIC, SDXL, steps))
    changes = np.diff(levels)
    assert ((changes < 0).sum(), (changes > 0).sum()) == (steps, rises)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if not name.startswith("Sweetspot")])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_pair_goes_down_to_a_picture_in_one_step_and_in_many(sampler: str, schedule: str) -> None:
    for steps in (1, 2, 5, 150):
        levels = schedules.build_levels(sampler, schedule, SDXL, steps)
        assert len(levels) >= steps + 1
        assert (np.diff(levels) < 0).all()
        assert np.isfinite(levels).all()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M SDE Heun Exponential", ("DPM++ 2M SDE Heun", "Exponential")),
        ("DPM++ 2M SGM Uniform", ("DPM++ 2M", "SGM Uniform")),
        ("DDIM", ("DDIM", None)),
        ("Nothing Karras", ("Nothing Karras", None)),
    ],
)
def test_a_name_with_its_schedule_is_two_choices(name: str, found: tuple) -> None:
    assert split_sampler(name) == found
