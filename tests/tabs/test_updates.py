"""Handlers that answer by the names of components, with only what changes."""

import inspect
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from core.schema.errors import UserError
from core.system.call_log import Call
from tabs.server import call_wrapper
from tabs.shared.updates import answer_by_name


@pytest.fixture
def components() -> dict[str, Any]:
    with gr.Blocks(analytics_enabled=False):
        return {"status": gr.Markdown(), "gallery": gr.Gallery(), "result": gr.State()}


def test_only_what_is_named_changes(components: dict[str, Any]) -> None:
    def show(images: list[str], said: str = "") -> dict[str, Any]:
        return {"gallery": images, "status": said} if images else {}

    event = answer_by_name(show, components)
    fn = event["fn"]
    assert event["outputs"] == list(components.values())
    assert fn(["a.png"], said="one") == {components["gallery"]: ["a.png"], components["status"]: "one"}
    assert fn([]) == gr.skip()
    assert (fn.__name__, fn.__module__) == ("show", __name__)
    assert inspect.signature(fn) == inspect.signature(show)
    with pytest.raises(KeyError):
        answer_by_name(show, {"status": components["status"]})["fn"](["a.png"])


def test_a_generator_stays_one_and_is_closed_with_what_it_runs(components: dict[str, Any]) -> None:
    closed = []

    def stream() -> Iterator[dict[str, Any]]:
        try:
            yield {"status": "one"}
            yield {"status": "two"}
        finally:
            closed.append(True)

    fn = answer_by_name(stream, components)["fn"]
    assert inspect.isgeneratorfunction(fn)
    assert list(fn()) == [{components["status"]: "one"}, {components["status"]: "two"}]
    assert closed == [True]
    started = fn()
    next(started)
    started.close()
    assert closed == [True, True]


def test_the_log_hears_what_such_an_answer_says(components: dict[str, Any]) -> None:
    call = Call(kind="tab")
    with call.make_current():
        result = {
            components["status"]: call_wrapper.show_refusal(UserError("repo", "'x' is not valid.")),
            components["result"]: {"cells": [1, 2]},
        }
    call_wrapper._record_result(call, result)
    call.end(log=False)
    assert call.outcome == "refused"
    assert call.counts == {"cells": 2}
