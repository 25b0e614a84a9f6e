"""The Hub that the tests publish to is a Hub to the real client.

What is committed comes back, an account without access is refused, a broken upload leaves nothing.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
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

from tests.hub.server_state import INITIAL_FILES, Fault, Hub, hash_content

LORA_BYTES = random.Random(0).randbytes(50_000)
REPO_FILES = {
    "README.md": b"---\nlicense: mit\n---\n# One\n",
    "one.safetensors": LORA_BYTES,
    "images/a picture.png": random.Random(1).randbytes(3000),
}
REPO = "ann/one"


def make_api(server: Hub, token: str | bool = "hf_ann") -> HfApi:
    return HfApi(endpoint=server.url, token=token)


def send_commit(
    server: Hub, files: dict[str, bytes], token: str | bool = "hf_ann", parent: str | None = None
) -> str:
    """Commit the files and return the commit's id."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return (
        make_api(server, token)
        .create_commit(REPO, operations, commit_message="by hand", parent_commit=parent)
        .oid
    )


@pytest.fixture
def hub_with_repo(hub_server: Hub) -> Hub:
    """Ann's public repository with three files, and no requests recorded yet."""
    make_api(hub_server).create_repo(REPO)
    send_commit(hub_server, REPO_FILES)
    hub_server.requests.clear()
    return hub_server


def test_what_is_committed_comes_back_byte_for_byte(hub_with_repo: Hub, tmp_path: Path) -> None:
    assert make_api(hub_with_repo).whoami()["name"] == "ann"
    assert hub_with_repo.list_files(REPO) == INITIAL_FILES | REPO_FILES
    assert [each.message for each in hub_with_repo.list_commits(REPO)] == ["initial commit", "by hand"]
    assert sorted(make_api(hub_with_repo).list_repo_files(REPO)) == sorted(INITIAL_FILES | REPO_FILES)
    assert {each.path for each in make_api(hub_with_repo).list_repo_tree(REPO)} == {
        *INITIAL_FILES,
        "README.md",
        "one.safetensors",
        "images",
    }
    assert [each.path for each in make_api(hub_with_repo).list_repo_tree(REPO, "images")] == [
        "images/a picture.png"
    ]
    info = make_api(hub_with_repo).model_info(REPO, files_metadata=True)
    assert info.sha == hub_with_repo.list_commits(REPO)[-1].oid
    sizes = {
        each.rfilename: (each.size, each.lfs.sha256 if each.lfs else each.blob_id)
        for each in info.siblings or []
    }
    assert sizes == {
        path: (len(data), hash_content(path, data)) for path, data in (INITIAL_FILES | REPO_FILES).items()
    }
    for path, data in REPO_FILES.items():
        assert Path(hf_hub_download(REPO, path)).read_bytes() == data
        assert (
            Path(
                make_api(hub_with_repo).hf_hub_download(
                    REPO, path, revision=info.sha, local_dir=tmp_path / "here"
                )
            ).read_bytes()
            == data
        )
    folder = Path(snapshot_download(REPO, cache_dir=tmp_path / "other", token="hf_ann"))
    assert {
        str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.*")
    } == INITIAL_FILES | REPO_FILES


def test_a_second_commit_takes_away_and_adds(hub_with_repo: Hub, tmp_path: Path) -> None:
    first = hub_with_repo.list_commits(REPO)[-1].oid
    (tmp_path / "two").write_bytes(LORA_BYTES[::-1])
    operations = [
        CommitOperationDelete("README.md"),
        CommitOperationDelete("images/"),
        CommitOperationAdd("two.safetensors", tmp_path / "two"),
    ]
    make_api(hub_with_repo).create_commit(REPO, operations, commit_message="two", parent_commit=first)
    assert hub_with_repo.list_files(REPO) == INITIAL_FILES | {
        "one.safetensors": LORA_BYTES,
        "two.safetensors": LORA_BYTES[::-1],
    }
    assert Path(hf_hub_download(REPO, "README.md", revision=first)).read_bytes() == REPO_FILES["README.md"]
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "README.md")
    with pytest.raises(EntryNotFoundError):
        make_api(hub_with_repo).create_commit(
            REPO, [CommitOperationDelete("README.md")], commit_message="again"
        )
    with pytest.raises(RevisionNotFoundError):
        make_api(hub_with_repo).model_info(REPO, revision="other")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        send_commit(hub_with_repo, {"late.txt": b"late"}, parent=first)
    assert len(hub_with_repo.list_commits(REPO)) == 3


