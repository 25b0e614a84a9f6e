"""Bad values by plain HTTP: the field and what is allowed, no place in the queue, nothing computed, and everybody else's jobs go on."""

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.utils import Status

from core import limits
from tests.model import torch_is_busy
from tests.trust.raw import Raw

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/generate", {"width": 1001}, "width: 1001 is not allowed; it takes a whole number from 64 to 2048 in steps of 32."),
    ("/generate", {"height": 10**400}, "height: "),
    ("/generate", {"steps": 0}, "steps: 0 is not allowed; it takes a whole number from 1 to 150."),
    ("/generate", {"steps": 10**6}, "steps: 1000000 is not allowed"),
    ("/generate", {"cfg": math.nan}, "cfg: nan is not allowed; it takes a number from 1 to 30."),
    ("/generate", {"cfg": math.inf}, "cfg: inf is not allowed"),
    ("/generate", {"seed": 2**64}, "seed: 18446744073709551616 is not allowed; it takes a whole number from 0 to 4294967295."),
    ("/generate", {"loras": [{"lora": "nano-airbrush", "strength": math.inf}]}, "strength: inf is not allowed for nano-airbrush; it takes"),
    ("/generate", {"detail": {"lora_strength": -math.inf}}, "lora_strength: -inf is not allowed"),
    ("/generate", {"hires": {"denoise": math.nan}}, "denoise: nan is not allowed"),
    ("/generate", {"prompt": ""}, "prompt: it is empty"),
    ("/generate", {"prompt": " \u3000\n"}, "prompt: it is empty"),
    ("/generate", {"prompt": "x" * 400_000}, "prompt: 400,000 characters are too many; it takes up to 10,000."),
    ("/generate", {"prompt": "1girl\0"}, "prompt: it holds a control character"),
    ("/generate", {"prompt": "1girl\ud800"}, "prompt: it holds a control character"),
    ("/generate", {"prompt": "1girl, \u202etxt.exe"}, "prompt: it holds a control character"),
    ("/generate", {"negative": "\u2067sketch"}, "negative: it holds a control character"),
    ("/expand_prompt", {"prompt": ""}, "prompt: it is empty"),
    ("/expand_prompt", {"temperature": math.nan}, "expand.temperature: nan is not allowed"),
    ("/sweep", {"strengths": "0, inf"}, "strengths: "),
    ("/sweep", {"seeds": str(2**64)}, "seeds: "),
    ("/sweep", {"prompts": "1girl\0"}, "prompts: prompt: it holds a control character"),
    ("/transfer", {"strengths": "nan"}, "strengths: "),
    ("/transfer", {"clip_skip": 10**6}, "clip_skip: 1000000 is not allowed"),
]


@pytest.fixture(scope="module")
def held(client: Client, raw: Raw) -> Iterator[list[Job]]:
    """One job that has the GPU's place and cannot go on, and one that waits behind it."""
    with torch_is_busy():
        jobs = [client.submit(prompt="1girl", steps=2, width=64, height=64, seed=1, api_name="/generate")]
        while jobs[0].status().code not in (Status.PROCESSING, Status.ITERATING):
            time.sleep(0.02)
        jobs.append(client.submit(prompt="1girl", steps=2, width=64, height=64, seed=1, api_name="/generate"))
        while raw.waiting() != 1:
            time.sleep(0.02)
        yield jobs
    for job in (*jobs, client.submit(prompt="1girl", seed=1, steps=2, api_name="/generate")):  # those before and the next: nobody noticed
        files, report = job.result(timeout=60)
        assert (len(files), report["seeds"]) == (1, [1])


@pytest.mark.parametrize(("endpoint", "values", "says"), BAD, ids=[f"{endpoint} {values!r:.40}" for endpoint, values, _ in BAD])
def test_case_01_a_bad_value_is_named_without_a_place_or_a_gpu(raw: Raw, held: list[Job], endpoint: str, values: dict[str, Any], says: str) -> None:
    waiting = raw.waiting()
    assert waiting >= 1, "what does wait is not counted, so that the count says nothing"
    answer = raw.asked(endpoint, **values)  # torch's thread is taken: this would not come back if it wanted it
    assert raw.waiting() == waiting, "it took a place in the queue"
    assert answer.status_code == 422, answer.text
    (refused,) = [told for told in answer.json()["detail"] if not told["is_valid"]]
    assert refused["parameter_name"] in values
    assert says in refused["message"]
    assert not any(job.done() for job in held)


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [("Width", 1001, "1001"), ("Steps", 0, "0"), ("CFG", math.nan, "cfg: nan is not allowed"), ("Prompt", "a\0", "prompt: it holds a control character")],
)
def test_case_01_the_pages_own_button_is_checked_too(client: Client, raw: Raw, held: list[Job], label: str, value: Any, says: str) -> None:
    """Sliders by Gradio, beyond their ends; all else by the same check."""
    config: Any = client.config
    make = next(each for each in config["dependencies"] if each["api_name"] == "_make")
    props = {each["id"]: each["props"] for each in config["components"]}
    data = [value if props[number].get("label") == label else props[number].get("value") for number in make["inputs"]]
    assert value in data
    waiting = raw.waiting()
    answer = raw.post("queue/join", {"data": data, "fn_index": make["id"], "session_hash": "hostile"})
    assert (answer.is_client_error, raw.waiting()) == (True, waiting)
    assert says in answer.text


@pytest.mark.parametrize("route", ["run", "api"])
def test_case_01_no_way_leads_around_the_queue(raw: Raw, route: str) -> None:
    answer = raw.post(f"{route}/generate", {"data": ["1girl", "nano", None, 1001]})
    assert (answer.status_code, "join the queue" in answer.text) == (404, True)


@pytest.mark.parametrize("prompt", ["بنت بشعر أزرق", "ילדה, (smile:1.2)", "1girl\n\tsmile", "👩\u200d🎨"])
def test_case_01_writing_from_right_to_left_is_text(prompt: str) -> None:
    assert limits.problems({"prompt": prompt}) == {}
