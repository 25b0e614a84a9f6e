"""Log a JSON line on stderr for each finished call, and keep tokens out of all output.

A line holds counts and names of fields, never what a visitor wrote or uploaded. The message of an
unexpected error may repeat such content, so it is left out unless `SWEETSPOT_LOG` is `full`.
"""

import json
import logging
import os
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TextIO, cast

TOKEN_PATTERN = re.compile(r"hf_(?:oauth_[\w.\-]{20,}|[A-Za-z0-9]{20,})|(?<=\bbearer )\s*\S+", re.IGNORECASE)
"""The Hub's tokens, a visitor's login included, and whatever follows the word Bearer."""
FIELD_PATTERN = re.compile(r"([a-z_][a-z0-9_]{0,23}(?:\.[a-z0-9_]{1,24})?): ")
"""The field at the start of a sentence for a person."""
COUNTER_NAMES = {"Picture": "pictures", "Step": "steps", "Loss": "steps"}
"""Class of an event -> the name of its counter."""
_write_lock = threading.Lock()
_open_calls: set["Call"] = set()


def redact_tokens(text: str) -> str:
    """Return the text with each token replaced by `[token]`."""
    return TOKEN_PATTERN.sub("[token]", text)


def log_line(kind: str, **fields: Any) -> None:
    """Write one JSON line to stderr; fields that are `None` are left out."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": kind,
        **{name: value for name, value in fields.items() if value is not None},
    }
    # A terminal that is gone, or a full disk behind it, must not end the work that the line is about.
    with _write_lock, suppress(OSError):
        sys.stderr.write(redact_tokens(json.dumps(line)) + "\n")
        sys.stderr.flush()


# --- a call ---------------------------------------------------------------------------------------


class Call:
    """One call that is being handled: its counts and its outcome."""

    def __init__(self, **fields: Any):
        self.fields, self.start_time, self.request_id = fields, time.monotonic(), secrets.token_hex(4)
        self.counts: dict[str, int] = {}
        self.outcome, self.details = "done", {}
        _open_calls.add(self)

    def count(self, name: str) -> None:
        """Add one to the counter `name`."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def mark_refused(self, sentence: str) -> None:
        """Record that the call ended with a sentence for the person.

        If the sentence begins with a field, the call was refused, otherwise it failed.
        """
        field = FIELD_PATTERN.match(sentence)
        self.outcome, self.details = ("refused", {"field": field[1]}) if field else ("failed", {})

    def mark_stopped(self) -> None:
        """Record that somebody stopped the call."""
        self.outcome = "stopped"

    def mark_crashed(self, error: BaseException) -> None:
        """Record that the call ended with an unexpected error."""
        frames = [
            f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        message = str(error) if os.environ.get("SWEETSPOT_LOG") == "full" else None
        self.outcome, self.details = (
            "failed",
            {"error": type(error).__name__, "at": frames[-8:], "message": message},
        )

    def end(self, log: bool = True) -> None:
        """End the call and log its line, unless `log` is false."""
        _open_calls.discard(self)
        if not log:
            return
        seconds = round(time.monotonic() - self.start_time, 3)
        log_line(
            **self.fields,
            request=self.request_id,
            **self.counts,
            seconds=seconds,
            outcome=self.outcome,
            **self.details,
        )

    @contextmanager
    def make_current(self) -> Iterator[None]:
        """Let `count_events` count for this call during the `with` block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def count_open_calls() -> int:
    """Return the number of calls that have not ended."""
    return len(_open_calls)


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def record_refusal(sentence: str) -> None:
    """Record that the current call, if there is one, ended with a sentence for the person."""
    if call := _current.get():
        call.mark_refused(sentence)


def count_events(events: Callable[..., Any]) -> Callable[..., Generator[Any, None, None]]:
    """Wrap a generator function so that its pictures and steps count for the current call."""

    @wraps(events)
    def run_counted(*arguments: Any, **named: Any) -> Generator[Any, None, None]:
        call, made = _current.get(), events(*arguments, **named)
        try:
            for event in made:
                if call and (name := COUNTER_NAMES.get(type(event).__name__)):
                    call.count(name)
                yield event
        finally:
            made.close()

    return run_counted


# --- tokens ---------------------------------------------------------------------------------------


class RedactingStream:
    """A text stream that writes everything but tokens."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text with tokens replaced."""
        return self._stream.write(redact_tokens(text))

    def writelines(self, lines: list[str]) -> None:
        """Write the lines with tokens replaced."""
        self._stream.writelines(map(redact_tokens, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """Keep tokens out of everything this process logs or prints from now on.

    This covers messages and tracebacks, whichever code formats them.
    """
    make = logging.getLogRecordFactory()

    def make_clean_record(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the handler reports these, on a redacting stream
            return record
        if (safe := redact_tokens(text)) != text:
            record.msg, record.args = safe, None
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redact_tokens("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    logging.setLogRecordFactory(make_clean_record)
    sys.stdout, sys.stderr = (
        cast(TextIO, RedactingStream(sys.stdout)),
        cast(TextIO, RedactingStream(sys.stderr)),
    )
