"""Questions to the Hub that can be asked twice without harm: what passes is waited for, as long as the Hub says."""

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError

T = TypeVar("T")
PASSES = (429, 500, 502, 503, 504)
WAITS = (0.5, 2.0)  # seconds before the second and the third time
LONGEST = 10  # seconds; for a person who would wait longer a sentence is better


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` gives, asked up to three times where the Hub is busy or the connection breaks off; the client does so with files alone.

    Raises what `ask` raises the last time, or at once when it will not pass or the Hub asks to wait for longer than 10 seconds.
    """
    for wait in WAITS:
        try:
            return ask()
        except HTTPError as error:
            response = error.response if isinstance(error, HfHubHTTPError) else None
            told = response.headers.get("Retry-After", "") if response is not None else ""
            seconds = int(told) if told.isdecimal() else wait
            if (response is not None and response.status_code not in PASSES) or seconds > LONGEST:
                raise
        time.sleep(seconds)
    return ask()
