"""Tell every thread and every forked process, by one flag, that the studio is being restarted."""

import mmap

from core.schema.errors import UserError

RESTART_MESSAGE = "Sweetspot is restarting. Finished work is kept; try again in a minute."
# Shared with ZeroGPU's workers; written in a signal handler, where no lock may be taken.
_flag = mmap.mmap(-1, 1)


def request_shutdown() -> None:
    """Set the flag: from now on no job begins, and a running one ends within a step."""
    _flag[0] = 1


def is_shutting_down() -> bool:
    """Whether the studio is being restarted."""
    return _flag[0] == 1


def check_shutdown() -> None:
    """Raise `UserError` with `RESTART_MESSAGE` if the studio is being restarted."""
    if is_shutting_down():
        raise UserError(None, RESTART_MESSAGE)
