"""What happened, a JSON line on stderr for each finished call; no token is ever in what this process says.

A line holds counts and names of fields, never what a visitor wrote or brought: the message of an error that nobody foresaw,
which may repeat it, is left out unless `SWEETSPOT_LOG` is `full`.
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
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TextIO, cast

TOKEN = re.compile(r"hf_(?:oauth_[\w.\-]{20,}|[A-Za-z0-9]{20,})|(?<=\bbearer )\s*\S+", re.IGNORECASE)
"""The Hub's tokens, a visitor's login among them, and whatever follows the word Bearer."""
FIELD = re.compile(r"([a-z_]{1,24}(?:\.[a-z_]{1,24})?): ")
"""How a sentence for a person begins."""
COUNTED = {"Picture": "pictures", "Step": "steps", "Loss": "steps"}
"""Event -> what it counts for."""
_writing = threading.Lock()
_open: set["Call"] = set()


def redacted(text: str) -> str:
    """The text without tokens."""
    return TOKEN.sub("[token]", text)


def say(kind: str, **told: Any) -> None:
    """Write one line; what is `None` is left out."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, **{name: value for name, value in told.items() if value is not None}}
    with _writing:
        sys.stderr.write(redacted(json.dumps(line)) + "\n")
        sys.stderr.flush()


# --- a call ----------------------------------------------------------------------------------------


class Call:
    """One call while it lasts."""

    def __init__(self, **told: Any):
        self.told, self.begin, self.request = told, time.monotonic(), secrets.token_hex(4)
        self.counts: dict[str, int] = {}
        self.outcome, self.why = "done", {}
        _open.add(self)

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def refused(self, sentence: str) -> None:
        """It ended with a sentence for the person: a field that is not allowed, or else something that failed."""
        field = FIELD.match(sentence)
        self.outcome, self.why = ("refused", {"field": field[1]}) if field else ("failed", {})

    def stopped(self) -> None:
        self.outcome = "stopped"

    def broke(self, error: BaseException) -> None:
        """It ended in an error that nobody foresaw."""
        frames = [f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
        message = str(error) if os.environ.get("SWEETSPOT_LOG") == "full" else None
        self.outcome, self.why = "failed", {"error": type(error).__name__, "at": frames[-8:], "message": message}

    def end(self, tell: bool = True) -> None:
        """It is over; one line says so, unless it is none that anybody asked for."""
        _open.discard(self)
        if not tell:
            return
        seconds = round(time.monotonic() - self.begin, 3)
        say(**self.told, request=self.request, **self.counts, seconds=seconds, outcome=self.outcome, **self.why)

    @contextmanager
    def current(self) -> Iterator[None]:
        """While it lasts, what `counted` sees belongs to this call."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def under_way() -> int:
    """Calls that have not ended."""
    return len(_open)


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def counted(events: Callable[..., Any]) -> Callable[..., Generator[Any, None, None]]:
    """The same generator; its pictures and steps are counted for the call that drives it."""

    @wraps(events)
    def counting(*arguments: Any, **named: Any) -> Generator[Any, None, None]:
        call, made = _current.get(), events(*arguments, **named)
        try:
            for event in made:
                if call and (name := COUNTED.get(type(event).__name__)):
                    call.count(name)
                yield event
        finally:
            made.close()

    return counting


# --- tokens ----------------------------------------------------------------------------------------


class Redacting:
    """A stream that says everything but tokens."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redacted(text))

    def writelines(self, lines: list[str]) -> None:
        self._stream.writelines(map(redacted, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """From now on no token is in what this process logs or prints: messages, tracebacks, whoever formats them."""
    make = logging.getLogRecordFactory()

    def clean(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit are told of by the handler, on a stream that is clean
            return record
        if (safe := redacted(text)) != text:
            record.msg, record.args = safe, None
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    logging.setLogRecordFactory(clean)
    sys.stdout, sys.stderr = cast(TextIO, Redacting(sys.stdout)), cast(TextIO, Redacting(sys.stderr))
