"""Names of the Hub as people paste them: each leads to its file, or is refused in one sentence."""

import pytest
from huggingface_hub import HfApi, constants

from core.hub import client as hub
from core.hub.names import HubName, explain_other_address, is_hub_name, parse_hub_name
from core.models import bases, from_hub
from core.models.lora_library import find_lora
from core.schema.errors import UserError
from tests.hub.server_state import Hub
from tests.models.parts import NANO
from tests.publish.test_card import EXAMPLE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "soft.safetensors"
PLAIN, NAMED = HubName(repo="ann/soft"), HubName(repo="ann/soft", file=FILE)
AT_TAG = HubName(repo="ann/soft", revision="v1.0")
AT_REQUEST = HubName(repo="ann/soft", revision="refs/pr/1")

TAKEN: list[tuple[str, HubName]] = [
    ("ann/soft", PLAIN),
    (" ann/soft\n", PLAIN),
    ("\tann/soft:soft.safetensors ", NAMED),
    ("ann/soft:soft.safetensors", NAMED),
    ("ann/soft/soft.safetensors", NAMED),
    ("ann/soft/a/b/soft.safetensors", HubName(repo="ann/soft", file=f"a/b/{FILE}")),
    ("ann/soft:a/soft.safetensors", HubName(repo="ann/soft", file=f"a/{FILE}")),
    ("ann/soft@main", PLAIN),
    ("ann/soft@main:soft.safetensors", NAMED),
    ("ann/soft@main/soft.safetensors", NAMED),
    ("ann/soft@v1.0", AT_TAG),
    ("ann/soft@v1.0/soft.safetensors", HubName(repo="ann/soft", revision="v1.0", file=FILE)),
    ("ann/soft@feature/light", HubName(repo="ann/soft", revision="feature/light")),
    ("ann/soft@refs/pr/1", AT_REQUEST),
    ("ann/soft@refs/pr/1:soft.safetensors", HubName(repo="ann/soft", revision="refs/pr/1", file=FILE)),
    ("ann/soft@refs/pr/1/soft.safetensors", HubName(repo="ann/soft", revision="refs/pr/1", file=FILE)),
    (f"ann/soft@{COMMIT}", HubName(repo="ann/soft", revision=COMMIT)),
    (f"ann/soft@{COMMIT}:soft.safetensors", HubName(repo="ann/soft", revision=COMMIT, file=FILE)),
    ("hf://ann/soft", PLAIN),
    ("hf://ann/soft/soft.safetensors", NAMED),
    ("hf://models/ann/soft/soft.safetensors", NAMED),
    ("hf://ann/soft@v1.0/soft.safetensors", HubName(repo="ann/soft", revision="v1.0", file=FILE)),
    ("https://huggingface.co/ann/soft", PLAIN),
    ("http://huggingface.co/ann/soft/", PLAIN),
    ("HTTPS://HuggingFace.co/ann/soft", PLAIN),
    ("https://www.huggingface.co/ann/soft", PLAIN),
    ("https://hf.co/ann/soft", PLAIN),
    ("huggingface.co/ann/soft", PLAIN),
    ("hf.co/ann/soft/tree/main", PLAIN),
    ("https://huggingface.co/ann/soft?library=diffusers", PLAIN),
    ("https://huggingface.co/ann/soft#usage", PLAIN),
    ("https://huggingface.co/ann/soft/discussions/3", PLAIN),
    ("https://huggingface.co/ann/soft/blob/main/README.md", PLAIN),
    (f"https://huggingface.co/ann/soft/blob/{COMMIT}/README.md", HubName(repo="ann/soft", revision=COMMIT)),
    ("https://huggingface.co/ann/soft/commits/main", PLAIN),
    ("https://huggingface.co/ann/soft/tree/main", PLAIN),
    ("https://huggingface.co/ann/soft/tree/main/a", PLAIN),
    ("https://huggingface.co/ann/soft/tree/v1.0", AT_TAG),
    ("https://huggingface.co/ann/soft/tree/refs%2Fpr%2F1", AT_REQUEST),
    ("https://huggingface.co/ann/soft/tree/refs/pr/1", AT_REQUEST),
    (f"https://huggingface.co/ann/soft/blob/main/{FILE}", NAMED),
    (f"https://huggingface.co/ann/soft/raw/main/{FILE}", NAMED),
    (f"https://huggingface.co/ann/soft/resolve/main/{FILE}", NAMED),
    (f"https://huggingface.co/ann/soft/resolve/main/{FILE}?download=true", NAMED),
    (
        f"https://huggingface.co/ann/soft/blob/{COMMIT}/{FILE}",
        HubName(repo="ann/soft", revision=COMMIT, file=FILE),
    ),
    (f"https://hf.co/ann/soft/resolve/main/{FILE}", NAMED),
    (
        "https://huggingface.co/ann/soft/blob/main/a%20b/x%26y.safetensors",
        HubName(repo="ann/soft", file="a b/x&y.safetensors"),
    ),
    ("ann/soft:a, b.safetensors", HubName(repo="ann/soft", file="a, b.safetensors")),
    ("ann/soft:[v2] a & b's.safetensors", HubName(repo="ann/soft", file="[v2] a & b's.safetensors")),
    ("ann/soft/(v2) a+b.safetensors", HubName(repo="ann/soft", file="(v2) a+b.safetensors")),
    ("ann/soft:夜.safetensors", HubName(repo="ann/soft", file="夜.safetensors")),
]

