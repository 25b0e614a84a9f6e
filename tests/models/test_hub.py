"""What the Hub is asked for: anonymously, at a commit, nothing that can run."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.models.parts import COMMIT, NANO, ROOT, model


@contextmanager
def hub(folder: Path, more: list[str]) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A Hub on this machine with one repository, `tiny/nano`: its address and the requests it got; `more` are files in name only."""
    requests: list[tuple[str, dict[str, str]]] = []
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*.*")}
    tree = [{"type": "file", "path": name, "size": files[name].stat().st_size if name in files else 1, "oid": name} for name in [*files, *more]]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            requests.append((path, {key.lower(): value for key, value in self.headers.items()}))
            name = path.removeprefix(f"/tiny/nano/resolve/{COMMIT}/")
            if path == f"/api/models/tiny/nano/tree/{COMMIT}":
                self.answer(json.dumps(tree).encode(), name)
            elif name in files:
                self.answer(files[name].read_bytes(), name)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body: bytes, name: str) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), "ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def test_the_hub_is_asked_anonymously_and_for_nothing_that_can_run(tmp_path: Path) -> None:
    more = ["nano.ckpt", "nano.safetensors", "unet/diffusion_pytorch_model.bin", "unet/own.py", "README.md"]
    load = f"""if True:
        from core import models, presets
        from core.types import Model
        presets.models = lambda: {{"far": {model("far", "tiny/nano", revision=COMMIT)!r}}}
        print(models.load("far").config["scheduler"], models.loaded())
    """
    with hub(NANO, more) as (address, requests):
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        mine |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run([sys.executable, "-c", load], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" far\n")
    paths = [path for path, _ in requests]
    assert sum(path.endswith(".safetensors") for path in paths) >= 4, f"the model did not come from here: {paths}"
    told = [path for path, headers in requests if "authorization" in headers or "hf_secret" in str(headers)]
    assert not told, f"the token was sent to {told}"
    asked = [name for name in more if any(path.endswith(f"/{name}") for path in paths)]
    assert not asked, f"asked for {asked}"
