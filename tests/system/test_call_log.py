"""Each call is one line of log without tokens or what a visitor wrote.

An error is a sentence with the number of its line.
"""

import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError, ValidationError
from hypothesis import given
from hypothesis import strategies as st

from core.schema.errors import UserError
from core.system import call_log
from tabs.server.call_wrapper import show_refusal, wrap_calls

ROOT = Path(__file__).parent.parent.parent
TOKEN = "hf_" + "aB3dE5gH7j" * 3
LOG_SCRIPT = f"""if True:
    import logging, sys, traceback
    from core.system import call_log
    early = logging.StreamHandler(sys.stderr)
    call_log.redact_output()
    own = logging.getLogger("a.library")
    own.addHandler(early)
    own.propagate = False
    def fail(token):
        raise RuntimeError("no access with " + token)
    for token in ("{TOKEN}", "Bearer eyJhbGciOi.x-y_z", "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJz-_d"):
        logging.getLogger().warning("one %s two", token)
        own.error("as words: " + token)
        print("printed", token)
        try:
            fail(token)
        except RuntimeError:
            own.exception("it failed")
            logging.exception("it failed")
            traceback.print_exc()
    fail("{TOKEN}")
"""


def parse_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_no_token_in_what_a_process_says() -> None:
    """Not in logs with or without own handlers, prints, or tracebacks, even the process's last."""
    done = subprocess.run(
        [sys.executable, "-c", LOG_SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    for secret in (TOKEN, TOKEN[:20], "eyJ"):
        assert secret not in said
    assert said.count("[token]") >= 3 * 6 + 1, said
    assert said.count("RuntimeError: no access with") == 10, "the rest of a traceback stays"


@given(st.text(), st.text("abcXYZ019", min_size=20, max_size=60), st.text())
def test_a_token_goes_wherever_it_stands(before: str, secret: str, after: str) -> None:
    assert f"hf_{secret}" not in call_log.redact_tokens(f"{before} hf_{secret} {after}")


def test_words_that_are_no_token_stay() -> None:
    for text in ("hf_hub_download", "1girl, bearer of light", "hf_short"):
        assert call_log.redact_tokens(text).split()[0] == text.split()[0]


@pytest.fixture
def page_client() -> Iterator[Client]:
    """A client of a real page with one handler for each way that a call can end."""

    def plain(words: str) -> dict[str, Any]:
        return {"steps": 4, "cells": [1, 2], "said": words}

    def refused(words: str) -> str:
        raise UserError("prompt", f"{words!r} is not valid.")

    def shown(words: str) -> str:
        return show_refusal(UserError("repo", f"{words!r} is not valid."))

    def broken(words: str) -> str:
        return {"a": 1}[f"{words} {TOKEN}"]  # type: ignore[return-value]

    def unshown(words: str) -> dict[str, str]:
        return f"{words} is not JSON"  # type: ignore[return-value]

    def endless(words: str) -> Iterator[str]:
        for i in range(10**6):
            time.sleep(0.01)
            yield f"{words} {i}"

    with gr.Blocks(analytics_enabled=False) as page:
        for handler in (plain, unshown, refused, shown, broken, endless):
            shows = gr.JSON if handler in (plain, unshown) else gr.Textbox
            gr.Button(visible=False).click(
                handler, gr.Textbox(visible=False), shows(visible=False), api_name=handler.__name__
            )
        fussy = lambda words: gr.validate(words == "1girl", "words: no.")  # noqa: E731
        gr.Button(visible=False).click(
            plain, gr.Textbox(visible=False), gr.JSON(visible=False), api_name="checked", validator=fussy
        )
    wrap_calls(page)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", show_error=False)
    yield Client(url, verbose=False)
    page.close(verbose=False)


def test_every_call_is_one_line_without_what_was_written(
    page_client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "my secret words"
    assert page_client.predict(secret, api_name="/plain")["said"] == secret
    page_client.predict(secret, api_name="/shown")
    with pytest.raises(AppError, match="prompt: 'my secret words' is not valid"):
        page_client.predict(secret, api_name="/refused")
    with pytest.raises(ValidationError, match=r"words: no\."):
        page_client.predict(secret, api_name="/checked")
    with pytest.raises(AppError, match=r"^Something went wrong \(request [0-9a-f]{8}\)\.$") as broke:
        page_client.predict(secret, api_name="/broken")
    with pytest.raises(AppError, match="Invalid JSON"):
        page_client.predict(secret, api_name="/unshown")
    job = page_client.submit(secret, api_name="/endless")
    while len(job.outputs()) < 3:
        time.sleep(0.05)
    job.cancel()
    end = time.monotonic() + 30
    said = ""
    while "stopped" not in said and time.monotonic() < end:
        time.sleep(0.1)
        said += "".join(capfd.readouterr())
    told = {line["kind"]: line for line in parse_lines(said)}
    assert secret not in said
    assert TOKEN not in said
    assert {kind: line["outcome"] for kind, line in told.items()} == {
        "plain": "done", "shown": "refused", "refused": "refused", "checked": "refused",
        "broken": "failed", "endless": "stopped", "unshown": "done", "gradio": "failed",
    }  # fmt: skip
    assert (told["plain"]["steps"], told["plain"]["cells"]) == (4, 2)
    assert (told["shown"]["field"], told["refused"]["field"], told["checked"]["field"]) == (
        "repo",
        "prompt",
        "words",
    )
    assert told["broken"]["request"] in str(broke.value)
    assert told["broken"]["error"] == "KeyError"
    assert told["broken"]["at"][-1].endswith(" broken")
    assert not call_log.count_open_calls()
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"]) and line["seconds"] >= 0
        for line in told.values()
    )


def test_the_message_of_what_broke_is_told_where_the_owner_wants_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for full in ("", "full"):
        monkeypatch.setenv("SWEETSPOT_LOG", full)
        call = call_log.Call(kind="x")
        try:
            raise ValueError(f"1girl {TOKEN}")
        except ValueError as error:
            call.mark_crashed(error)
        call.end()
    quiet, loud = parse_lines(capsys.readouterr().err)
    assert "message" not in quiet
    assert loud["message"] == "1girl [token]"


def test_the_studios_own_calls_count_what_they_made(
    client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    client.predict(prompt="1girl, a secret", steps=3, count=2, api_name="/generate")
    with pytest.raises(ValidationError):
        client.predict(prompt="1girl", steps=0, api_name="/generate")
    err = capfd.readouterr().err
    made, refused = (line for line in parse_lines(err) if line["kind"] == "generate")
    assert (made["pictures"], made["steps"], made["outcome"]) == (2, 3, "done")
    assert (refused["outcome"], refused["field"]) == ("refused", "steps")
    assert "secret" not in err


def test_a_traceback_keeps_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    stream = call_log.RedactingStream(sys.stderr)
    try:
        raise ValueError(TOKEN)
    except ValueError:
        traceback.print_exc(file=stream)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "test_a_traceback_keeps_its_place" in said
    assert said.rstrip().endswith("ValueError: [token]")


def test_a_terminal_that_is_gone_ends_no_work() -> None:
    """A picture would be lost because nobody could be told that it is made."""
    script = "from core.system import call_log; call_log.log_line('test'); print('done')"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=full, cwd=ROOT, check=False
        )
    assert ended.stdout == b"done\n"
