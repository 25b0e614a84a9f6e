"""What the Hub is asked for: anonymously, at a commit, nothing that can run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.hub import COMMIT, hub
from tests.models.parts import NANO, ROOT, model


def repository(folder: Path, more: list[str]) -> Callable[[str], bytes | None]:
    """One repository, `tiny/nano`, as a Hub answers for it; `more` are files in name only."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*.*")}
    tree = [{"type": "file", "path": name, "size": files[name].stat().st_size if name in files else 1, "oid": name} for name in [*files, *more]]

    def answer(path: str) -> bytes | None:
        if path == f"/api/models/tiny/nano/tree/{COMMIT}":
            return json.dumps(tree).encode()
        name = path.removeprefix(f"/tiny/nano/resolve/{COMMIT}/")
        return files[name].read_bytes() if name in files else None

    return answer


def test_case_06_the_hub_is_asked_anonymously_and_for_nothing_that_can_run(tmp_path: Path) -> None:
    more = ["nano.ckpt", "nano.safetensors", "unet/diffusion_pytorch_model.bin", "unet/own.py", "README.md"]
    load = f"""if True:
        from core import models, presets
        from core.types import Model
        presets.models = lambda: {{"far": {model("far", "tiny/nano", revision=COMMIT)!r}}}
        print(models.load("far").config["scheduler"], models.loaded())
    """
    with hub(repository(NANO, more)) as (address, requests):
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
