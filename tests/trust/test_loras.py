"""LoRAs that cannot be used, uploaded by a client.

They are refused with the reason before the GPU is used, and nothing of them stays.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from tests.lora.test_file import REFUSED_FILES
from tests.model import fingerprint, keep_torch_busy
from tests.trust.raw import ENDPOINTS, RawClient, list_leftovers

GOOD_LORA = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
NAMES_ONLY = {("/generate", "loras")}
"""Fields that take names only, no uploads."""
LORA_FIELDS = [
    (endpoint, field)
    for endpoint, told in ENDPOINTS.items()
    for field in told["takes"]
    if field in ("lora", "loras", "lora_file")
]


@pytest.fixture(scope="module")
def same_model(client: Client) -> Iterator[None]:
    """Assert that the model's weights and its picture are the same after the test as before."""

    def read_model_state() -> tuple[str, bytes]:
        files, _ = client.predict(prompt="1girl", seed=3, steps=2, api_name="/generate")
        return fingerprint(), Path(files[0]).read_bytes()

    before = read_model_state()
    yield
    assert read_model_state() == before


@pytest.mark.parametrize(
    "name", ["cut", "text", "pickle", "header", "sd15", "flux", "loha", "rank", "nan", "declared"]
)
def test_case_04_a_bad_file_is_refused_wherever_it_is_brought(
    raw: RawClient, same_model: None, tmp_path: Path, name: str
) -> None:
    make, says = REFUSED_FILES[name]
    make(GOOD_LORA, tmp_path / f"{name}.safetensors")
    file = raw.upload(f"{name}.safetensors", (tmp_path / f"{name}.safetensors").read_bytes())
    before = list_leftovers()
    with keep_torch_busy():  # a call that needs the GPU would not return
        answers = {
            (endpoint, field): raw.call_endpoint(endpoint, **{field: [file] if field == "loras" else file})
            for endpoint, field in LORA_FIELDS
        }
    assert answers.keys() >= {("/generate", "lora_file"), ("/inspect_lora", "lora"), ("/transfer", "loras")}
    for where, said in answers.items():
        assert re.search("^refused: loras: " if where in NAMES_ONLY else says, said), f"{where}: {said}"
    assert list_leftovers() == before, (
        "something but the upload itself stays; that is Gradio's cache, which `core.runtime.cleanup` empties"
    )
