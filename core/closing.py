"""Whether the studio is being restarted: one flag, seen by every thread and every process that is forked."""

import mmap

from core.types import UserError

SENTENCE = "The studio is being restarted; what was finished stays, press again in a minute."
_flag = mmap.mmap(-1, 1)  # shared with ZeroGPU's workers; written in a signal's handler, where no lock may be taken


def ask() -> None:
    """From now on nothing begins, and what is under way ends within a step."""
    _flag[0] = 1


def asked() -> bool:
    return _flag[0] == 1


def check() -> None:
    """Raise the sentence as a `UserError` once the studio is being restarted."""
    if asked():
        raise UserError(SENTENCE)
