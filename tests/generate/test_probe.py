"""How much single calls of the model change is found at the right strengths, and leaves nothing behind."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.generate.probe import Probe, run_probe, search_strengths
from core.models import bases
from core.runtime import gpu, zerogpu
from core.schema.events import ModelChange, Step
from core.schema.types import LoraUse
from tests.model import PLAIN_REQUEST, fingerprint
from tests.sweep.conftest import EXAMPLE

CHANGES = (0.03, 0.9)


def make_probe(file: Path, limit: float = 5.0) -> Probe:
    use = LoraUse(path=str(file), strength=limit)
    return Probe(requests=(replace(PLAIN_REQUEST, steps=4, loras=(use,)),), changes=CHANGES)


def find_changes(probe: Probe) -> dict[float, float]:
    events = run_probe(bases.load_model("nano"), probe)
    return {event.strength: event.change for event in events if isinstance(event, ModelChange)}


@pytest.mark.parametrize("slope", [0.02, 0.5, 20.0])
@pytest.mark.parametrize("limit", [5.0, -5.0])
def test_both_ends_are_enclosed_to_a_tenth(slope: float, limit: float) -> None:
    """Otherwise a sweep would begin or end where the LoRA does nothing or all is lost."""
    found = dict(search_strengths(lambda strength: slope * abs(strength), limit, CHANGES))
    assert next(iter(found)) == limit
    assert all(strength * limit > 0 and abs(strength) <= abs(limit) for strength in found)
    assert len(found) <= 16, "each strength costs as much as a picture's steps"
    for change in CHANGES:
        if change <= slope * abs(limit):
            beyond = min(abs(strength) for strength, seen in found.items() if seen >= change)
            assert change <= slope * beyond <= 1.11 * change


def test_what_stays_below_at_the_limit_costs_one_strength() -> None:
    assert dict(search_strengths(lambda strength: 0.001 * strength, 5.0, CHANGES)) == {5.0: 0.005}


def test_a_prediction_that_is_no_number_counts_as_all_lost() -> None:
    """In half precision a strong LoRA overflows far below the greatest strength."""
    found = dict(search_strengths(lambda s: s if s < 0.5 else float("inf"), 5.0, CHANGES))
    assert 0.45 < max(strength for strength, change in found.items() if change < 0.9) < 0.5


def test_text_encoders_change_the_calls_too(tmp_path: Path) -> None:
    """A LoRA of the text encoders alone would be told that it changes nothing."""
    torch.manual_seed(0)
    layer = bases.load_model("nano").text_encoder.encoder.layers[0].mlp.fc1
    stem = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
    file = tmp_path / "words.safetensors"
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, file)
    assert find_changes(make_probe(file))[5.0] > 0.03


def test_a_probe_leaves_the_model_as_it_was_wherever_it_ends() -> None:
    before = fingerprint()
    for kind in (Step, ModelChange):
        with closing(gpu.generate_on_gpu([], probe=make_probe(EXAMPLE))) as events:
            assert any(isinstance(event, kind) for event in events), "it never came so far"
        assert fingerprint() == before


def test_zero_gpu_is_asked_for_a_probe_in_one_call() -> None:
    bases.load_model("nano")
    large = replace(PLAIN_REQUEST, width=1024, height=1024, steps=28, loras=(LoraUse(path=str(EXAMPLE)),))
    seconds = gpu.estimate_duration([], probe=Probe(requests=(large,) * 4, changes=CHANGES))
    assert zerogpu.SECONDS_TO_START + 10 < seconds < zerogpu.MAX_CALL_SECONDS
