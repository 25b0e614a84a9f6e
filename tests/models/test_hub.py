"""The Hub is asked anonymously, at a commit, for nothing that can run."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.hub.answers import COMMIT, serve_hub_stub
from tests.models.parts import NANO, ROOT, PickleCanary, link_folder, make_model


def make_repository(
    folder: Path, extra_files: list[str], name: str = "tiny/nano"
) -> Callable[[str], bytes | None]:
    """Return the answers of a Hub for one repository; `extra_files` are files in name only."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*.*")}
    tree = [
        {
            "type": "file",
            "path": each,
            "size": files[each].stat().st_size if each in files else 1,
            "oid": each,
        }
        for each in [*files, *extra_files]
    ]

    def answer(path: str) -> bytes | None:
        if path == f"/api/models/{name}/tree/{COMMIT}":
            return json.dumps(tree).encode()
        file = path.removeprefix(f"/{name}/resolve/{COMMIT}/")
        return files[file].read_bytes() if file in files else None

    return answer


def pickle_weights(folder: Path, canary: Path) -> Path:
    """Copy the embedded model with pickles for weights."""
    for file in link_folder(NANO, folder).rglob("*.safetensors"):
        file.with_suffix(".bin").write_bytes(pickle.dumps({"weight": PickleCanary(canary)}))
        file.unlink()
    return folder


def test_case_06_the_hub_is_asked_anonymously_and_for_nothing_that_can_run(tmp_path: Path) -> None:
    more = ["nano.ckpt", "nano.safetensors", "unet/diffusion_pytorch_model.bin", "unet/own.py", "README.md"]
    load = f"""if True:
        from core.models import bases
        from core.schema import presets
        from core.schema.types import Model
        from core.schema.errors import UserError
        told = {{"far": {make_model("far", "tiny/nano", revision=COMMIT)!r},\
 "pickles": {make_model("pickles", "tiny/pickles", revision=COMMIT)!r}}}
        presets.get_models = lambda: told
        try:
            bases.load_model("pickles")
        except UserError as error:
            print(error)
        print(bases.load_model("far").config["scheduler"], bases.get_loaded_name())
    """
    far, pickles = (
        make_repository(NANO, more),
        make_repository(pickle_weights(tmp_path / "pickles", tmp_path / "canary"), [], "tiny/pickles"),
    )
    with serve_hub_stub(lambda path: far(path) or pickles(path)) as (address, requests):
        mine = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))
        }
        mine |= {
            "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_secret",
            "HF_HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", load], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr
    assert "model: The pickles lacks text_encoder/*.safetensors; no model is loaded." in done.stdout
    assert not (tmp_path / "canary").exists(), "a pickle was run"
    assert done.stdout.endswith(" far\n")
    paths = [path for path, _ in requests]
    assert sum(path.endswith(".safetensors") for path in paths) >= 4, (
        f"the model did not come from here: {paths}"
    )
    told = [path for path, headers in requests if "authorization" in headers or "hf_secret" in str(headers)]
    assert not told, f"the token was sent to {told}"
    asked = [name for name in more if any(path.endswith(f"/{name}") for path in paths)]
    assert not asked, f"asked for {asked}"
    assert not [path for path in paths if path.endswith((".bin", ".ckpt", ".py"))]