NOT_TAKEN = [
    "",
    "soft",
    "soft.safetensors",
    "ann/soft/more",
    "ann/../soft",
    "../ann/soft",
    "ann/soft:../../x.safetensors",
    "ann/soft@../x",
    "ann/soft@v1/../../x.safetensors",
    "ann/soft:a//b.safetensors",
    "ann/soft:a\\b.safetensors",
    "ann/soft:x.ckpt",
    "/etc/passwd",
    "C:/loras/soft.safetensors",
    "hf://",
    "hf://datasets/ann/soft/soft.safetensors",
    "https://huggingface.co/",
    "https://huggingface.co/ann",
    "https://huggingface.co/datasets/ann/soft",
    "https://huggingface.co/spaces/ann/soft",
    "https://huggingface.co/ann/soft/blob/main/../../x.safetensors",
    "https://huggingface.co/ann/soft/blob/main/%2e%2e/x.safetensors",
    "https://huggingface.co/ann/soft/blob/main/x.ckpt",
    f"https://huggingface.co/ann/soft/resolve/{COMMIT}/x.bin?download=true",
    "https://huggingface.co.evil.example/ann/soft",
    "https://huggingface.co@evil.example/ann/soft",
    "https://huggingface.co:8080/ann/soft",
    "https://evil.example/ann/soft",
    "https://civitai.com/models/1?modelVersionId=2",
    "urn:air:sdxl:lora:civitai:1@2",
]


@pytest.mark.parametrize(("text", "name"), TAKEN)
def test_what_people_paste_is_taken(text: str, name: HubName) -> None:
    assert parse_hub_name(text) == name
    assert parse_hub_name(name.format()) == name, "its own form is read again"


@pytest.mark.parametrize("text", NOT_TAKEN)
def test_what_names_nothing_there_is_never_asked_for(hub_server: Hub, text: str) -> None:
    assert not is_hub_name(text)
    for find, field in ((find_lora, "lora"), (bases.find_model, "model")):
        with pytest.raises(UserError, match=f"^{field}: "):
            find(text)
    assert not hub_server.requests


def test_an_address_that_is_not_taken_says_what_is() -> None:
    assert "download the file there" in (explain_other_address("civitai.com/models/1") or "")
    assert "download the file there" in (explain_other_address("urn:air:sdxl:lora:civitai:1@2") or "")
    for text in ("https://evil.example/x", "https://huggingface.co/datasets/ann/soft"):
        assert "Use owner/name, owner/name:file.safetensors" in (explain_other_address(text) or "")
    assert explain_other_address("my lora") is None


