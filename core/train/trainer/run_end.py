"""How a run's process ends, recorded in the run's folder: by an error, or silently when killed."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.schema.errors import UserError
from core.system.device import is_space
from core.system.memory import is_out_of_memory
from core.train.trainer.run_folder import RunFolder

MAX_ERROR_LENGTH = 200
"""Characters of an error that are shown; its log has the rest."""


@contextmanager
def record_end(folder: RunFolder, log: str) -> Iterator[None]:
    """Mark the run as held by this process while the context lasts.

    An error that ends it is recorded as by `record_failure`.
    """
    folder.mark_started()
    try:
        with record_failure(folder, log):
            yield
    finally:
        folder.mark_ended()


@contextmanager
def record_failure(folder: RunFolder, log: str) -> Iterator[None]:
    """Keep the first error of any process of the run as its failure, and re-raise it.

    The failure says where the `log` is.

    What follows from it in the other processes, such as a closed connection, is not the reason. A
    `UserError` has been recorded elsewhere already.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not folder.read_failure():
            folder.save_failure(_describe_error(error, log))
        raise


def describe_log(folder: RunFolder) -> str:
    """Return where the log of a process of its own is.

    On a Space, whose disk no visitor sees, return its name instead.
    """
    return f"{folder.log_file.name} of run {folder.name}" if is_space() else str(folder.log_file)


def explain_missing_end(folder: RunFolder) -> str | None:
    """Return the failure of a run whose process is gone without recording its end.

    `None` for any other run.
    """
    if not folder.has_missing_end():
        return None
    log = f" Its log is {describe_log(folder)}." if folder.log_file.exists() else ""
    return (
        "Its process was killed or ran out of memory. "
        f"Resume it to continue from step {folder.find_last_step()}.{log}"
    )


def _describe_error(error: Exception, log: str) -> str:
    if is_out_of_memory(error):
        return (
            "This machine ran out of memory: lower batch or resolution. "
            f"The last state is kept; the log is {log}."
        )
    # Left out on a Space, because the text may name places of the machine.
    text = "" if is_space() else str(error).strip().partition("\n")[0][:MAX_ERROR_LENGTH]
    return (
        f"Training failed ({type(error).__name__}{f': {text}' if text else ''}). "
        f"The last state is kept; the log is {log}."
    )
