"""The Hub that the tests publish to is one to the real client: what is committed comes back, who may not is refused, what breaks off leaves nothing."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.publish.hub import FIRST, Hub, Kind, name

LORA = random.Random(0).randbytes(50_000)
FILES = {"README.md": b"---\nlicense: mit\n---\n# One\n", "one.safetensors": LORA, "images/a picture.png": random.Random(1).randbytes(3000)}
REPO = "ann/one"


def api(server: Hub, token: str | bool = "hf_ann") -> HfApi:
    return HfApi(endpoint=server.url, token=token)


def send(server: Hub, files: dict[str, bytes], token: str | bool = "hf_ann", parent: str | None = None) -> str:
    """One commit; its id."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api(server, token).create_commit(REPO, operations, commit_message="by hand", parent_commit=parent).oid


@pytest.fixture
def filled(hub_server: Hub) -> Hub:
    """Ann's public repository with three files; nobody asked for anything yet."""
    api(hub_server).create_repo(REPO)
    send(hub_server, FILES)
    hub_server.asked.clear()
    return hub_server


def test_what_is_committed_comes_back_byte_for_byte(filled: Hub, tmp_path: Path) -> None:
    assert api(filled).whoami()["name"] == "ann"
    assert filled.files(REPO) == FIRST | FILES
    assert [each.message for each in filled.commits(REPO)] == ["initial commit", "by hand"]
    assert sorted(api(filled).list_repo_files(REPO)) == sorted(FIRST | FILES)
    assert {each.path for each in api(filled).list_repo_tree(REPO)} == {*FIRST, "README.md", "one.safetensors", "images"}
    assert [each.path for each in api(filled).list_repo_tree(REPO, "images")] == ["images/a picture.png"]
    info = api(filled).model_info(REPO, files_metadata=True)
    assert info.sha == filled.commits(REPO)[-1].oid
    sizes = {each.rfilename: (each.size, each.lfs.sha256 if each.lfs else each.blob_id) for each in info.siblings or []}
    assert sizes == {path: (len(data), name(path, data)) for path, data in (FIRST | FILES).items()}
    for path, data in FILES.items():
        assert Path(hf_hub_download(REPO, path)).read_bytes() == data
        assert Path(api(filled).hf_hub_download(REPO, path, revision=info.sha, local_dir=tmp_path / "here")).read_bytes() == data
    folder = Path(snapshot_download(REPO, cache_dir=tmp_path / "other", token="hf_ann"))
    assert {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.*")} == FIRST | FILES


def test_a_second_commit_takes_away_and_adds(filled: Hub, tmp_path: Path) -> None:
    first = filled.commits(REPO)[-1].oid
    (tmp_path / "two").write_bytes(LORA[::-1])
    operations = [CommitOperationDelete("README.md"), CommitOperationDelete("images/"), CommitOperationAdd("two.safetensors", tmp_path / "two")]
    api(filled).create_commit(REPO, operations, commit_message="two", parent_commit=first)
    assert filled.files(REPO) == FIRST | {"one.safetensors": LORA, "two.safetensors": LORA[::-1]}
    assert Path(hf_hub_download(REPO, "README.md", revision=first)).read_bytes() == FILES["README.md"]
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "README.md")
    with pytest.raises(EntryNotFoundError):
        api(filled).create_commit(REPO, [CommitOperationDelete("README.md")], commit_message="again")
    with pytest.raises(RevisionNotFoundError):
        api(filled).model_info(REPO, revision="other")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        send(filled, {"late.txt": b"late"}, parent=first)
    assert len(filled.commits(REPO)) == 3


def test_what_is_there_already_is_not_sent_again(filled: Hub) -> None:
    before = filled.commits(REPO)[-1].oid
    assert send(filled, FILES) == before
    send(filled, {"copy.safetensors": LORA})
    assert filled.files(REPO)["copy.safetensors"] == LORA
    assert not [each for each in filled.asked if each.method == "PUT"]


def test_a_repository_is_made_once(filled: Hub) -> None:
    assert api(filled).create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError) as error:
        api(filled).create_repo(REPO)
    assert error.value.response.status_code == 409
    assert api(filled).create_repo("two", private=True).repo_id == "ann/two"
    assert filled.repos["ann/two"].private


