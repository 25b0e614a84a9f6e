"""Checks before the queue cost nothing, because nobody limits them.

What does cost takes a place in a queue, or waits for a turn.
"""

import io
from threading import BoundedSemaphore

import pytest
from huggingface_hub import HfApi
from PIL import Image

from core.models import from_hub
from core.schema.errors import UserError
from core.schema.records import read_form
from core.sweep.plan import SweepForm, plan_sweep
from core.transfer.plan import TransferForm, plan_transfer
from tabs.api.sweep import resolve_files as resolve_sweep_files
from tabs.api.transfer import resolve_files as resolve_transfer_files
from tabs.shared import checks
from tabs.shared.checks import make_plan_validator, make_request_validator
from tests.hub.server_state import Hub
from tests.model import keep_torch_busy
from tests.trust.raw import RawClient

REPO_IDS = ("eve/large", "eve/large:a.safetensors", f"eve/large@{'0' * 40}:a.safetensors")
WRITING_HANDLERS = {
    "_receive_files",
    "_caption_missing",
    "_caption_all",
    "_replace_tag",
    "_undo",
    "offer_zip",
    "_rewrite_lora",
    "_normalise_lora",
    "_combine_loras",
}


def test_a_check_asks_the_hub_for_nothing(hub_server: Hub) -> None:
    for name in REPO_IDS:
        found = make_plan_validator(
            ("lora",), lambda values: plan_sweep(resolve_sweep_files(read_form(SweepForm, values))), {}
        )(lora=name)
        found += make_plan_validator(
            ("loras",),
            lambda values: plan_transfer(resolve_transfer_files(read_form(TransferForm, values))),
            {},
        )(loras=[name], models=["nano"])
        found += make_request_validator(("prompt", "width", "loras"))(
            prompt="1girl", width=1001, loras=[{"lora": name}]
        )
        found += make_request_validator(("prompt", "detail"))(
            prompt="1girl", detail={"detector": "eve/large:a.onnx"}
        )
        assert [each["message"].partition(":")[0] for each in found if not each["is_valid"]] == ["width"], (
            "what else is wrong is still said"
        )
    assert not hub_server.requests


def test_the_job_refuses_what_the_check_could_not_see(raw: RawClient, hub_server: Hub) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/none")
    api.upload_file(path_or_fileobj=b"no weights", path_in_repo="none.safetensors", repo_id="ann/none")
    with pytest.raises(UserError) as error:
        from_hub.fetch_lora("ann/none")
    with keep_torch_busy():  # a call that needs the GPU would not return
        for endpoint, asked in (
            ("/sweep", {"lora": "ann/none"}),
            ("/transfer", {"loras": ["ann/none"]}),
            ("/generate", {"loras": [{"lora": "ann/none"}]}),
        ):
            assert raw.submit(endpoint, **asked).json().keys() == {"event_id"}
            entry = "" if endpoint == "/sweep" else "loras: entry 1, "
            assert raw.call_endpoint(endpoint, **asked) == f"refused: {entry}{error.value}"


def test_a_picture_is_decoded_by_the_job(raw: RawClient) -> None:
    """Only the job sees that a picture with a valid header has no pixels."""
    packed = io.BytesIO()
    Image.effect_noise((256, 256), 80).save(packed, "PNG")
    file = raw.upload("half.png", packed.getvalue()[:2000])
    with keep_torch_busy():
        assert raw.submit("/sweep", references=[file]).json().keys() == {"event_id"}
        assert (
            raw.call_endpoint("/sweep", references=[file])
            == "refused: references: half.png cannot be read as a PNG, JPEG or WebP image."
        )


def test_what_decodes_or_writes_has_few_places() -> None:
    import app

    page = app.build_page()
    places = {
        getattr(block.fn, "__name__", ""): (block.queue, block.concurrency_id, block.concurrency_limit)
        for block in page.fns.values()
    }
    assert {name: places[name] for name in WRITING_HANDLERS} == dict.fromkeys(
        WRITING_HANDLERS, (True, "files", 2)
    )
    reading = ("show_estimate", "load_settings", "choose_model", "choose_preset", "format_token_count")
    assert {name: places[name] for name in reading} == dict.fromkeys(reading, (True, "looks", 2))


def test_a_check_that_finds_no_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_checks", BoundedSemaphore(1))
    monkeypatch.setattr(checks, "CHECK_TIMEOUT", 0.01)
    with checks._checks:
        found = make_request_validator(("prompt",))(prompt="1girl") + make_plan_validator(
            ("lora",), lambda values: plan_sweep(resolve_sweep_files(read_form(SweepForm, values))), {}
        )(lora="nano-airbrush")
    assert [each["message"] for each in found] == [
        "Sweetspot is busy with other requests; try again in a moment."
    ] * 2
    assert make_request_validator(("prompt",))(prompt="1girl")[0]["is_valid"]
