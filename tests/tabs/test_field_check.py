"""The field check's screens: a letter stands for the picture above it, and nothing tells its strength."""

import json
import sys
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

import app
from core.system import call_log
from tabs.sweep import field_check
from tests.sweep.finished_sweep import make_report, write_sweep


def start(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a finished sweep and the first screen of its check."""
    result = {"archive": str(write_sweep(folder, make_report(**changes))), "report": make_report(**changes)}
    return result, field_check._start_check(result)


def read_strengths(shown: dict[str, Any]) -> dict[str, float]:
    """Return letter -> the strength that the picture's shade tells."""
    found = {}
    (_, first), *others = shown["pictures"]["value"]
    assert first == "without the LoRA"
    for file, letter in others:
        with Image.open(file) as picture:
            assert not picture.info, "metadata tell the strength"
            found[letter] = picture.getpixel((0, 0))[0] / 40  # type: ignore[index]
    return found


def answer_all(result: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """Answer as one who likes strengths next to 3, would use 2 and 3, and sees a break at 4."""
    while "pictures" in shown:
        strengths = read_strengths(shown)
        better = min(strengths, key=lambda letter: abs(strengths[letter] - 3))
        used, broken = (
            [letter for letter, strength in strengths.items() if strength in marked] or ["none"]
            for marked in ((2, 3), (4, 5))
        )
        shown = field_check._take_answer(shown["check"], result, better, used, broken)
    return shown


def test_the_answers_are_those_of_the_pictures_that_were_shown(tmp_path: Path) -> None:
    result, shown = start(tmp_path)
    done = answer_all(result, shown)
    with zipfile.ZipFile(tmp_path / "example-sweep.zip") as archive:
        found = json.loads(archive.read("report.json"))["field_check"]
    assert (found["rows"], found["date"]) == (8, date.today().isoformat())
    assert (found["range"], found["breakdown"]) == ([2, 3], 4)
    assert found["intervals"] == {"low": [2, 2], "high": [3, 3], "breakdown": [4, 4]}
    pairs = found["agreement"]["pairs"]
    assert (pairs["preferred"], pairs["other"], pairs["no_difference"]) == (8, 0, 0)
    assert found["agreement"]["rows_using_recommended"] == 8
    assert found["agreement"]["breakdown_in_interval"] is True
    kept = done["result"]["report"]["field_check"]
    assert json.loads(json.dumps(kept)) == found, "Publish gets it, too"
    assert "broken from 4 on" in done["summary"]
    assert done["check"] is None


def test_negative_strengths_are_checked_as_well(tmp_path: Path) -> None:
    changes = {"strengths": [-4.0, -3.0, -2.0, 0.0], "recommended": -3.0, "intervals": {}}
    result, shown = start(tmp_path, **changes)
    found = answer_all(result, shown)["result"]["report"]["field_check"]
    assert (found["range"], found["breakdown"]) == ([-3, -2], -4)


def test_a_screen_names_no_file_and_no_strength(tmp_path: Path) -> None:
    _, shown = start(tmp_path)
    files, labels = zip(*shown["pictures"]["value"], strict=True)
    assert [Path(file).name for file in files] == ["0-0.png", "0-1.png", "0-2.png"]
    assert labels == ("without the LoRA", "A", "B")
    assert "**1 of 16**" in shown["task"]


def test_a_prompt_is_text_and_no_markup(tmp_path: Path) -> None:
    _, shown = start(tmp_path, prompts=["<b>*beach*</b>"], seeds=[1, 2, 3, 4, 5, 6])
    assert r"\<b\>\*beach\*\</b\>" in shown["task"]


@pytest.mark.parametrize(
    ("used", "broken", "why"),
    [
        ([], ["none"], "Tick those that you would use, or none"),
        (["A"], [], "Tick those that are broken, or none"),
        (["A", "none"], ["B"], "Tick those that you would use, or none"),
        (["A", "B"], ["B", "C"], "B: ticked as broken, and as one you would use"),
        (["Z"], ["none"], "Tick those that you would use, or none"),
    ],
)
def test_half_an_answer_is_asked_for_again(
    tmp_path: Path, used: list[str], broken: list[str], why: str
) -> None:
    result, shown = start(tmp_path, recommended=None)
    again = field_check._take_answer(shown["check"], result, None, used, broken)
    assert set(again) == {"message"}
    assert why in again["message"]


def test_another_sweep_ends_the_check_of_the_one_before(tmp_path: Path) -> None:
    result, shown = start(tmp_path)
    assert "panel" not in field_check._offer_check(result, shown["check"])
    for other in (None, {**result, "archive": "other-sweep.zip"}):
        told = field_check._offer_check(other, shown["check"])
        assert told["check"] is None
        assert told["panel"] == gr.update(visible=False)


def test_a_sweep_that_is_too_small_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(gr.Error, match="4 images per strength are too few; a check needs at least 6"):
        start(tmp_path, prompts=["1girl", "1boy"])


def test_the_command_refuses_a_zip_before_it_serves_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path, make_report(seeds=[1]))
    monkeypatch.setattr(sys, "argv", ["app.py", "fieldcheck", str(file)])
    monkeypatch.setattr(app, "_launch", lambda *_: pytest.fail("it is served"))
    monkeypatch.setattr(call_log, "redact_output", lambda: None)
    with pytest.raises(SystemExit, match=r"^report: 4 images per strength are too few"):
        app.main()
