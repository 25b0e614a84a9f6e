"""Hostile archives through the endpoints that take one.

The result is a sentence or a flat import; nothing exceeds the budget, and no folder is left.
"""

import base64
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from core.dataset.intake import import_dataset
from core.schema import limits
from core.schema.errors import UserError
from tabs.server.page_files import FILES_FOLDER
from tests.dataset.parts import BLUE, GREEN, PNG, encode_image, make_picture, write_zip
from tests.small_disk import mount_small_disk
from tests.trust.raw import RawClient, list_leftovers

ROOT = Path(__file__).parent.parent.parent
ENCRYPTED_ZIP = base64.b64decode(
    "UEsDBBQACQAIACw3dl3dqlQBZwAAAGkAAAAKABwAc2VjcmV0LnBuZ1VUCQADU5ICa1OSAmt1eAsAAQQAAAAABAAAAADzjFGzhh62"
    "Z8tC9JT/pYNZSvZM/uUHxHI6MYKB+A4OIXvYUHp3ZiF1/0mVAZOUuO+CSHttRuX8n+GvCGCsVCG6"
    "vrXyMd7d/18tyE4qJjLA4XXWRqCqJpDM1bCZU1jWIKU4LI+RonTKUEsHCN2qVAFnAAAAaQAAAFBLAQIeAxQACQAIACw3dl3dqlQB"
    "ZwAAAGkAAAAKABgAAAAAAAAAAACkgQAAAABzZWNyZXQucG5nVVQFAANTkgJrdXgLAAEEAAAAAAQAAAAAUEsF"
    "BgAAAAABAAEAUAAAALsAAAAAAA=="
)
"""One picture, packed by `zip -P secret`."""
LINK_MEMBER = zipfile.ZipInfo("link.png")
LINK_MEMBER.external_attr = 0o120777 << 16
ODD_MEMBERS = [
    ("../evil.png", PNG),
    ("/tmp/evil.png", PNG),
    ("C:\\evil.png", PNG),
    ("\\\\server\\evil.png", PNG),
    (LINK_MEMBER, "/etc/passwd"),
    ("CON.png", PNG),
    ("絵.png".encode("cp932"), PNG),
    ("👩‍🎨 ✨.png", PNG),
    ("a.png", PNG),
    ("A.png", make_picture(BLUE)),
    ("a.PNG", make_picture(GREEN)),
    ("deep/" * 40 + "a.png", PNG),
]


def write_many_members(folder: Path) -> Path:
    """Write a zip whose directory lists 100,000 members, of which the file holds one."""
    count, local = 10**5, struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 9, 0) + b"00000.png"
    members = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, *[0] * 7, 9, *[0] * 6) + b"%05d.png" % i
        for i in range(count)
    )
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(members), len(local))
    end += struct.pack("<4sIQI", b"PK\6\7", 0, len(local) + len(members), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(members), len(local), 0)
    (folder / "many.zip").write_bytes(local + members + end)
    with zipfile.ZipFile(folder / "many.zip") as whole:
        assert len(whole.namelist()) == count
    return folder / "many.zip"


def make_inner_zip(folder: Path) -> bytes:
    return write_zip(folder, {"evil.png": PNG}, "inner.zip").read_bytes()


REFUSED_ZIPS = {
    "outside": (
        lambda to: write_zip(to, {"../../evil.png": PNG}),
        "none of the files can be used; '../../evil.png': its path leads out of the archive",
    ),
    "absolute": (
        lambda to: write_zip(to, {"/tmp/evil.png": PNG}),
        "none of the files can be used; '/tmp/evil.png': its path leads out of the archive",
    ),
    "link": (
        lambda to: write_zip(to, [(LINK_MEMBER, "/etc/passwd")]),
        "none of the files can be used; 'link.png': it is a link",
    ),
    "nested": (
        lambda to: write_zip(to, {"inner.zip": make_inner_zip(to)}),
        "none of the files can be used; 'inner.zip': an archive inside an archive is not opened",
    ),
    "many": (write_many_members, "more than 10,000 files are too many"),
    "ratio": (lambda to: write_zip(to, {"a.png": bytes(20_000_000)}), "the limit is 100 times its size"),
    "encrypted": (
        lambda to: (to / "e.zip").write_bytes(ENCRYPTED_ZIP) and to / "e.zip",
        "none of the files can be used; 'secret.png': it is encrypted",
    ),
}


@pytest.mark.parametrize("name", REFUSED_ZIPS)
def test_case_07_a_hostile_archive_is_a_sentence_and_leaves_nothing(
    raw: RawClient, tmp_path: Path, name: str
) -> None:
    build, says = REFUSED_ZIPS[name]
    file, good = (
        raw.upload(f"{name}.zip", build(tmp_path).read_bytes()),
        raw.upload("good.zip", write_zip(tmp_path, {"a.png": PNG}, "good.zip").read_bytes()),
    )
    before = list_leftovers()
    beside = {"dataset": good, "regularisation": file, "recipe": "nano-quick", "trigger": "x"}
    for said in (raw.call_endpoint("/caption", dataset=file), raw.call_endpoint("/train_start", **beside)):
        assert said.startswith("refused: dataset: "), said
        assert says in said
    assert list_leftovers() == before


def test_case_07_odd_names_are_flattened(client: Client, tmp_path: Path) -> None:
    before = list_leftovers()
    archive, _ = client.predict(dataset=handle_file(write_zip(tmp_path, ODD_MEMBERS)), api_name="/caption")
    with zipfile.ZipFile(archive) as made:
        assert sorted(made.namelist()) == [f"{i:04}.{kind}" for i in range(1, 8) for kind in ("png", "txt")]
        for name in made.namelist()[::2]:
            with Image.open(io.BytesIO(made.read(name))) as one:
                assert (one.format, one.mode, one.size) == ("PNG", "RGB", (40, 48))
    new = [path for path in list_leftovers() - before if path.is_file()]
    assert sorted(path.name for path in new) == ["captioned.zip", "set.zip"], (
        "the upload and the answer stay in Gradio's cache, and nothing else"
    )
    for place in (FILES_FOLDER, FILES_FOLDER.parent, tmp_path, ROOT, Path("/tmp")):
        assert not [path for path in place.iterdir() if path.name in ("evil.png", "CON.png", "link.png")]


def test_case_07_no_more_than_the_budget_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for the budget, but not for the archive."""
    noise = encode_image(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)))
    archive = write_zip(tmp_path, {f"{i}.png": noise for i in range(16)})
    monkeypatch.setattr(limits, "DATASET_PIXELS", 6 * 300 * 300)
    with mount_small_disk(tmp_path / "disk", 2) as disk:
        with pytest.raises(UserError, match="the images have too many pixels"):
            import_dataset([archive], disk / "into")
        assert not list(disk.iterdir())
        monkeypatch.undo()
        # without the budget the archive fills the disk
        with pytest.raises(OSError, match="No space left"):
            import_dataset([archive], disk / "into")
        assert not list(disk.iterdir())
