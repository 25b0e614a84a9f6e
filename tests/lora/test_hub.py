"""A LoRA by its Hub id, from a server that speaks the Hub's protocol.

The right file of the repository is fetched anonymously, at a commit.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from core.hub.names import is_hub_name
from tests.hub.answers import COMMIT
from tests.hub.answers import serve_hub_stub as fake
from tests.models.parts import PickleCanary

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "presets" / "loras" / "nano-airbrush.safetensors"
REPOS = {
    "tiny/one": ["style.safetensors", "style.ckpt"],
    "tiny/two": ["a.safetensors", "b.safetensors"],
    "tiny/none": ["style.ckpt"],
    "tiny/pickles": ["style.ckpt", "pytorch_lora_weights.bin"],
    "tiny/renamed": ["style.safetensors"],
}
SIZES = {"b.safetensors": 3 * 2**30}
LOAD_SCRIPT = """if True:
    from core.models import from_hub
    from core.schema.errors import UserError
    for name in ("tiny/one", "tiny/two", "tiny/two:a.safetensors", "tiny/two:b.safetensors",\
 "tiny/two:c.safetensors",
                 "tiny/none", "tiny/pickles", "tiny/renamed", "tiny/gone", "a--b/c"):
        try:
            print("file", from_hub.fetch_lora(name).name)
        except UserError as error:
            print(error)
"""


def answer_hub(path: str) -> bytes | None:
    repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
    if path == f"/api/models/{repo}" and repo in REPOS:
        files = [{"rfilename": name, "size": SIZES.get(name, EXAMPLE.stat().st_size)} for name in REPOS[repo]]
        return json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode()
    return EXAMPLE.read_bytes() if path.startswith(f"/{repo}/resolve/{COMMIT}/") else None


def test_case_05_one_file_is_fetched_and_everything_else_is_a_sentence(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps({"weight": PickleCanary(canary)}, protocol=2)

    def answer_with_pickles(path: str) -> bytes | None:
        return (
            bomb
            if path.endswith((".ckpt", ".bin")) or path.startswith("/tiny/renamed/")
            else answer_hub(path)
        )

    with fake(answer_with_pickles) as (address, asked):
        mine = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        mine |= {
            "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_secret",
            "HF_HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", LOAD_SCRIPT],
            cwd=ROOT,
            env=mine,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout.splitlines() == [
        "file style.safetensors",
        "lora: tiny/two contains 2 .safetensors files (a.safetensors, b.safetensors); "
        "name one as tiny/two:file.safetensors.",
        "file a.safetensors",
        "lora: b.safetensors has 3,221,225,472 bytes; the limit for a LoRA is 2,147,483,648.",
        "lora: tiny/two has no c.safetensors; it has a.safetensors, b.safetensors.",
        "lora: tiny/none contains no .safetensors file, only pickles (style.ckpt), which can run code.",
        "lora: tiny/pickles contains no .safetensors file, only pickles "
        "(style.ckpt, pytorch_lora_weights.bin), which can run code.",
        "lora: tiny/renamed's style.safetensors is not a complete safetensors file.",
        "lora: tiny/gone is private or does not exist on Hugging Face.",
        "lora: a--b/c is not a valid repository name.",
    ], done.stderr
    assert not any("hf_secret" in str(headers) for _, headers in asked), "the owner's token was sent"
    assert not any(path.endswith((".ckpt", ".bin", "b.safetensors")) for path, _ in asked)
    assert not canary.exists(), "a pickle was run"


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "a/../../b",
        "https://evil/x/y",
        "a/b/c",
        "a/b:../../etc/passwd",
        "/etc/passwd",
        "a/b:x.ckpt",
        "..//..",
    ],
)
def test_case_12_what_is_no_id_is_never_asked_for(text: str) -> None:
    assert not is_hub_name(text)
