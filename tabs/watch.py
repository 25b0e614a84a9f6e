"""Every call of the page and of the endpoints goes through here: into the journal, and to the person in a sentence.

Handlers know nothing of it: it is put around them once, when the page is built.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import gradio as gr
from gradio import processing_utils, queueing
from gradio.block_function import BlockFunction
from gradio.exceptions import ComponentProcessingError

from core import closing
from core.journal import Call
from core.types import UserError

queueing.print = lambda *_: None  # type: ignore[attr-defined]  # by which Gradio says what it refuses before a check: a visitor's words, as they stand

LONGEST = 2000  # characters of a sentence: Gradio's own repeat what was sent
refused: ContextVar[bool] = ContextVar("refused", default=False)
"""Whether the call of this request was refused; Gradio answers what breaks and what is refused alike."""


class Broke(gr.Error):
    """Something that nobody foresaw."""


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
    page.preprocess_data = _preprocessed(page.preprocess_data)
    page._format_processing_error = _said_of(page._format_processing_error)


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
            refused.set(isinstance(error, gr.Error) and not isinstance(error, Broke))
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # told of already
            with _told({"kind": "gradio"}, logged=False):
                raise

    return processed


def _preprocessed(preprocess: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """What a component does not take is refused with its field, whichever error it is that the component raises."""

    async def preprocessed(fn: BlockFunction, inputs: list[Any], *arguments: Any, **named: Any) -> Any:
        try:
            return await preprocess(fn, inputs, *arguments, **named)
        except gr.Error:
            raise
        except ComponentProcessingError as error:
            raise gr.Error(str(error)) from error
        except Exception as error:
            raise gr.Error(f"{await _not_taken(fn, inputs)}: it does not take what was sent.") from error

    return preprocessed


async def _not_taken(fn: BlockFunction, inputs: list[Any]) -> str:
    """The field whose value names a file that was not uploaded, or has not the form that its component takes."""
    for i, (block, value) in enumerate(zip(fn.inputs, inputs, strict=False)):
        try:
            there = await processing_utils.async_move_files_to_cache(value, block, check_in_upload_folder=True)
            if there is not None and (model := getattr(block, "data_model", None)):
                model.model_validate(there, context={"validate_meta": True})
        except Exception:  # whichever of Gradio's
            return _field(fn, i)
    return "data"


def _field(fn: BlockFunction, i: int) -> str:
    names = fn.input_parameter_names
    return (names[i] if names and i < len(names) else None) or "data"


def _said_of(formatted: Callable[..., str]) -> Callable[..., str]:
    """A value that a component cannot take is told by its field; one that it cannot show stays a fault of ours."""

    def said(fn: BlockFunction, i: int, *arguments: Any, is_input: bool, **named: Any) -> str:
        return f"{_field(fn, i)}: it does not take what was sent." if is_input else formatted(fn, i, *arguments, is_input=is_input, **named)

    return said


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
        raise Broke(f"Something broke here (request {call.request}).", print_exception=False) from error
    finally:
        call.end(tell=logged or call.outcome != "done")


def _text(sentence: str) -> str:
    """The sentence, not without end and without HTML, which the page would show: behind an unseen mark a `<` begins no tag."""
    whole = sentence.encode(errors="replace").decode()  # half a character could not be sent
    short = whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}…"
    return re.sub("<(?=[A-Za-z/!?])", "<\u2060", short)


def _look(call: Call, result: Any) -> None:
    """What a result says of the call: how much was made, and whether a page shows a refusal in its place."""
    for part in result if isinstance(result, tuple | list) else [result]:
        if isinstance(part, str) and part.startswith("⚠️ "):
            call.refused(part.removeprefix("⚠️ ").replace("\\", ""))  # a field as it is called, not as Markdown has it
        elif isinstance(part, dict):
            call.counts |= {name: part[name] for name in ("steps", "images") if isinstance(part.get(name), int)}
            if isinstance(part.get("cells"), list):
                call.counts["cells"] = len(part["cells"])
