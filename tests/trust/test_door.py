"""Before Gradio: another site's page is nobody here, whoever is logged in; and no upload takes the disk's last room."""

import itertools
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from gradio.context import LocalContext

from core import limits
from core.types import UserError
from tabs import widgets
from tabs.files import FILES
from tests.trust.raw import Raw, left_behind
from tests.trust.test_disk import mounted

OWN = "the studio's own"
EVIL = "https://evil.example"


def heads(raw: Raw, **said: str) -> dict[str, str]:
    address = urlsplit(str(raw.http.base_url))
    return {name.replace("_", "-"): f"{address.scheme}://{address.netloc}" if value == OWN else value for name, value in said.items()}


@pytest.mark.parametrize(
    "said",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another program's page on the same machine
        {"Origin": EVIL, "X_Forwarded_Host": "evil.example"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors", "Origin": EVIL},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Origin": EVIL},  # a form that sends itself
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["queue/join", "call/generate", "upload"])
def test_another_sites_page_is_not_heard(raw: Raw, path: str, said: dict[str, str]) -> None:
    answer = raw.http.post(path, content=b"{}", headers={"Content-Type": "text/plain", **heads(raw, **said)})
    assert (answer.status_code, answer.text.partition(":")[0]) == (403, "origin")


@pytest.mark.parametrize("path", ["info", "file=nothing", "queue/data?session_hash=hers"])
def test_another_sites_page_reads_nothing(raw: Raw, path: str) -> None:
    for said in ({"Origin": EVIL}, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}):
        assert raw.http.get(path, headers=heads(raw, **said)).status_code == 403


@pytest.mark.parametrize(
    "said",
    [
        {},  # a program, a browser's address bar of old
        {"Origin": OWN},
        {"Origin": OWN, "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"},
        {"Origin": "https://studio.example", "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"},  # behind a proxy that has a name of its own for it
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},
    ],
    ids=str,
)
def test_its_own_page_and_programs_are(raw: Raw, said: dict[str, str]) -> None:
    answer = raw.http.post("call/read_picture", json={"data": [None]}, headers=heads(raw, **said))
    assert answer.json().keys() == {"event_id"}


@pytest.mark.parametrize("where", ["iframe", "document"])
def test_a_link_from_elsewhere_opens_the_page(studio: str, raw: Raw, where: str) -> None:
    """The frame on the Space's page, and the way back from the login."""
    said = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": where}
    assert raw.http.get(f"{studio}?code=x&state=y", headers=said).status_code == 200


def uploaded(raw: Raw, parts: Any) -> tuple[int, str]:
    begins = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.safetensors"\r\n\r\n'
    told = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = raw.http.post("upload", content=itertools.chain([begins], parts, [b"\r\n--x--\r\n"]), headers=told)
    return answer.status_code, answer.text


def test_no_upload_goes_below_the_disks_floor(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(FILES):  # eight megabytes
        monkeypatch.setattr(limits, "DISK_FLOOR", 4 * 10**6)
        before = left_behind()
        status, said = uploaded(raw, [bytes(2**20)] * 7)  # begun with room for it, as far as anybody knows
        assert (status, said.startswith("disk: 0.00 GB are free, and 0.004 GB must stay free")) == (507, True)
        assert left_behind() == before, "what had arrived stayed"
        assert uploaded(raw, [bytes(2**20)])[0] == 200
        monkeypatch.setattr(limits, "DISK_FLOOR", 8 * 10**6)
        status, said = uploaded(raw, [b"one more"])
        assert (status, said.startswith("disk: 0.01 GB are free, and 0.008 GB must stay free")) == (507, True)


def test_files_come_by_upload_alone(raw: Raw) -> None:
    """Gradio writes those of other forms, too, before it looks at what they are for."""
    before = left_behind()
    answer = raw.http.post("component_server", files={"files": ("a.png", bytes(1000))}, data={"component_id": "1", "fn_name": "x", "session_hash": "y"})
    assert (answer.status_code, answer.text.partition(":")[0]) == (403, "form")
    assert left_behind() == before


@pytest.mark.parametrize(
    ("host", "lent"),
    [("127.0.0.1:7860", True), ("localhost:7860", True), ("[::1]:7860", True), ("192.168.1.5", True), ("evil.example", False), ("[evil", False)],
)
def test_this_computers_login_is_for_a_page_that_no_name_leads_to(monkeypatch: pytest.MonkeyPatch, host: str, lent: bool) -> None:
    """A site can have its own name point to this machine, and its page is then the studio's own."""
    monkeypatch.setattr(widgets, "get_token", lambda: "hf_mine")
    before = LocalContext.request.set(SimpleNamespace(headers={"host": host}))  # type: ignore[arg-type]
    try:
        if lent:
            assert widgets.token(True, None) == "hf_mine"
        else:
            with pytest.raises(UserError, match=r"^login: this computer's login"):
                widgets.token(True, None)
        assert widgets.token(False, None) is None
    finally:
        LocalContext.request.reset(before)
