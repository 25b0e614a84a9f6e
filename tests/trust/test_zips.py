"""Hostile archives through the endpoints that take one: a sentence or a flat import, nothing beyond the budget, no folder left."""

import base64
import io
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from core import limits
from core.data.intake import imported
from core.types import UserError
from tabs.files import FILES
from tests.data.parts import BLUE, GREEN, PNG, encoded, picture, zipped
from tests.trust.raw import Raw, left_behind

ROOT = Path(__file__).parent.parent.parent
ENCRYPTED = base64.b64decode(
    "UEsDBBQACQAIACw3dl3dqlQBZwAAAGkAAAAKABwAc2VjcmV0LnBuZ1VUCQADU5ICa1OSAmt1eAsAAQQAAAAABAAAAADzjFGzhh62Z8tC9JT/pYNZSvZM/uUHxHI6MYKB+A4OIXvYUHp3ZiF1/0mVAZOUuO+CSHttRuX8n+GvCGCsVCG6"
    "vrXyMd7d/18tyE4qJjLA4XXWRqCqJpDM1bCZU1jWIKU4LI+RonTKUEsHCN2qVAFnAAAAaQAAAFBLAQIeAxQACQAIACw3dl3dqlQBZwAAAGkAAAAKABgAAAAAAAAAAACkgQAAAABzZWNyZXQucG5nVVQFAANTkgJrdXgLAAEEAAAAAAQAAAAAUEsF"
    "BgAAAAABAAEAUAAAALsAAAAAAA=="
)
"""`zip -P secret` of one picture."""
LINK = zipfile.ZipInfo("link.png")
LINK.external_attr = 0o120777 << 16
ODD = [
    ("../evil.png", PNG), ("/tmp/evil.png", PNG), ("C:\\evil.png", PNG), ("\\\\server\\evil.png", PNG), (LINK, "/etc/passwd"), ("CON.png", PNG),
    ("絵.png".encode("cp932"), PNG), ("👩‍🎨 ✨.png", PNG), ("a.png", PNG), ("A.png", picture(BLUE)), ("a.PNG", picture(GREEN)), ("deep/" * 40 + "a.png", PNG),
]  # fmt: skip


def many(folder: Path) -> Path:
    """A hundred thousand members, all in the list of members and one by itself."""
    count, local = 10**5, struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 9, 0) + b"00000.png"
    members = b"".join(struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, *[0] * 7, 9, *[0] * 6) + b"%05d.png" % i for i in range(count))
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(members), len(local))
    end += struct.pack("<4sIQI", b"PK\6\7", 0, len(local) + len(members), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(members), len(local), 0)
    (folder / "many.zip").write_bytes(local + members + end)
    with zipfile.ZipFile(folder / "many.zip") as whole:
        assert len(whole.namelist()) == count
    return folder / "many.zip"


def inner(folder: Path) -> bytes:
    return zipped(folder, {"evil.png": PNG}, "inner.zip").read_bytes()


REFUSED = {
    "outside": (lambda to: zipped(to, {"../../evil.png": PNG}), "nothing can be used; '../../evil.png': its name leads out of the archive"),
    "absolute": (lambda to: zipped(to, {"/tmp/evil.png": PNG}), "nothing can be used; '/tmp/evil.png': its name leads out of the archive"),
    "link": (lambda to: zipped(to, [(LINK, "/etc/passwd")]), "nothing can be used; 'link.png': it is a link"),
    "nested": (lambda to: zipped(to, {"inner.zip": inner(to)}), "nothing can be used; 'inner.zip': an archive inside an archive is not opened"),
    "many": (many, "more than 10,000 files are too many"),
    "ratio": (lambda to: zipped(to, {"a.png": bytes(20_000_000)}), "it takes up to 100 times as many"),
    "encrypted": (lambda to: (to / "e.zip").write_bytes(ENCRYPTED) and to / "e.zip", "nothing can be used; 'secret.png': it is encrypted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_case_07_a_hostile_archive_is_a_sentence_and_leaves_nothing(raw: Raw, tmp_path: Path, name: str) -> None:
    build, says = REFUSED[name]
    file, good = raw.upload(f"{name}.zip", build(tmp_path).read_bytes()), raw.upload("good.zip", zipped(tmp_path, {"a.png": PNG}, "good.zip").read_bytes())
    before = left_behind()
    beside = {"dataset": good, "regularisation": file, "recipe": "nano-quick", "trigger": "x"}
    for said in (raw.answer("/caption", dataset=file), raw.answer("/train_start", **beside)):
        assert said.startswith("refused: dataset: "), said
        assert says in said
    assert left_behind() == before


def test_case_07_odd_names_are_flattened(client: Client, tmp_path: Path) -> None:
    before = left_behind()
    archive, _ = client.predict(dataset=handle_file(zipped(tmp_path, ODD)), api_name="/caption")
    with zipfile.ZipFile(archive) as made:
        assert sorted(made.namelist()) == [f"{i:04}.{kind}" for i in range(1, 8) for kind in ("png", "txt")]
        for name in made.namelist()[::2]:
            with Image.open(io.BytesIO(made.read(name))) as one:
                assert (one.format, one.mode, one.size) == ("PNG", "RGB", (40, 48))
    new = [path for path in left_behind() - before if path.is_file()]
    assert sorted(path.name for path in new) == ["captioned.zip", "set.zip"], "the upload and the answer stay in Gradio's cache, and nothing else"
    for place in (FILES, FILES.parent, tmp_path, ROOT, Path("/tmp")):
        assert not [path for path in place.iterdir() if path.name in ("evil.png", "CON.png", "link.png")]


def test_case_07_no_more_than_the_budget_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that has room for the budget and not for the archive."""
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)))
    archive, disk = zipped(tmp_path, {f"{i}.png": noise for i in range(16)}), tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(limits, "DATASET_PIXELS", 6 * 300 * 300)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(UserError, match="the pictures have too many pixels"):
            imported([archive], disk / "into")
        assert not list(disk.iterdir())
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):  # so much for the disk
            imported([archive], disk / "into")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