@pytest.mark.parametrize("token", [False, "hf_bob", "hf_nobody"])
def test_a_private_repository_is_not_there_for_others(hub_server: Hub, token: str | bool) -> None:
    api(hub_server).create_repo(REPO, private=True)
    send(hub_server, FILES)
    assert api(hub_server).repo_exists(REPO)
    assert Path(hf_hub_download(REPO, "one.safetensors", token="hf_ann")).read_bytes() == LORA
    assert not api(hub_server, token).repo_exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api(hub_server, token).model_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(REPO, "README.md", token=token)


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_nobody", 401), ("hf_bob", 403)])
def test_only_the_owner_writes(filled: Hub, token: str | bool, status: int) -> None:
    before = filled.commits(REPO)[:]
    tries: list[Callable[[], object]] = [lambda: send(filled, {"new.safetensors": b"new"}, token), lambda: api(filled, token).create_repo("ann/two")]
    for write in tries:
        with pytest.raises(HfHubHTTPError) as error:
            write()
        assert error.value.response.status_code == status
    assert filled.commits(REPO) == before
    assert list(filled.repos) == [REPO]
    assert Path(hf_hub_download(REPO, "README.md", token=token)).read_bytes() == FILES["README.md"], "reading is free"


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        ("401", HfHubHTTPError, 401),
        ("403 gated", GatedRepoError, 403),
        ("404", RepositoryNotFoundError, 404),
        ("409", HfHubHTTPError, 409),
        ("429", HfHubHTTPError, 429),
        ("500", HfHubHTTPError, 500),
        ("503", HfHubHTTPError, 503),
        ("cut", HTTPError, None),
    ],
)
def test_a_fault_is_what_the_client_makes_of_it(filled: Hub, kind: Kind, error: type[Exception], status: int | None) -> None:
    tries: dict[str, Callable[[], object]] = {
        "GET /api/models/ann/one$": lambda: api(filled).model_info(REPO),
        "POST .*/commit/main": lambda: send(filled, {"late.txt": b"late"}),
        "POST .*/preupload/main": lambda: send(filled, {"late.txt": b"late"}),
        "POST .*/objects/batch": lambda: send(filled, {"late.png": b"late"}),
    }
    for asked, call in tries.items():
        filled.fail(asked, kind, times=6)
        with pytest.raises(error) as raised:
            call()
        assert not status or raised.value.response.status_code == status  # type: ignore[attr-defined]
        filled.faults.clear()
    assert len(filled.commits(REPO)) == 2


@pytest.mark.parametrize("kind", ["429", "500", "503", "cut"])
def test_what_passes_is_tried_again(filled: Hub, kind: Kind) -> None:
    filled.fail("PUT /lfs/", kind, times=2)
    filled.fail("POST .*/verify", kind)
    send(filled, {"two.safetensors": LORA[::-1]})
    assert filled.files(REPO)["two.safetensors"] == LORA[::-1]
    puts = [each.body for each in filled.asked if each.method == "PUT"]
    assert puts == [len(LORA) // (2 if kind == "cut" else 1)] * 2 + [len(LORA)]


@pytest.mark.parametrize("kind", ["401", "403 gated", "404", "500", "cut", "wrong sha"])
@pytest.mark.parametrize("asked", ["PUT /lfs/", "POST .*/verify"])
def test_an_upload_that_fails_leaves_no_commit(filled: Hub, asked: str, kind: Kind) -> None:
    filled.fail(asked, kind, times=6)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'two\.safetensors'") as error:
        send(filled, {"README.md": b"# Two\n", "two.safetensors": LORA[::-1]})
    if kind == "wrong sha":
        assert isinstance(error.value.__cause__, BadRequestError)
        assert name(".png", LORA[::-1]) not in filled.repos[REPO].lfs
    assert filled.files(REPO) == FIRST | FILES
    assert not [each for each in filled.asked if "/commit/" in each.path]


def test_a_large_file_that_was_never_uploaded_is_not_committed(filled: Hub) -> None:
    given = CommitOperationAdd("two.safetensors", LORA[::-1])
    given._upload_mode, given._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="was never uploaded"):
        api(filled).create_commit(REPO, [CommitOperationAdd("a.txt", b"a"), given], commit_message="two")
    assert filled.files(REPO) == FIRST | FILES


def test_a_download_goes_on_where_it_was_cut(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    filled.fail("GET .*/one.safetensors", "cut", times=2)
    assert Path(hf_hub_download(REPO, "one.safetensors")).read_bytes() == LORA
    assert [each.headers.get("range") for each in filled.asked] == [None, None, "bytes=25000-", "bytes=37000-"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("401", HfHubHTTPError), ("403 gated", GatedRepoError), ("404", RepositoryNotFoundError), ("503", LocalEntryNotFoundError), ("cut", HTTPError)],
)
def test_a_download_that_fails_leaves_no_file(filled: Hub, kind: Kind, error: type[Exception]) -> None:
    filled.fail("(HEAD|GET) .*/one.safetensors", kind, times=20)
    with pytest.raises(error):
        hf_hub_download(REPO, "one.safetensors")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("one.safetensors"))


def test_the_client_takes_a_wrong_content_for_the_right_one(filled: Hub) -> None:
    """Whoever downloads has to compare hashes: the client compares sizes."""
    filled.fail("GET .*/one.safetensors", "wrong sha")
    assert Path(hf_hub_download(REPO, "one.safetensors")).read_bytes() == LORA[:-1] + bytes([LORA[-1] ^ 1])


def test_the_token_goes_where_it_is_needed_and_nowhere_else(hub_server: Hub) -> None:
    api(hub_server).create_repo(REPO)
    send(hub_server, FILES)
    told = {each.path: each.headers.get("authorization") for each in hub_server.asked}
    uploads = {path for path in told if path.startswith("/lfs/")}
    assert len(uploads) == 2
    assert {path for path, token in told.items() if token != "Bearer hf_ann"} == uploads
    assert sorted(each.body for each in hub_server.asked if each.method == "PUT") == [3000, len(LORA)]
    hub_server.asked.clear()
    hf_hub_download(REPO, "one.safetensors", token=False)
    assert [(each.method, each.path) for each in hub_server.asked] == [(method, f"/{REPO}/resolve/main/one.safetensors") for method in ("HEAD", "GET")]
    assert not any("authorization" in each.headers for each in hub_server.asked)
