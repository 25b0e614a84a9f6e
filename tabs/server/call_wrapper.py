"""Log every call of the page and of the endpoints, and turn its errors into sentences for a person.

Handlers know nothing of this: it is put around them once, when the page is built.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any

import gradio as gr

from core.schema.errors import UserError
from core.system import call_log, shutdown
from core.system.call_log import Call
from core.system.markdown import format_warning
from tabs.server.gradio_internals import (
    Block,
    BlockFunction,
    ComponentProcessingError,
    processing_utils,
    queueing,
)

# Gradio prints what it refuses before a check: a visitor's words, as they stand.
queueing.print = lambda *_: None  # type: ignore[attr-defined]

MAX_SENTENCE_LENGTH = 2000  # characters; Gradio's own sentences repeat what was sent
was_refused: ContextVar[bool] = ContextVar("refused", default=False)
"""Whether the call of this request was refused; Gradio answers errors and refusals alike."""


class UnexpectedError(gr.Error):
    """An error that nobody foresaw."""


def wrap_calls(page: gr.Blocks) -> None:
    """Wrap every handler, every check before the queue, and Gradio's own part of a call."""
    for block in page.fns.values():
        if block.fn is None:
            continue
        public = block.api_visibility == "public"
        name = getattr(block.fn, "__name__", "")
        place = getattr(block.fn, "__module__", "").partition(".")[2].partition(".")[0]
        kind = {"kind": block.api_name} if public else {"kind": place, "call": name.strip("_")}
        clicked = any(event == "click" for _, event in block.targets) and name != "<lambda>"
        block.fn = _wrap_handler(
            block.fn,
            kind,
            len(block.outputs),
            always_log=public or (block.queue and block.concurrency_id != "looks") or clicked,
            starts_work=block.queue,
        )
        if block.validator:
            block.validator = _wrap_validator(block.validator, kind)
    page.process_api = _wrap_process_api(page.process_api)
    page.preprocess_data = _wrap_preprocess_data(page.preprocess_data)
    page._format_processing_error = _wrap_format_error(page._format_processing_error)


