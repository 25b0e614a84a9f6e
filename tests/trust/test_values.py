"""Bad values by plain HTTP.

The answer names the field and what is allowed. They take no place in the queue, nothing is
computed, and everybody else's jobs go on.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.utils import Status

from core.schema.records import find_problems
from core.schema.types import Request
from tabs.server.page_files import FILES_FOLDER
from tests.model import keep_torch_busy
from tests.trust.raw import RawClient

BAD_VALUES: list[tuple[str, dict[str, Any], str]] = [
    (
        "/generate",
        {"width": 1001},
        "width: 1001 is not valid. Use a whole number from 64 to 2048 in steps of 8.",
    ),
    ("/generate", {"height": 10**400}, "height: "),
    ("/generate", {"steps": 0}, "steps: 0 is not valid. Use a whole number from 1 to 150."),
    ("/generate", {"steps": 10**6}, "steps: 1000000 is not valid"),
    ("/generate", {"cfg": math.nan}, "cfg: nan is not valid. Use a number from 1 to 30."),
    ("/generate", {"cfg": math.inf}, "cfg: inf is not valid"),
    (
        "/generate",
        {"seed": 2**64},
        "seed: 18446744073709551616 is not valid. Use a whole number from 0 to 18446744073709551615.",
    ),
    (
        "/generate",
        {"loras": [{"lora": "nano-airbrush", "strength": math.inf}]},
        "strength: inf is not valid for nano-airbrush. Use",
    ),
    ("/generate", {"detail": {"lora_strength": -math.inf}}, "lora_strength: -inf is not valid"),
    ("/generate", {"hires": {"\ud800": 1}}, r"hires: '\ud800' is not a setting; the settings are "),
    ("/generate", {"hires": {"denoise": math.nan}}, "denoise: nan is not valid"),
    ("/generate", {"prompt": ""}, "prompt: the prompt is empty"),
    ("/generate", {"prompt": " \u3000\n"}, "prompt: the prompt is empty"),
    ("/generate", {"prompt": "x" * 400_000}, "prompt: 400,000 characters are too many; the limit is 10,000."),
    ("/generate", {"prompt": "1girl\0"}, "prompt: it contains a control character"),
    ("/generate", {"prompt": "1girl\ud800"}, "prompt: it contains a control character"),
    ("/generate", {"prompt": "1girl, \u202etxt.exe"}, "prompt: it contains a control character"),
    ("/generate", {"negative": "\u2067sketch"}, "negative: it contains a control character"),
    ("/generate", {"prompt": 5}, "prompt: 5 is not text"),
    ("/generate", {"negative": False}, "negative: False is not text"),
    ("/generate", {"steps": 2.6}, "steps: 2.6 is not valid"),
    ("/generate", {"loras": {}}, "loras: use a list of tables"),
    ("/generate", {"prompt": "1girl <lora:nano-airbrush:high>"}, "'<lora:nano-airbrush:high>' is not valid"),
    ("/generate", {"prompt": "1girl <lora:nano-airbrush:1:1:1>"}, "'<lora:nano-airbrush:1:1:1>' is not"),
    (
        "/generate",
        {"prompt": "smile, " * 700},
        "prompt: 19 chunks of 75 tokens are too many; the limit is 16.",
    ),
    ("/generate", {"negative": "smile, " * 700}, "negative: 19 chunks of 75 tokens are too many"),
    ("/generate", {"detail": {"prompt": "smile, " * 700}}, "detail.prompt: 19 chunks of 75 tokens are too"),
    ("/generate", {"detail": {"least": 0.5, "most": 0.2}}, "detail.least: 0.5 is more than the greatest"),
    ("/generate", {"detail": {"prompt": "<lora:nano-airbrush:0,8>"}}, "detail.prompt: '<lora:nano-airbrush"),
    ("/generate", {"hires": {"prompt": "<lora:nano-airbrush:>"}}, "hires.prompt: '<lora:nano-airbrush:>' is"),
    ("/expand_prompt", {"prompt": ""}, "prompt: the prompt is empty"),
    ("/expand_prompt", {"temperature": math.nan}, "expand.temperature: nan is not valid"),
    ("/sweep", {"lora": {"path": str(FILES_FOLDER / ("a" * 300))}}, "lora: use an uploaded file"),
    ("/sweep", {"lora": {"path": "\ud800"}}, "lora: use an uploaded file"),
    ("/sweep", {"strengths": "0, inf"}, "strengths: "),
    ("/sweep", {"seeds": str(2**64)}, "seeds: "),
    ("/sweep", {"seeds": "१"}, "seeds: '१' is neither a number nor a range"),
    ("/sweep", {"strengths": "0"}, "strengths: 0 alone shows nothing"),
    ("/sweep", {"strengths": "5.0004"}, "strengths: 5.0004 is not valid. Use strengths from -5 to 5."),
    ("/sweep", {"seeds": "1.0004"}, "seeds: 1.0004 is not valid. Use whole numbers"),
    ("/sweep", {"references": False}, "references: use a list of uploaded images"),
    ("/sweep", {"prompts": 5}, "prompts: 5 is not text"),
    ("/sweep", {"prompts": ["1girl", None]}, "prompts: None is not text"),
    ("/sweep", {"seeds": [1, 2]}, "seeds: use a list such as"),
    ("/sweep", {"refine": "yes"}, "refine: 'yes' is not valid. Use true or false."),
    ("/sweep", {"prompts": "1girl\0"}, "prompts: it contains a control character"),
    ("/sweep", {"prompts": "smile, " * 700}, "prompts: 19 chunks of 75 tokens are too many"),
    ("/transfer", {"prompts": "smile, " * 700}, "prompts: 19 chunks of 75 tokens are too many"),
    ("/transfer", {"loras": [{"lora": "nano-airbrush", "apart": "no"}]}, "apart: 'no' is not valid"),
    ("/transfer", {"loras": [{"lora": "nano-airbrush", "self": 1}]}, "self: it is not a field"),
    ("/transfer", {"models": ["mars"]}, "models: 'mars' is unknown"),
    ("/transfer", {"models": 5}, "models: 5 is not a list of models"),
    ("/transfer", {"seeds": False}, "seeds: use a list such as"),
    ("/transfer", {"clip_skip": 1.6}, "clip_skip: 1.6 is not valid"),
    ("/transfer", {"clip_skip": True}, "clip_skip: True is not valid"),
    ("/transfer", {"strengths": "nan"}, "strengths: "),
    ("/transfer", {"clip_skip": 10**6}, "clip_skip: 1000000 is not valid"),
]


@pytest.fixture(scope="module")
def busy_jobs(client: Client, raw: RawClient) -> Iterator[list[Job]]:
    """Yield a job that holds the GPU and cannot go on, and one that waits behind it."""
    with keep_torch_busy():
        jobs = [client.submit(prompt="1girl", steps=2, width=64, height=64, seed=1, api_name="/generate")]
        while jobs[0].status().code not in (Status.PROCESSING, Status.ITERATING):
            time.sleep(0.02)
        jobs.append(client.submit(prompt="1girl", steps=2, width=64, height=64, seed=1, api_name="/generate"))
        while raw.count_waiting() != 1:
            time.sleep(0.02)
        yield jobs
    # neither the jobs before nor the next one noticed anything
    for job in (*jobs, client.submit(prompt="1girl", seed=1, steps=2, api_name="/generate")):
        files, report = job.result(timeout=60)
        assert (len(files), report["seeds"]) == (1, [1])


@pytest.mark.parametrize(
    ("endpoint", "values", "says"),
    BAD_VALUES,
    ids=[f"{endpoint} {values!r:.40}" for endpoint, values, _ in BAD_VALUES],
)
def test_case_01_a_bad_value_is_named_without_a_place_or_a_gpu(
    raw: RawClient, busy_jobs: list[Job], endpoint: str, values: dict[str, Any], says: str
) -> None:
    waiting = raw.count_waiting()
    assert waiting >= 1, "what does wait is not counted, so that the count says nothing"
    # torch's thread is busy: a check that needed it would not return
    answer = raw.submit(endpoint, **values)
    assert raw.count_waiting() == waiting, "it took a place in the queue"
    assert answer.status_code == 422, answer.text
    (refused,) = [told for told in answer.json()["detail"] if not told["is_valid"]]
    assert refused["parameter_name"] in values
    assert says in refused["message"]
    assert not any(job.done() for job in busy_jobs)


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [
        ("Width", 1001, "width: 1001 is not valid"),
        ("Steps", 0, "steps: 0 is not valid"),
        ("CFG scale", math.nan, "cfg: nan is not valid"),
        ("Prompt", "a\0", "prompt: it contains a control character"),
    ],
)
def test_case_01_the_pages_own_button_is_checked_too(
    client: Client, raw: RawClient, busy_jobs: list[Job], label: str, value: Any, says: str
) -> None:
    """Gradio's own checks of a slider name no field; the same check as the API's covers the page."""
    waiting = raw.count_waiting()
    answer = raw.press_generate(client, label, value)
    assert (answer.is_client_error, raw.count_waiting()) == (True, waiting)
    assert says in answer.text


@pytest.mark.parametrize("route", ["run", "api"])
def test_case_01_no_way_leads_around_the_queue(raw: RawClient, route: str) -> None:
    answer = raw.post(f"{route}/generate", {"data": ["1girl", "nano", None, 1001]})
    assert (answer.status_code, "join the queue" in answer.text) == (404, True)


@pytest.mark.parametrize("prompt", ["بنت بشعر أزرق", "ילדה, (smile:1.2)", "1girl\n\tsmile", "👩\u200d🎨"])
def test_case_01_writing_from_right_to_left_is_text(prompt: str) -> None:
    assert "prompt" not in find_problems(Request, {"prompt": prompt})
