"""The checks before Gradio.

Another site's page is refused, whoever is logged in, and no upload takes the disk's last room.
"""

import itertools
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from gradio.context import LocalContext

from core.schema import limits
from core.schema.errors import UserError
from tabs.server.page_files import FILES_FOLDER
from tabs.shared import checks
from tests.trust.raw import RawClient, list_leftovers
from tests.trust.test_disk import mount_disk

OWN_ORIGIN = "the studio's own"
EVIL_ORIGIN = "https://evil.example"


def make_headers(raw: RawClient, **headers: str) -> dict[str, str]:
    address = urlsplit(str(raw.http.base_url))
    return {
        name.replace("_", "-"): f"{address.scheme}://{address.netloc}" if value == OWN_ORIGIN else value
        for name, value in headers.items()
    }


@pytest.mark.parametrize(
    "said",
    [
        {"Origin": EVIL_ORIGIN},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another program's page on the same machine
        {"Origin": EVIL_ORIGIN, "X_Forwarded_Host": "evil.example"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors", "Origin": EVIL_ORIGIN},
        # a form that submits itself
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Origin": EVIL_ORIGIN},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["queue/join", "call/generate", "upload"])
def test_another_sites_page_is_not_heard(raw: RawClient, path: str, said: dict[str, str]) -> None:
    answer = raw.http.post(
        path, content=b"{}", headers={"Content-Type": "text/plain", **make_headers(raw, **said)}
    )
    assert (answer.status_code, answer.text.partition(":")[0]) == (403, "origin")


@pytest.mark.parametrize("path", ["info", "file=nothing", "queue/data?session_hash=hers"])
def test_another_sites_page_reads_nothing(raw: RawClient, path: str) -> None:
    for said in (
        {"Origin": EVIL_ORIGIN},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    ):
        assert raw.http.get(path, headers=make_headers(raw, **said)).status_code == 403


@pytest.mark.parametrize(
    "said",
    [
        {},  # a program, or an old browser's address bar
        {"Origin": OWN_ORIGIN},
        {"Origin": OWN_ORIGIN, "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"},
        # behind a proxy that has its own name for the app
        {"Origin": "https://studio.example", "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},
    ],
    ids=str,
)
def test_its_own_page_and_programs_are(raw: RawClient, said: dict[str, str]) -> None:
    answer = raw.http.post("call/read_picture", json={"data": [None]}, headers=make_headers(raw, **said))
    assert answer.json().keys() == {"event_id"}


@pytest.mark.parametrize("where", ["iframe", "document"])
def test_a_link_from_elsewhere_opens_the_page(studio: str, raw: RawClient, where: str) -> None:
    """Such as the frame on the Space's page, and the way back from the login."""
    said = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": where}
    assert raw.http.get(f"{studio}?code=x&state=y", headers=said).status_code == 200


def upload_parts(raw: RawClient, parts: Any) -> tuple[int, str]:
    begins = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.safetensors"\r\n\r\n'
    told = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = raw.http.post(
        "upload", content=itertools.chain([begins], parts, [b"\r\n--x--\r\n"]), headers=told
    )
    return answer.status_code, answer.text


def test_no_upload_goes_below_the_disks_floor(raw: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with mount_disk(FILES_FOLDER):  # eight megabytes
        monkeypatch.setattr(limits, "DISK_FLOOR", 4 * 10**6)
        before = list_leftovers()
        # when it begins, there is room for all that is known of it
        status, said = upload_parts(raw, [bytes(2**20)] * 7)
        assert (status, said.startswith("disk: 0.00 GB are free, but 0.004 GB must stay free")) == (507, True)
        assert list_leftovers() == before, "what had arrived stayed"
        assert upload_parts(raw, [bytes(2**20)])[0] == 200
        monkeypatch.setattr(limits, "DISK_FLOOR", 8 * 10**6)
        status, said = upload_parts(raw, [b"one more"])
        assert (status, said.startswith("disk: 0.01 GB are free, but 0.008 GB must stay free")) == (507, True)


def test_files_come_by_upload_alone(raw: RawClient) -> None:
    """Gradio would also write the files of other forms, before it looks at what they are for."""
    before = list_leftovers()
    answer = raw.http.post(
        "component_server",
        files={"files": ("a.png", bytes(1000))},
        data={"component_id": "1", "fn_name": "x", "session_hash": "y"},
    )
    assert (answer.status_code, answer.text.partition(":")[0]) == (403, "form")
    assert list_leftovers() == before


@pytest.mark.parametrize(
    ("host", "lent"),
    [
        ("127.0.0.1:7860", True),
        ("localhost:7860", True),
        ("[::1]:7860", True),
        ("192.168.1.5", True),
        ("evil.example", False),
        ("[evil", False),
    ],
)
def test_this_computers_login_is_for_a_page_that_no_name_leads_to(
    monkeypatch: pytest.MonkeyPatch, host: str, lent: bool
) -> None:
    """A site can point its own name at this machine; its page then counts as the studio's own.

    It must not get this computer's login.
    """
    monkeypatch.setattr(checks, "get_token", lambda: "hf_mine")
    before = LocalContext.request.set(SimpleNamespace(headers={"host": host}))  # type: ignore[arg-type]
    try:
        if lent:
            assert checks.get_login_token(True, None) == "hf_mine"
        else:
            with pytest.raises(UserError, match=r"^login: this computer's login"):
                checks.get_login_token(True, None)
        assert checks.get_login_token(False, None) is None
    finally:
        LocalContext.request.reset(before)
