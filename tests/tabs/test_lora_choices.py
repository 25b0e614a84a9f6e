"""What the page says of a person's LoRAs, and what choosing one fills in."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.models import lora_library
from core.models.measured_strengths import MeasuredStrength, record_strength
from core.sweep.plan import parse_strengths, suggest_strengths
from tabs.generate.lora_panel import _bring_lora, _choose_lora
from tabs.shared.lora_choices import describe_choice, list_lora_choices
from tabs.sweep.controls import fill_in_choice, format_neutral_prompts
from tests.models.library import write_lora


def test_case_04_a_sidecars_words_stay_text(shelf: Path) -> None:
    evil = "<script>alert(1)</script>\n" + "x" * 10_000
    file = write_lora(shelf / "a.safetensors", {"modelspec.trigger_phrase": evil})
    (shelf / "a.civitai.info").write_text(json.dumps({"trainedWords": [evil, "<img src=x onerror=y>"] * 99}))
    shown, facts = describe_choice(str(file), "sdxl-base")
    assert "<script" not in shown
    assert "<img" not in shown
    assert facts
    assert facts.trigger
    assert len(facts.trigger) <= 500
    assert "\n" not in facts.trigger
    assert len(shown) < 20_000


def test_the_line_names_what_is_known_and_what_does_not_fit(shelf: Path) -> None:
    file = write_lora(shelf / "horse.safetensors", {"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"})
    record_strength(file, MeasuredStrength(model="nano", recommended=1.2, interval=(0.8, 1.6)))
    shown = {name: describe_choice(str(file), name)[0] for name in ("pony-v6", "illustrious-xl")}
    for text in shown.values():
        assert "LoRA · rank 2 · for Pony · strength 1.2 (0.8 to 1.6), measured here on nano" in text
    assert ["⚠️" in text for text in shown.values()] == [False, True]
    (shelf / "broken.safetensors").write_bytes(b"\x80\x02")
    assert "is a pickle" in describe_choice(str(shelf / "broken.safetensors"), "nano")[0]
    assert describe_choice(None, "nano") == ("", None)


def test_choosing_one_puts_its_trigger_and_its_strength_into_the_prompt(shelf: Path) -> None:
    write_lora(shelf / "my style.safetensors", {"modelspec.trigger_phrase": "arona"})
    (shelf / "my style.json").write_text('{"preferred weight": 0.8}')
    prompts = {"1girl, smile, ": "1girl, smile, arona <lora:my_style:0.8>"}
    prompts |= {"Arona, smile": "Arona, smile <lora:my_style:0.8>", "": "arona <lora:my_style:0.8>"}
    prompts |= {f"1girl <lora:{name}:0.3>": f"1girl <lora:{name}:0.3>" for name in ("my style", "my_style")}
    assert {text: _choose_lora("my style", "", "sdxl-base", text, "")[1] for text in prompts} == prompts
    write_lora(shelf / "plain.safetensors")
    assert _choose_lora("plain", "", "sdxl-base", "1girl", "")[1] == "1girl <lora:plain:1>"


def test_another_choice_takes_the_place_of_the_one_before(shelf: Path) -> None:
    """Whoever looks through the list would leave ten LoRAs in the prompt."""
    for name in ("a", "b"):
        write_lora(shelf / f"{name}.safetensors", {"modelspec.trigger_phrase": f"word {name}"})
    _, prompt, inserted = _choose_lora("a", "", "sdxl-base", "1girl", "")
    assert (prompt, inserted) == ("1girl, word a <lora:a:1>", ", word a <lora:a:1>")
    assert _choose_lora("b", "", "sdxl-base", prompt, inserted)[1] == "1girl, word b <lora:b:1>"
    kept = prompt.replace(":1>", ":0.5>")
    assert _choose_lora("b", "", "sdxl-base", kept, inserted)[1] == f"{kept}, word b <lora:b:1>"


def test_a_strength_that_a_person_set_stays(shelf: Path) -> None:
    file = write_lora(shelf / "a.safetensors")
    (shelf / "a.json").write_text('{"preferred weight": 0.8}')
    assert _bring_lora(str(file), "", "sdxl-base", 1, 1)[1:] == (0.8, 0.8)
    assert _bring_lora(str(file), "", "sdxl-base", 0.8, 0.8)[1:] == (0.8, 0.8)
    assert 0.8 not in _bring_lora(str(file), "", "sdxl-base", 0.5, 1)[1:]


def test_a_sweep_is_filled_in_where_a_person_wrote_nothing(shelf: Path) -> None:
    """Without its trigger, less of a LoRA would be measured than there is."""
    write_lora(shelf / "a.safetensors", {"modelspec.trigger_phrase": "arona"})
    (shelf / "a.json").write_text('{"preferred weight": 0.8}')
    filled: dict[str, Any] = {"strengths": "", "prompts": format_neutral_prompts("nano")}
    choice: dict[str, Any] = {
        "lora_file": None,
        "shelf": "a",
        "preset": "sdxl-base",
        "model": "",
        "budget": "Standard",
        "seeds": "1-4",
        "filled": filled,
    }
    found = fill_in_choice(**choice, **filled)
    assert found["strengths"] == found["filled"]["strengths"] == "0-2 (+0.2)"
    quick = found["budget"]["choices"][0][0]
    assert quick.startswith(f"Quick: 4 prompts, {4 * 4 * 11} images"), (
        "what the fields ask for, before it starts"
    )
    assert found["prompts"]["value"] == found["filled"]["prompts"]
    assert all("arona" in prompt for prompt in found["prompts"]["value"].splitlines())
    own = fill_in_choice(**choice, strengths="0, 1", prompts="1girl, by hand")
    assert "strengths" not in own
    assert "value" not in own["prompts"]
    assert "your prompts were kept" in own["prompts"]["info"]
    assert own["filled"] == filled
    again = fill_in_choice(**{**choice, "filled": found["filled"], "shelf": None}, **found["filled"])
    assert again["filled"] == {
        "strengths": "",
        "prompts": format_neutral_prompts("sdxl-base"),
    }


@pytest.mark.parametrize("known", [0.05, 0.3, 0.8, 1.0, 1.2, 2.0, 5.0])
def test_the_suggested_strengths_go_around_what_is_known(known: float) -> None:
    found = parse_strengths(suggest_strengths(known))
    assert 5 <= len(found) - 1 <= 15 or known == 0.05
    assert found[-1] >= known
    assert min(abs(known - strength) for strength in found) <= 0.1 + 1e-9


def test_where_no_strength_is_known_the_sweep_finds_them_also_below_0() -> None:
    assert (suggest_strengths(None), suggest_strengths(-1.0)) == ("", "-auto")


def test_the_library_is_sorted_by_what_sweeps_measured(shelf: Path) -> None:
    """Figures stay with the content, also of a copy; LoRAs that were not measured come last."""
    measured = {"mild": (0.4, 0.9), "wild": (3.0, 0.1), "old": (None, None)}
    for number, (name, (action, consistency)) in enumerate(measured.items()):
        file = write_lora(shelf / f"{name}.safetensors", value=number)
        ends = MeasuredStrength(model="nano", recommended=1.2, interval=(0.8, 1.6))
        record_strength(file, replace(ends, action=action, consistency=consistency))
    write_lora(shelf / "copy of mild.safetensors", {"title": "other metadata"}, value=0)
    write_lora(shelf / "another.safetensors", value=9)
    (shelf / "broken.safetensors").write_bytes(b"")
    rest = ["another", "broken", "nano-airbrush", "old"]
    orders = {order: list_lora_choices(order) for order in ("action", "consistency", "name")}
    assert {order: [name for _, name in choices] for order, choices in orders.items()} == {
        "action": ["wild", "copy of mild", "mild", *rest],
        "consistency": ["copy of mild", "mild", "wild", *rest],
        "name": ["another", "broken", "copy of mild", "mild", "nano-airbrush", "old", "wild"],
    }
    assert orders["action"][0] == ("wild · action 3.00", "wild")
    assert orders["consistency"][2] == ("wild · consistency 0.10", "wild")
    shown = describe_choice(str(shelf / "wild.safetensors"), "nano")[0]
    assert "measured here on nano · action 3.00 · consistency 0.10" in shown


_opened: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note_opened)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The files that Python opens meanwhile."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


def test_a_list_has_names_in_order_and_opens_no_file(shelf: Path, opened: list[str]) -> None:
    """The files are empty: a header that is read would be refused."""
    (shelf / "people").mkdir()
    for name in ("Zebra", "apple", "people/Mango"):
        (shelf / f"{name}.safetensors").write_bytes(b"")
        (shelf / f"{name}.json").write_bytes(b"")
    opened.clear()
    assert list_lora_choices() == [
        ("apple", "apple"),
        ("Mango · people", "Mango"),
        ("nano-airbrush", "nano-airbrush"),
        ("Zebra", "Zebra"),
    ]
    assert [*lora_library.list_loras()] == ["apple", "Mango", "nano-airbrush", "Zebra"]
    assert not [file for file in opened if str(shelf) in file]