def test_what_is_there_already_is_not_sent_again(hub_with_repo: Hub) -> None:
    before = hub_with_repo.list_commits(REPO)[-1].oid
    assert send_commit(hub_with_repo, REPO_FILES) == before
    send_commit(hub_with_repo, {"copy.safetensors": LORA_BYTES})
    assert hub_with_repo.list_files(REPO)["copy.safetensors"] == LORA_BYTES
    assert not [each for each in hub_with_repo.requests if each.method == "PUT"]


def test_a_repository_is_made_once(hub_with_repo: Hub) -> None:
    assert make_api(hub_with_repo).create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError) as error:
        make_api(hub_with_repo).create_repo(REPO)
    assert error.value.response.status_code == 409
    assert make_api(hub_with_repo).create_repo("two", private=True).repo_id == "ann/two"
    assert hub_with_repo.repos["ann/two"].private


@pytest.mark.parametrize("token", [False, "hf_bob", "hf_nobody"])
def test_a_private_repository_is_not_there_for_others(hub_server: Hub, token: str | bool) -> None:
    make_api(hub_server).create_repo(REPO, private=True)
    send_commit(hub_server, REPO_FILES)
    assert make_api(hub_server).repo_exists(REPO)
    assert Path(hf_hub_download(REPO, "one.safetensors", token="hf_ann")).read_bytes() == LORA_BYTES
    assert not make_api(hub_server, token).repo_exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        make_api(hub_server, token).model_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(REPO, "README.md", token=token)


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_nobody", 401), ("hf_bob", 403)])
def test_only_the_owner_writes(hub_with_repo: Hub, token: str | bool, status: int) -> None:
    before = hub_with_repo.list_commits(REPO)[:]
    tries: list[Callable[[], object]] = [
        lambda: send_commit(hub_with_repo, {"new.safetensors": b"new"}, token),
        lambda: make_api(hub_with_repo, token).create_repo("ann/two"),
    ]
    for write in tries:
        with pytest.raises(HfHubHTTPError) as error:
            write()
        assert error.value.response.status_code == status
    assert hub_with_repo.list_commits(REPO) == before
    assert list(hub_with_repo.repos) == [REPO]
    assert Path(hf_hub_download(REPO, "README.md", token=token)).read_bytes() == REPO_FILES["README.md"], (
        "reading is free"
    )


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
def test_a_fault_is_what_the_client_makes_of_it(
    hub_with_repo: Hub, kind: Fault, error: type[Exception], status: int | None
) -> None:
    tries: dict[str, Callable[[], object]] = {
        "GET /api/models/ann/one$": lambda: make_api(hub_with_repo).model_info(REPO),
        "POST .*/commit/main": lambda: send_commit(hub_with_repo, {"late.txt": b"late"}),
        "POST .*/preupload/main": lambda: send_commit(hub_with_repo, {"late.txt": b"late"}),
        "POST .*/objects/batch": lambda: send_commit(hub_with_repo, {"late.png": b"late"}),
    }
    for asked, call in tries.items():
        hub_with_repo.fail(asked, kind, times=6)
        with pytest.raises(error) as raised:
            call()
        assert not status or raised.value.response.status_code == status  # type: ignore[attr-defined]
        hub_with_repo.faults.clear()
    assert len(hub_with_repo.list_commits(REPO)) == 2


