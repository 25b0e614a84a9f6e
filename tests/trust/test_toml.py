"""TOML that a visitor writes.

A text that would take a minute to read is refused in one sentence, wherever it arrives. What people
write is read as it is.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from core.dataset.intake import import_dataset
from core.schema import limits
from core.schema.errors import UserError
from core.schema.toml import parse_toml
from core.train.__main__ import create_run_from_toml
from core.train.trainer.run_folder import RunFolder
from tabs.generate import settings
from tabs.shared.train_form import parse_overrides

DOTTED_KEY = "a." * 40_000 + "a = 1"
"""80 kB; tomllib's time grows with the square of the number of dots."""


def _parse_lines(text: str, _: Path) -> None:
    parse_overrides(text)


def _import_dataset(text: str, folder: Path) -> None:
    (folder / "set.toml").write_text(text)
    import_dataset([folder], folder / "own")


def _load_preset(text: str, folder: Path) -> None:
    (folder / "own.toml").write_text(text)
    values, said = settings.load_settings(str(folder / "own.toml"), "nano", lambda recipe: vars(recipe))
    assert not values
    raise UserError(None, said.removeprefix("⚠️ "))


def _begin_run(text: str, folder: Path) -> None:
    (folder / "run.toml").write_text(text)
    create_run_from_toml(folder / "run.toml", RunFolder(folder / "out"))


TOML_READERS: dict[str, Callable[[str, Path], None]] = {
    "a training's lines": _parse_lines,
    "a preset": _load_preset,
    "a dataset": _import_dataset,
    "a run": _begin_run,
}


@pytest.mark.parametrize("door", TOML_READERS)
def test_a_key_of_forty_thousand_dots_holds_nobody_up(door: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        TOML_READERS[door](DOTTED_KEY, tmp_path)


@pytest.mark.parametrize("door", TOML_READERS)
def test_a_text_without_end_is_not_read(door: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too long|bytes"):
        TOML_READERS[door]("a = 1\n" * limits.TOML_BYTES, tmp_path)


DEPTH = limits.TOML_DEPTH
DEEP_DOCUMENTS = {
    "table": f"[{'a.' * DEPTH}a]",
    "tables": f"[[ {'a . ' * DEPTH}a ]]",
    "quoted": '"a".' * DEPTH + "'b' = 1",
    "behind a string": "x = 'it\\'\n" + "a." * DEPTH + "a = 1",
    "behind a comment": "# it's\n" + "a." * DEPTH + "a = 1",
    "behind lines": 'x = """ "" \\""" """""\n' + "a." * DEPTH + "a = 1",
    "inline": "x = {" + "a." * DEPTH + "a = 1}",
    "tabs": "a\t.\t" * DEPTH + "a = 1",
    "lists": "x = " + "[" * 400 + "]" * 400,
    "in each other": "x = " + "{a = " * 400 + "1" + "}" * 400,
}


@pytest.mark.parametrize("text", DEEP_DOCUMENTS.values(), ids=DEEP_DOCUMENTS)
def test_depth_is_seen_wherever_it_hides(text: str) -> None:
    with pytest.raises(UserError, match=r"^set: it is nested too deeply; a key may have fewer than 8 dots"):
        parse_toml(text, "set")


@pytest.mark.parametrize(
    "number", ["9" * 5000, "0x" + "f" * 5000, str(2**63)], ids=["decimal", "hexadecimal", "65 bits"]
)
def test_a_number_that_no_sentence_could_repeat_is_refused(number: str) -> None:
    with pytest.raises(UserError, match=r"^set: ") as error:
        parse_toml(f"rank = {number}", "set")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        'template = "{a}. {b}. ........"  # v1.2.3.4.5.6.7.8.9.10\n'
        'betas = [0.9, 0.99, 0.999]\nx.y."z.z" = -1.5e-3',
        "'a.b.c.d.e.f.g.h.i.j' = 1\nb = '''\na.a.a.a.a.a.a.a.a.a.a = 1\n'''\n"
        'c = """\\""" [[[[[[[[[[[[ """"',
        "".join(
            f"[datasets.a{i}]\nx = [[1, 2], [3]]\ny = {{ z = 1979-05-27T07:32:00.999Z }}\n"
            for i in range(200)
        ),
    ],
    ids=["dots", "strings", "tables"],
)
def test_what_people_write_is_read(text: str) -> None:
    assert parse_toml(text.encode(), "set") == tomllib.loads(text)
