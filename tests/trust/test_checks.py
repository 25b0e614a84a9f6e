"""Checks before the queue cost nothing, as nobody counts them; what does cost has a place in a queue, or waits for it."""

import io
from threading import BoundedSemaphore

import pytest
from huggingface_hub import HfApi
from PIL import Image

from core import pulled
from core.plan import plan
from core.types import UserError
from tabs import widgets
from tabs.api import _sweeping
from tabs.crossing import _said
from tabs.widgets import refusals, validator
from tests.model import torch_is_busy
from tests.publish.conftest import hub_server  # noqa: F401  (a fixture)
from tests.publish.hub import Hub
from tests.trust.raw import Raw

IDS = ("eve/large", "eve/large:a.safetensors", f"eve/large@{'0' * 40}:a.safetensors")
WRITE = {"_brought", "_caption_missing", "_caption_all", "_replace_tag", "_undo", "offer_zip", "_written", "_normalised", "_joined"}


def test_a_check_asks_the_hub_for_nothing(hub_server: Hub) -> None:  # noqa: F811
    for name in IDS:
        found = refusals(("lora",), lambda values: plan(_sweeping(**values)), {})(lora=name)
        found += refusals(("loras",), lambda values: plan(_said(**values)), {})(loras=[name], models=["nano"])
        found += validator(("prompt", "width", "loras"))(prompt="1girl", width=1001, loras=[{"lora": name}])
        found += validator(("prompt", "detail"))(prompt="1girl", detail={"detector": "eve/large:a.onnx"})
        assert [each["message"].partition(":")[0] for each in found if not each["is_valid"]] == ["width"], "what else is wrong is still said"
    assert not hub_server.asked


def test_the_job_refuses_what_the_check_could_not_see(raw: Raw, hub_server: Hub) -> None:  # noqa: F811
    api = HfApi(token="hf_ann")
    api.create_repo("ann/none")
    api.upload_file(path_or_fileobj=b"no weights", path_in_repo="none.safetensors", repo_id="ann/none")
    with pytest.raises(UserError) as error:
        pulled.lora("ann/none")
    with torch_is_busy():  # who wants the GPU would not come back
        for endpoint, asked in (("/sweep", {"lora": "ann/none"}), ("/transfer", {"loras": ["ann/none"]}), ("/generate", {"loras": [{"lora": "ann/none"}]})):
            assert raw.asked(endpoint, **asked).json().keys() == {"event_id"}
            assert raw.answer(endpoint, **asked) == f"refused: {error.value}"


def test_a_picture_is_decoded_by_the_job(raw: Raw) -> None:
    """Its head is whole and small; behind it comes nothing."""
    packed = io.BytesIO()
    Image.effect_noise((256, 256), 80).save(packed, "PNG")
    file = raw.upload("half.png", packed.getvalue()[:2000])
    with torch_is_busy():
        assert raw.asked("/sweep", references=[file]).json().keys() == {"event_id"}
        assert raw.answer("/sweep", references=[file]) == "refused: references: half.png cannot be read as a PNG, JPEG or WebP picture."


def test_what_decodes_or_writes_has_few_places() -> None:
    import app

    page = app.build()
    places = {getattr(block.fn, "__name__", ""): (block.queue, block.concurrency_id, block.concurrency_limit) for block in page.fns.values()}
    assert {name: places[name] for name in WRITE} == dict.fromkeys(WRITE, (True, "files", 2))
    assert {name: places[name] for name in ("expected", "loaded")} == dict.fromkeys(("expected", "loaded"), (True, "looks", 2))


def test_a_check_that_finds_no_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widgets, "_checks", BoundedSemaphore(1))
    monkeypatch.setattr(widgets, "PATIENCE", 0.01)
    with widgets._checks:
        found = validator(("prompt",))(prompt="1girl") + refusals(("lora",), lambda values: plan(_sweeping(**values)), {})(lora="nano-airbrush")
    assert [each["message"] for each in found] == ["The studio is busy with others' checks; try again in a moment."] * 2
    assert validator(("prompt",))(prompt="1girl")[0]["is_valid"]
