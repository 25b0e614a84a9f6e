"""A base model that contains code is refused by its configs, and not a line of the code runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.schema.types import Model
from tests.models.parts import NANO, link_folder, make_model

CANARY_CODE = """import pathlib
pathlib.Path({canary!r}).touch()
from diffusers import StableDiffusionXLPipeline as Evil
from transformers import CLIPTextModel as EvilText
"""
REMOTE_CODE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a pipeline": ("model_index.json", {"_class_name": ["evil", "Evil"]}),
    "a pipeline by name": ("model_index.json", {"_class_name": "EvilPipeline"}),
    "a pipeline of the Hub": (
        "model_index.json",
        {"custom_pipeline": "evil/pipeline", "trust_remote_code": True},
    ),
    "a U-Net": ("model_index.json", {"unet": ["evil", "Evil"]}),
    "an encoder": ("model_index.json", {"text_encoder": ["evil", "EvilText"]}),
    "one part more": ("model_index.json", {"watermarker": ["evil", "Evil"]}),
    "auto_map of an encoder": (
        "text_encoder/config.json",
        {"auto_map": {"AutoModel": "evil.EvilText", "CLIPTextModel": "evil.EvilText"}},
    ),
    "auto_map of the U-Net": ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    "auto_map of a tokenizer": (
        "tokenizer/tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
    ),
    "auto_map of the scheduler": (
        "scheduler/scheduler_config.json",
        {"auto_map": {"AutoScheduler": "evil.Evil"}},
    ),
}


@pytest.mark.parametrize("what", REMOTE_CODE_CASES)
def test_case_06_a_model_with_code_of_its_own_is_refused(
    what: str, refusal_of: Callable[[Model], str], tmp_path: Path
) -> None:
    canary, folder = tmp_path / "canary", link_folder(NANO, tmp_path / "folder")
    for place in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        for name in ("evil.py", "pipeline.py", "modeling_evil.py"):
            (place / name).write_text(CANARY_CODE.format(canary=str(canary)))
    file, says = REMOTE_CODE_CASES[what]
    told = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(told | says))
    before = set(sys.modules)
    try:
        said = refusal_of(make_model("wrong", folder))
        assert f"The wrong contains code ({file})" in said
    finally:
        assert not canary.exists(), "its code was run"
        assert not [name for name in set(sys.modules) - before if "evil" in name.lower()]
