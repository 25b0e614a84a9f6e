"""A LoRA by its Hub id, from a server that speaks the Hub's protocol: anonymous, at a commit, the one file that is meant."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core import hub

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "presets" / "loras" / "nano-airbrush.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOS = {"tiny/one": ["style.safetensors", "style.ckpt"], "tiny/two": ["a.safetensors", "b.safetensors"], "tiny/none": ["style.ckpt"]}
SIZES = {"b.safetensors": 3 * 2**30}
ASK = """if True:
    from core import hub
    from core.types import UserError
    for name in ("tiny/one", "tiny/two", "tiny/two:a.safetensors", "tiny/two:b.safetensors", "tiny/two:c.safetensors", "tiny/none", "tiny/gone", "a--b/c"):
        try:
            print("file", hub.fetched(name).name)
        except UserError as error:
            print(error)
"""


def test_one_file_is_fetched_and_everything_else_is_a_sentence(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append((path, dict(self.headers.items())))
            repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            if path == f"/api/models/{repo}" and repo in REPOS:
                files = [{"rfilename": name, "size": SIZES.get(name, EXAMPLE.stat().st_size)} for name in REPOS[repo]]
                self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode())
            elif path.startswith(f"/{repo}/resolve/{COMMIT}/"):
                self.answer(EXAMPLE.read_bytes())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), "ETag": '"it"', "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mine = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    mine |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    try:
        done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout.splitlines() == [
        "file style.safetensors",
        "lora: tiny/two holds 2 safetensors files (a.safetensors, b.safetensors); name one as tiny/two:file.safetensors.",
        "file a.safetensors",
        "lora: b.safetensors has 3,221,225,472 bytes; a LoRA has up to 2,147,483,648.",
        "lora: tiny/two has no c.safetensors; it has a.safetensors, b.safetensors.",
        "lora: tiny/none holds no safetensors file; name one as tiny/none:file.safetensors.",
        "lora: tiny/gone is gated, private or gone on the Hub.",
        "lora: a--b/c is no name that the Hub has.",
    ], done.stderr
    assert not any("hf_secret" in str(headers) for _, headers in asked), "the owner's token was sent"
    assert not any(path.endswith((".ckpt", "b.safetensors")) for path, _ in asked)


@pytest.mark.parametrize("text", ["name", "a/../../b", "https://evil/x/y", "a/b/c", "a/b:../../etc/passwd", "/etc/passwd", "a/b:x.ckpt", "..//.."])
def test_what_is_no_id_is_never_asked_for(text: str) -> None:
    assert not hub.is_id(text)
