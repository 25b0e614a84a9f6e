"""A run whose files are damaged, as after a crash of the machine."""

from pathlib import Path

import pytest

from core.schema.errors import UserError
from core.train import access, runs
from core.train.trainer.run_folder import RunFolder
from tabs.train import progress, tab
from tests.train.parts import make_dataset


@pytest.mark.parametrize("damage", ["run.json", "events.jsonl"])
def test_it_is_said_and_hides_no_other(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such file would else hide all runs of a browser."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    data = make_dataset(tmp_path / "data")
    torn, whole = (runs.create_run(runs.plan_run(data, "nano-quick", trigger="flow")[0], data) for _ in "12")
    (torn.path / damage).write_text('{"kind": "lo\n')
    with pytest.raises(UserError, match=f"run: {torn.name} cannot be read; its {damage} is damaged"):
        runs.read_status(runs.find_run(torn.name, None))
    _, shown = tab._restore_runs(f"{torn.name}\n{whole.name}")
    assert [name for _, name in shown["choices"]] == [torn.name, whole.name]
    assert f"its {damage} is damaged" in progress.show_run(torn.name, None)["status"].replace("\\", "")


def test_a_run_whose_account_cannot_be_read_is_nobodys(tmp_path: Path) -> None:
    """It would else be shown to every visitor of a Space, or hide the runs of all of them."""
    folder = RunFolder(tmp_path)
    (tmp_path / "account").write_text('{"acc')
    assert not access.is_owner(folder, "ann")