def _wrap_handler(
    handler: Callable[..., Any], kind: dict[str, Any], outputs: int, always_log: bool, starts_work: bool
) -> Callable[..., Any]:
    """Return the handler with logging: one line in the call log for each call.

    Without `always_log`, a call that ends well is not logged, such as one that only moves things
    about on the page. With `starts_work`, the call is refused while the app closes.
    """

    @wraps(handler)
    def call_once(*args: Any, **kwargs: Any) -> Any:
        with (
            _log_call(kind, always_log, starts_work) as call,
            call.make_current() if always_log else nullcontext(),
        ):
            result = handler(*args, **kwargs)
            if always_log:
                _record_result(call, result)
            return result

    @wraps(handler)
    def stream_results(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with _log_call(kind, always_log, starts_work) as call:
            # Gradio knows a generator by what it yields, and does not close one that was stopped
            # before its first yield: so that comes before any work.
            yield tuple(gr.skip() for _ in range(outputs)) if outputs > 1 else gr.skip()
            with call.make_current():
                results = handler(*args, **kwargs)
            try:
                while True:
                    with call.make_current():  # each step comes in a context of its own
                        result = next(results, call)
                        if result is call:
                            return
                        _record_result(call, result)
                    yield result
            finally:
                with call.make_current():
                    results.close()

    return stream_results if inspect.isgeneratorfunction(handler) else call_once


def _wrap_validator(validator: Callable[..., Any], kind: dict[str, Any]) -> Callable[..., Any]:
    """Return the check with logging: what it refuses is in the call log, too."""

    @wraps(validator)
    def run_validator(*args: Any, **kwargs: Any) -> Any:
        with _log_call(kind, always_log=False) as call:
            found = validator(*args, **kwargs)
            for each in found if isinstance(found, list) else [found]:
                if not each["is_valid"]:
                    call.mark_refused(each["message"])
            return found

    return run_validator


def _wrap_process_api(process: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return Gradio's own part of a call with logging.

    Logs what Gradio refuses before a handler sees it, and what of a result it cannot show.
    """

    async def process_api(*args: Any, **kwargs: Any) -> Any:
        try:
            return await process(*args, **kwargs)
        except Exception as error:
            was_refused.set(isinstance(error, gr.Error) and not isinstance(error, UnexpectedError))
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # logged already
            with _log_call({"kind": "gradio"}, always_log=False):
                raise

    return process_api


def _wrap_preprocess_data(preprocess: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return Gradio's preprocessing, which refuses an invalid value with the name of its field.

    It does so whichever error the component raises.
    """

    async def preprocess_data(fn: BlockFunction, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await preprocess(fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        except ComponentProcessingError as error:
            raise gr.Error(str(error)) from error
        except Exception as error:
            raise gr.Error(f"{await _find_invalid_field(fn, inputs)}: this value is not valid.") from error

    return preprocess_data


async def _find_invalid_field(fn: BlockFunction, inputs: list[Any]) -> str:
    """Return the name of the field whose value is not valid.

    The value names a file that was not uploaded, or has not the form that its component takes.
    """
    for i, (block, value) in enumerate(zip(fn.inputs, inputs, strict=False)):
        try:
            there = await processing_utils.async_move_files_to_cache(
                value, block, check_in_upload_folder=True
            )
            if there is not None and (model := getattr(block, "data_model", None)):
                model.model_validate(there, context={"validate_meta": True})
        except Exception:  # any that Gradio raises
            return _get_field_name(fn, i)
    return "data"


def _get_field_name(fn: BlockFunction, i: int) -> str:
    names = fn.input_parameter_names
    return (names[i] if names and i < len(names) else None) or "data"


def _wrap_format_error(original: Callable[..., str]) -> Callable[..., str]:
    """Return Gradio's formatter, which names the field of a value that a component cannot take.

    A value that a component cannot show stays an error of the app.
    """

    def format_error(fn: BlockFunction, i: int, *args: Any, is_input: bool, **kwargs: Any) -> str:
        return (
            f"{_get_field_name(fn, i)}: this value is not valid."
            if is_input
            else original(fn, i, *args, is_input=is_input, **kwargs)
        )

    return format_error


@contextmanager
def _log_call(kind: dict[str, Any], always_log: bool, starts_work: bool = False) -> Iterator[Call]:
    """Log a call, from its beginning to its line in the call log.

    Whatever ends the call reaches the person as a `gr.Error`.
    """
    call = Call(**kind)
    try:
        if starts_work:
            shutdown.check_shutdown()
        yield call
    except UserError as error:
        call.mark_refused(str(error))
        raise gr.Error(_clean_sentence(str(error)), print_exception=False) from error
    except gr.Error as error:
        call.mark_refused(error.message)
        error.message = _clean_sentence(error.message)
        error.print_exception = False  # its message may repeat what a visitor wrote
        raise
    except GeneratorExit:
        call.mark_stopped()
        raise
    except Exception as error:
        call.mark_crashed(error)
        raise UnexpectedError(
            f"Something went wrong (request {call.request_id}).", print_exception=False
        ) from error
    finally:
        call.end(log=always_log or call.outcome != "done")


def show_refusal(error: UserError) -> str:
    """Return an error as the page shows it, and record that the current call was refused."""
    call_log.record_refusal(str(error))
    return format_warning(str(error))


def _clean_sentence(sentence: str) -> str:
    """Return the sentence with a limited length, and without HTML, which the page would show.

    After an invisible mark, a `<` begins no tag.
    """
    whole = sentence.encode(errors="replace").decode()  # half a character could not be sent
    short = whole if len(whole) <= MAX_SENTENCE_LENGTH else f"{whole[:MAX_SENTENCE_LENGTH]}…"
    return re.sub("<(?=[A-Za-z/!?])", "<\u2060", short)


def _record_result(call: Call, result: Any) -> None:
    """Record how much was made, as a result says it."""
    for part in _list_parts(result):
        if isinstance(part, dict):
            call.counts |= {
                name: part[name] for name in ("steps", "images") if isinstance(part.get(name), int)
            }
            if isinstance(part.get("cells"), list):
                call.counts["cells"] = len(part["cells"])


def _list_parts(result: Any) -> list[Any]:
    """Return what a result puts into each component, in a tuple or a dict by component."""
    if isinstance(result, tuple | list):
        return list(result)
    if isinstance(result, dict) and any(isinstance(key, Block) for key in result):
        return list(result.values())
    return [result]
