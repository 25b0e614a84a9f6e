"""`{a|b}` and wildcards: one choice a picture by its seed, bounded, and nothing missing in silence."""

from collections import Counter
from pathlib import Path

import pytest

from core.generate.notes import list_notes
from core.generate.request import PictureForm, build_cells
from core.models.lora_library import locate_lora
from core.prompts import choices
from core.prompts.choices import MAX_CHOICES, Chosen, choose_text
from core.schema.errors import UserError
from core.sweep.plan import SweepForm, plan_sweep


@pytest.fixture(autouse=True)
def wildcards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wildcards"
    (folder / "hair").mkdir(parents=True)
    (folder / "hair" / "colour.txt").write_text("# comment\n\nred\nblue\n")
    (folder / "look.txt").write_text("{long|short} __hair/colour__ hair\n")
    (folder / "loop.txt").write_text("__loop__\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    monkeypatch.setattr(choices, "FOLDER", folder)
    return folder


def list_texts(text: str, many: int = 60) -> set[str]:
    return {choose_text(text, str(seed)).text for seed in range(many)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a {b|c} d", {"a b d", "a c d"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{0::a|b}", {"b"}),
        ("__hair/colour__", {"red", "blue"}),
        ("__hair/*__", {"red", "blue"}),
        (
            "__look__",
            {f"{length} {colour} hair" for length in ("long", "short") for colour in ("red", "blue")},
        ),
        ("{a|", {"{a|"}),
        ("{{masterpiece}}, {x}", {"{{masterpiece}}, {x}"}),
        ("a|b}, :3, __, ^__^", {"a|b}, :3, __, ^__^"}),
    ],
)
def test_a_text_says_one_of_its_choices(text: str, said: set[str]) -> None:
    assert list_texts(text) == said


def test_a_weight_makes_a_choice_more_frequent() -> None:
    counted = Counter(choose_text("{9::a|b}", str(seed)).text for seed in range(300))
    assert counted["a"] > 4 * counted["b"] > 0


@pytest.mark.parametrize("name", ["__none__", "__../secret__", "__/etc/hostname__", "__hair/../../secret__"])
def test_a_wildcard_that_is_not_there_is_named_and_no_path_leads_out(name: str) -> None:
    assert choose_text(f"a {name}", "1") == Chosen(f"a {name}", (name,))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("__loop__", "lead to one another"),
        ("{" * 50 + "a|b" + "}" * 50 + "{a|b}" * (MAX_CHOICES + 1), "choices"),
        ("{2$$a|b}", "several choices at once"),
    ],
)
def test_case_02_choices_that_never_end_are_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        choose_text(text, "1")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["{", "}", "{a|", "__", "__a", "{a}", "|", "_"])
def test_case_02_a_hostile_text_does_not_hang(piece: str) -> None:
    choose_text(piece * (9000 // len(piece)), "1")


def test_each_picture_of_a_job_makes_its_own_choice_and_keeps_the_template() -> None:
    """Three pictures of one prompt would otherwise all be of the first one's choice."""
    form = PictureForm(prompt="{a|b|c|d} __none__", negative="{x|y}", seed=1, count=8, preset="nano")
    cells = build_cells(form)
    assert len({cell.request.prompt for cell in cells}) > 1
    assert {cell.request.template for cell in cells} == {"{a|b|c|d} __none__"}
    assert {cell.request.negative_template for cell in cells} == {"{x|y}"}
    assert [cell.request.seed for cell in cells] == [*range(1, 9)]
    (note,) = [note for note in list_notes(form, cells) if "wildcards" in note]
    assert note == "prompt: __none__ has no file in the wildcards folder; it is read as words."


def test_a_sweep_refuses_choices() -> None:
    """Its strengths could not be compared."""
    with pytest.raises(UserError, match=r"^prompts: '\{a\|b\}' makes choices"):
        plan_sweep(SweepForm(lora=str(locate_lora("nano-airbrush")), prompts="{a|b}"))
