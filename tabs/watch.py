"""Every call of the page and of the endpoints goes through here: into the journal, and to the person in a sentence.

Handlers know nothing of it: it is put around them once, when the page is built.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr
from gradio import queueing

from core import closing
from core.journal import Call
from core.types import UserError

queueing.print = lambda *_: None  # type: ignore[attr-defined]  # by which Gradio says what it refuses before a check: a visitor's words, as they stand


def watch(page: gr.Blocks) -> None:
    """Put it around every handler and every check before the queue."""
    for block in page.fns.values():
        if block.fn is None:
            continue
        public = block.api_visibility == "public"
        name = getattr(block.fn, "__name__", "")
        place = getattr(block.fn, "__module__", "").rpartition(".")[2]
        kind = {"kind": block.api_name} if public else {"kind": place, "call": name.strip("_")}
        clicked = any(event == "click" for _, event in block.targets) and name != "<lambda>"
        block.fn = _watched(
            block.fn, kind, len(block.outputs), logged=public or (block.queue and block.concurrency_id != "looks") or clicked, begins=block.queue
        )
        if block.validator:
            block.validator = _checked(block.validator, kind)
    page.process_api = _processed(page.process_api)


def _watched(handler: Callable[..., Any], kind: dict[str, Any], outputs: int, logged: bool, begins: bool) -> Callable[..., Any]:
    """The handler: one line in the journal for each call, or where it is not `logged` for one that broke; what `begins` work does not while the studio closes.

    What only moves things about on the page is not logged.
    """

    @wraps(handler)
    def once(*arguments: Any, **named: Any) -> Any:
        with _told(kind, logged, begins) as call, call.current():
            result = handler(*arguments, **named)
            if logged:
                _look(call, result)
            return result

    @wraps(handler)
    def stream(*arguments: Any, **named: Any) -> Iterator[Any]:
        with _told(kind, logged, begins) as call:
            # Gradio knows a generator by what it yields, and closes none that was stopped before its first word: that comes before any work.
            yield tuple(gr.skip() for _ in range(outputs)) if outputs > 1 else gr.skip()
            with call.current():
                results = handler(*arguments, **named)
            try:
                while True:
                    with call.current():  # each step comes in a context of its own
                        result = next(results, call)
                        if result is call:
                            return
                        _look(call, result)
                    yield result
            finally:
                with call.current():
                    results.close()

    return stream if inspect.isgeneratorfunction(handler) else once


def _checked(validator: Callable[..., Any], kind: dict[str, Any]) -> Callable[..., Any]:
    """The check: what it refuses is in the journal, too."""

    @wraps(validator)
    def check(*arguments: Any, **named: Any) -> Any:
        with _told(kind, logged=False) as call:
            found = validator(*arguments, **named)
            for each in found if isinstance(found, list) else [found]:
                if not each["is_valid"]:
                    call.refused(each["message"])
            return found

    return check


def _processed(process: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Gradio's own part of a call: what it refuses before a handler sees it, and what of a result it cannot show."""

    async def processed(*arguments: Any, **named: Any) -> Any:
        try:
            return await process(*arguments, **named)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # told of already
            with _told({"kind": "gradio"}, logged=False):
                raise

    return processed


@contextmanager
def _told(kind: dict[str, Any], logged: bool, begins: bool = False) -> Iterator[Call]:
    """A call from its beginning to its line in the journal. Whatever ends it reaches the person as a `gr.Error`."""
    call = Call(**kind)
    try:
        if begins:
            closing.check()
        yield call
    except UserError as error:
        call.refused(str(error))
        raise gr.Error(_text(str(error)), print_exception=False) from error
    except gr.Error as error:
        call.refused(error.message)
        error.message = _text(error.message)
        error.print_exception = False  # its message may repeat what was written
        raise
    except GeneratorExit:
        call.stopped()
        raise
    except Exception as error:
        call.broke(error)
        raise gr.Error(f"Something broke here (request {call.request}).", print_exception=False) from error
    finally:
        call.end(tell=logged or call.outcome != "done")


def _text(sentence: str) -> str:
    """The sentence without HTML, which the page would show: behind an unseen mark a `<` begins no tag."""
    return re.sub("<(?=[A-Za-z/!?])", "<\u2060", sentence)


def _look(call: Call, result: Any) -> None:
    """What a result says of the call: how much was made, and whether a page shows a refusal in its place."""
    for part in result if isinstance(result, tuple | list) else [result]:
        if isinstance(part, str) and part.startswith("⚠️ "):
            call.refused(part.removeprefix("⚠️ ").replace("\\", ""))  # a field as it is called, not as Markdown has it
        elif isinstance(part, dict):
            call.counts |= {name: part[name] for name in ("steps", "images") if isinstance(part.get(name), int)}
            if isinstance(part.get("cells"), list):
                call.counts["cells"] = len(part["cells"])