def upload(repo: str, *files: str, body: bytes = EXAMPLE.read_bytes()) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo(repo, exist_ok=True)
    for file in files:
        api.upload_file(path_or_fileobj=body, path_in_repo=file, repo_id=repo)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["pytorch_lora_weights.safetensors", "other.safetensors"], "pytorch_lora_weights.safetensors"),
        (["style.safetensors", "checkpoint-500/pytorch_lora_weights.safetensors"], "style.safetensors"),
        (["style.safetensors", "style_emb.safetensors"], "style.safetensors"),
        (["style.safetensors", "optimizer.safetensors", "a/other.safetensors"], "style.safetensors"),
        (["a/pytorch_lora_weights.safetensors", "a/other.safetensors"], "pytorch_lora_weights.safetensors"),
        (["checkpoint-500.safetensors"], "checkpoint-500.safetensors"),
    ],
)
def test_of_several_weights_the_lora_is_chosen(hub_server: Hub, files: list[str], chosen: str) -> None:
    upload("ann/many", *files)
    assert from_hub.fetch_lora("ann/many").name == chosen


def test_two_loras_are_told_by_name(hub_server: Hub) -> None:
    upload("ann/two", "a.safetensors", "b, c & d's [2].safetensors")
    with pytest.raises(UserError, match=r"contains 2 \.safetensors files \(a\.safetensors, b, c & d's"):
        find_lora("ann/two")
    assert find_lora("ann/two/b, c & d's [2].safetensors").name == "b, c & d's [2].safetensors"


def test_what_is_no_weights_is_said(hub_server: Hub) -> None:
    upload("ann/soft", FILE)
    upload("ann/soft", "old.ckpt", "notes.txt", body=b"x")
    upload("ann/pickles", "old.ckpt", body=b"x")
    for at in ("main", COMMIT):
        for find in (find_lora, bases.find_model):
            with pytest.raises(UserError, match=r"old\.ckpt is a pickle, which can run code"):
                find(f"https://huggingface.co/ann/soft/blob/{at}/old.ckpt")
    assert find_lora("https://huggingface.co/ann/soft/blob/main/notes.txt").name == FILE
    with pytest.raises(UserError, match=r"contains no \.safetensors file, only pickles \(old\.ckpt\)"):
        find_lora("ann/pickles")


def test_offline_what_was_fetched_opens_by_every_name(
    hub_server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection, a LoRA and a base of yesterday are as good as today's."""
    upload("ann/soft", FILE)
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tiny")
    api.upload_folder(repo_id="ann/tiny", folder_path=NANO)
    exact = bases.find_model("ann/tiny").name
    bases.fetch_model("ann/tiny")
    here = find_lora("ann/soft")
    hub._listings.clear()  # as after a restart
    from_hub.resolve_base.cache_clear()
    asked = len(hub_server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("ann/soft", f"ann/soft:{FILE}", f"https://huggingface.co/ann/soft/blob/main/{FILE}"):
        assert find_lora(name) == here
    assert bases.find_model("ann/tiny").name == exact
    bases.fetch_model("ann/tiny")
    with pytest.raises(UserError, match="ann/soft cannot be downloaded: Hugging Face is unreachable"):
        find_lora("ann/soft@v2")
    assert len(hub_server.requests) == asked


@pytest.mark.parametrize(
    ("card", "licence", "link"),
    [
        ("license: mit", "mit", None),
        ("license: [mit, apache-2.0]", "mit", None),
        (
            "license: other\nlicense_name: own-1.0\nlicense_link: LICENSE.md",
            "own-1.0",
            "blob/main/LICENSE.md",
        ),
        (
            "license: other\nlicense_name: own-1.0\nlicense_link: https://own.example/1",
            "own-1.0",
            "own.example/1",
        ),
        ("tags: [a]", "unknown", None),
    ],
)
def test_a_bases_licence_is_taken_with_its_name_and_place(
    hub_server: Hub, card: str, licence: str, link: str | None
) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tiny")
    api.upload_folder(repo_id="ann/tiny", folder_path=NANO)
    api.upload_file(
        repo_id="ann/tiny", path_or_fileobj=f"---\n{card}\n---\n".encode(), path_in_repo="README.md"
    )
    found = bases.find_model("ann/tiny")
    assert found.licence == licence
    assert (found.licence_link or "").endswith(link or "")
    assert (found.licence_link is None) == (link is None)
