"""TOML that a visitor writes: a text whose reading would take a minute is one sentence, wherever it is brought; what people write is read as it stands."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from core import limits
from core.data.intake import imported
from core.toml import parse_toml
from core.train.__main__ import begin
from core.train.folder import Folder
from core.types import UserError
from tabs import settings
from tabs.expected import lines

DOTS = "a." * 40_000 + "a = 1"
"""80 kB: tomllib's time grows with the square of the dots."""


def _written(text: str, _: Path) -> None:
    lines(text)


def _brought(text: str, folder: Path) -> None:
    (folder / "set.toml").write_text(text)
    imported([folder], folder / "own")


def _loaded(text: str, folder: Path) -> None:
    (folder / "own.toml").write_text(text)
    values, said = settings.loaded(str(folder / "own.toml"), "nano", lambda recipe: vars(recipe))
    assert not values
    raise UserError(said.removeprefix("⚠️ "))


def _begun(text: str, folder: Path) -> None:
    (folder / "run.toml").write_text(text)
    begin(folder / "run.toml", Folder(folder / "out"))


DOORS: dict[str, Callable[[str, Path], None]] = {
    "a training's lines": _written,
    "a preset": _loaded,
    "a dataset": _brought,
    "a run": _begun,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_key_of_forty_thousand_dots_holds_nobody_up(door: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        DOORS[door](DOTS, tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_a_text_without_end_is_not_read(door: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too long|bytes"):
        DOORS[door]("a = 1\n" * limits.TOML_BYTES, tmp_path)


N = limits.TOML_DEPTH
DEEP = {
    "table": f"[{'a.' * N}a]",
    "tables": f"[[ {'a . ' * N}a ]]",
    "quoted": '"a".' * N + "'b' = 1",
    "behind a string": "x = 'it\\'\n" + "a." * N + "a = 1",
    "behind a comment": "# it's\n" + "a." * N + "a = 1",
    "behind lines": 'x = """ "" \\""" """""\n' + "a." * N + "a = 1",
    "inline": "x = {" + "a." * N + "a = 1}",
    "tabs": "a\t.\t" * N + "a = 1",
    "lists": "x = " + "[" * 400 + "]" * 400,
    "in each other": "x = " + "{a = " * 400 + "1" + "}" * 400,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_depth_is_seen_wherever_it_hides(text: str) -> None:
    with pytest.raises(UserError, match=r"^set: it is nested too deeply; a key takes fewer than 8 dots"):
        parse_toml(text, "set")


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, str(2**63)], ids=["decimal", "hexadecimal", "65 bits"])
def test_a_number_that_no_sentence_could_repeat_is_refused(number: str) -> None:
    with pytest.raises(UserError, match=r"^set: ") as error:
        parse_toml(f"rank = {number}", "set")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        'template = "{a}. {b}. ........"  # v1.2.3.4.5.6.7.8.9.10\nbetas = [0.9, 0.99, 0.999]\nx.y."z.z" = -1.5e-3',
        '\'a.b.c.d.e.f.g.h.i.j\' = 1\nb = \'\'\'\na.a.a.a.a.a.a.a.a.a.a = 1\n\'\'\'\nc = """\\""" [[[[[[[[[[[[ """"',
        "".join(f"[datasets.a{i}]\nx = [[1, 2], [3]]\ny = {{ z = 1979-05-27T07:32:00.999Z }}\n" for i in range(200)),
    ],
    ids=["dots", "strings", "tables"],
)
def test_what_people_write_is_read(text: str) -> None:
    assert parse_toml(text.encode(), "set") == tomllib.loads(text)