@pytest.mark.parametrize("kind", ["429", "500", "503", "cut"])
def test_what_passes_is_tried_again(hub_with_repo: Hub, kind: Fault) -> None:
    hub_with_repo.fail("PUT /lfs/", kind, times=2)
    hub_with_repo.fail("POST .*/verify", kind)
    send_commit(hub_with_repo, {"two.safetensors": LORA_BYTES[::-1]})
    assert hub_with_repo.list_files(REPO)["two.safetensors"] == LORA_BYTES[::-1]
    puts = [each.body for each in hub_with_repo.requests if each.method == "PUT"]
    assert puts == [len(LORA_BYTES) // (2 if kind == "cut" else 1)] * 2 + [len(LORA_BYTES)]


@pytest.mark.parametrize("kind", ["401", "403 gated", "404", "500", "cut", "wrong sha"])
@pytest.mark.parametrize("asked", ["PUT /lfs/", "POST .*/verify"])
def test_an_upload_that_fails_leaves_no_commit(hub_with_repo: Hub, asked: str, kind: Fault) -> None:
    hub_with_repo.fail(asked, kind, times=6)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'two\.safetensors'") as error:
        send_commit(hub_with_repo, {"README.md": b"# Two\n", "two.safetensors": LORA_BYTES[::-1]})
    if kind == "wrong sha":
        assert isinstance(error.value.__cause__, BadRequestError)
        assert hash_content(".png", LORA_BYTES[::-1]) not in hub_with_repo.repos[REPO].lfs
    assert hub_with_repo.list_files(REPO) == INITIAL_FILES | REPO_FILES
    assert not [each for each in hub_with_repo.requests if "/commit/" in each.path]


def test_a_large_file_that_was_never_uploaded_is_not_committed(hub_with_repo: Hub) -> None:
    given = CommitOperationAdd("two.safetensors", LORA_BYTES[::-1])
    given._upload_mode, given._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="was never uploaded"):
        make_api(hub_with_repo).create_commit(
            REPO, [CommitOperationAdd("a.txt", b"a"), given], commit_message="two"
        )
    assert hub_with_repo.list_files(REPO) == INITIAL_FILES | REPO_FILES


def test_a_download_goes_on_where_it_was_cut(hub_with_repo: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub_with_repo.fail("GET .*/one.safetensors", "cut", times=2)
    assert Path(hf_hub_download(REPO, "one.safetensors")).read_bytes() == LORA_BYTES
    assert [each.headers.get("range") for each in hub_with_repo.requests] == [
        None,
        None,
        "bytes=25000-",
        "bytes=37000-",
    ]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("401", HfHubHTTPError),
        ("403 gated", GatedRepoError),
        ("404", RepositoryNotFoundError),
        ("503", LocalEntryNotFoundError),
        ("cut", HTTPError),
    ],
)
def test_a_download_that_fails_leaves_no_file(
    hub_with_repo: Hub, kind: Fault, error: type[Exception]
) -> None:
    hub_with_repo.fail("(HEAD|GET) .*/one.safetensors", kind, times=20)
    with pytest.raises(error):
        hf_hub_download(REPO, "one.safetensors")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("one.safetensors"))


def test_the_client_takes_a_wrong_content_for_the_right_one(hub_with_repo: Hub) -> None:
    """So a download has to compare hashes: the client compares only sizes."""
    hub_with_repo.fail("GET .*/one.safetensors", "wrong sha")
    assert Path(hf_hub_download(REPO, "one.safetensors")).read_bytes() == LORA_BYTES[:-1] + bytes(
        [LORA_BYTES[-1] ^ 1]
    )


def test_the_token_goes_where_it_is_needed_and_nowhere_else(hub_server: Hub) -> None:
    make_api(hub_server).create_repo(REPO)
    send_commit(hub_server, REPO_FILES)
    told = {each.path: each.headers.get("authorization") for each in hub_server.requests}
    uploads = {path for path in told if path.startswith("/lfs/")}
    assert len(uploads) == 2
    assert {path for path, token in told.items() if token != "Bearer hf_ann"} == uploads
    assert sorted(each.body for each in hub_server.requests if each.method == "PUT") == [
        3000,
        len(LORA_BYTES),
    ]
    hub_server.requests.clear()
    hf_hub_download(REPO, "one.safetensors", token=False)
    assert [(each.method, each.path) for each in hub_server.requests] == [
        (method, f"/{REPO}/resolve/main/one.safetensors") for method in ("HEAD", "GET")
    ]
    assert not any("authorization" in each.headers for each in hub_server.requests)
