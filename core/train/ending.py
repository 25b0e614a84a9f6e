"""How a run's process ends, told in the run's folder: by an error, or without a word when it was killed."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.device import on_space
from core.memory import ran_out_of_memory
from core.train.folder import Folder
from core.types import UserError

LONGEST = 200
"""Characters of an error that are told; its log has the rest."""


@contextmanager
def tell_end(folder: Folder, log: str) -> Iterator[None]:
    """While it lasts, this process has the run; an error that ends it is kept as why the run failed, with the place of its `log`.

    The error goes on. A `UserError` is what somebody else has told of already.
    """
    folder.begin()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        folder.failed(_sentence(error, log))
        raise
    finally:
        folder.end()


def log_of(folder: Folder) -> str:
    """Where the log of a process of its own lies; on a Space, whose disk no visitor sees, what it is called."""
    return f"{folder.log.name} of run {folder.name}" if on_space() else str(folder.log)


def missing_end(folder: Folder) -> str | None:
    """What is told of a run whose process is gone and did not say that it ended; `None` for any other."""
    if not folder.lacks_end():
        return None
    log = f" Its log is {log_of(folder)}." if folder.log.exists() else ""
    return f"Its process was killed, or ran out of memory, and could not say so. Resume it, and it goes on from step {folder.last()}.{log}"


def _sentence(error: Exception, log: str) -> str:
    if ran_out_of_memory(error):
        return f"This machine ran out of memory: lower batch or resolution. The last state stays; the log is {log}."
    text = "" if on_space() else str(error).strip().partition("\n")[0][:LONGEST]  # which may name places of the machine
    return f"It broke off ({type(error).__name__}{f': {text}' if text else ''}). The last state stays; the log is {log}."
