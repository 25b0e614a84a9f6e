"""What Jobs may cost before one is started: the hardware that can be had, what a training takes on it; and what the Hub refuses, in a sentence."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC

from huggingface_hub import HfApi, JobHardwareInfo
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from core.types import UserError

START = 180
"""Seconds of a Job before it trains: its container, the base model."""
MARGIN = 3
"""Times what is expected: nobody knows other hardware's pace, and what a timeout cuts off goes on from its last state."""
LONGEST = 24 * 60
"""Minutes that may be expected."""
MINUTES = {"second": 1 / 60, "minute": 1.0, "hour": 60.0}
REASONS = {
    401: "the Hub does not know the login any more; log in again.",
    402: "the account has no credit for Jobs; add some in its billing settings on the Hub.",
    403: "the login may not do that: on a Space it needs the scope jobs, at home a token that may write and start Jobs.",
    404: "it is gone from the Hub.",
    429: "the Hub asks to wait; try again in a few minutes.",
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine that can be had."""

    name: str
    title: str
    price: float
    """Dollars a minute."""

    def line(self) -> str:
        return f"{self.title}, ${self.price * 60:.2f} an hour"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a Job on some hardware is expected to take, and what it takes at most."""

    hardware: Hardware
    seconds: int
    timeout: int
    """Seconds after which the Hub ends it."""

    def line(self) -> str:
        """One line for a person."""
        about, most = (math.ceil(self.hardware.price * seconds / 60 * 100) / 100 for seconds in (self.seconds, self.timeout))
        return f"{self.hardware.title}: about ${about:.2f}, at most ${most:.2f} (its timeout, {self.timeout // 60} min)"


def hardware(token: str) -> list[Hardware]:
    """What can be had now, the cheapest first. Raises `UserError`."""
    with asking("hardware: the list cannot be had"):
        found = HfApi(token=token).list_jobs_hardware()
    return sorted((Hardware(name=each.name, title=_title(each), price=each.unit_cost_usd / MINUTES[each.unit_label]) for each in found), key=lambda h: h.price)


def _title(found: JobHardwareInfo) -> str:
    return f"{found.pretty_name} ({found.accelerator.vram if found.accelerator else found.ram})"


def offer(there: list[Hardware], name: str | None, minutes: float | None) -> Offer:
    """The offer for a training of so many minutes. Raises `UserError`."""
    chosen = next((each for each in there if each.name == name), None)
    if chosen is None:
        raise UserError(f"hardware: {str(name)[:40]!r} cannot be had; it takes {', '.join(each.name for each in there)}.")
    if not isinstance(minutes, int | float) or not 0 < minutes <= LONGEST:
        raise UserError(f"minutes: {minutes!r} is not allowed; say how many the training may take, up to {LONGEST}.")
    seconds = START + math.ceil(minutes * 60)
    return Offer(hardware=chosen, seconds=seconds, timeout=math.ceil(seconds * MARGIN / 60) * 60)


@contextmanager
def asking(what: str, lost: str = "the Hub cannot be reached; try again.") -> Iterator[None]:
    """What the Hub refuses as one sentence, without an address, a header or a token in it; `lost` where it gave no answer."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == ENOSPC:
            raise UserError(f"{what}: the disk is full; make room and try again.") from error
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
        if status is None and (said := re.search(r"\((\d{3}) [A-Z]", str(error))):  # hf_xet has no more than its text
            status = int(said[1])
        why = lost if status is None else REASONS.get(status, f"the Hub answered {status}; try again.")
        raise UserError(f"{what}: {why}") from error
