"""LoRAs that cannot be used, brought by a client: refused with the reason before the GPU, and nothing of them stays."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from tests.lora.test_file import REFUSED
from tests.model import fingerprint, torch_is_busy
from tests.trust.raw import ENDPOINTS, Raw, left_behind

GOOD = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
NAMED = {("/generate", "loras")}
"""Takes names only."""
TAKES = [(endpoint, field) for endpoint, told in ENDPOINTS.items() for field in told["takes"] if field in ("lora", "loras", "lora_file")]


@pytest.fixture(scope="module")
def untouched(client: Client) -> Iterator[None]:
    """The model's weights and its picture are afterwards what they were before."""

    def seen() -> tuple[str, bytes]:
        files, _ = client.predict(prompt="1girl", seed=3, steps=2, api_name="/generate")
        return fingerprint(), Path(files[0]).read_bytes()

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("name", ["cut", "text", "pickle", "header", "sd15", "flux", "loha", "rank", "nan", "declared"])
def test_case_04_a_bad_file_is_refused_wherever_it_is_brought(raw: Raw, untouched: None, tmp_path: Path, name: str) -> None:
    make, says = REFUSED[name]
    make(GOOD, tmp_path / f"{name}.safetensors")
    file = raw.upload(f"{name}.safetensors", (tmp_path / f"{name}.safetensors").read_bytes())
    before = left_behind()
    with torch_is_busy():  # who wants the GPU would not come back
        answers = {(endpoint, field): raw.answer(endpoint, **{field: [file] if field == "loras" else file}) for endpoint, field in TAKES}
    assert answers.keys() >= {("/generate", "lora_file"), ("/inspect_lora", "lora"), ("/transfer", "loras")}
    for where, said in answers.items():
        assert re.search("^refused: loras: " if where in NAMED else says, said), f"{where}: {said}"
    assert left_behind() == before, "something but the upload itself stays; that is Gradio's cache, which `core.sweeper` empties"
