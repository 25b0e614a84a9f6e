"""Memory: whether an error means that it ran out, what a person reads then, and how it is given back."""

import ctypes
import errno
import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from core.types import UserError

REFUSALS = (
    "out of memory",  # CUDA, cuDNN
    "allocate memory",  # torch on the CPU, the system's own error 12, onnxruntime
    "not enough memory",  # torch on the CPU of Windows
    "bad_alloc",
    "bad allocation",
    "alloc_failed",  # cuBLAS, cuDNN
)
"""What allocators say that have no class of error of their own."""


class OutOfMemory(UserError):
    """Memory ran out; the sentence says what helps."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of memory, the GPU's or the machine's, or follows from one: libraries take a refusal for a bad file."""
    chain: BaseException | None = error
    while chain is not None:
        if not isinstance(chain, UserError) and _is_refusal(chain):
            return True
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return False


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; a detector's process has no torch
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    said = str(error).lower()
    return any(refusal in said for refusal in REFUSALS)


@contextmanager
def enough_memory(sentence: str | Callable[[], str]) -> Iterator[None]:
    """Where memory runs out inside, raise `OutOfMemory(sentence)`; whatever the attempt held is given back before.

    A `UserError` with a sentence of its own about memory passes: the place nearest to the refusal knows best.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        let_go(error)
        release()
        raise OutOfMemory(sentence if isinstance(sentence, str) else sentence()) from None


def let_go(error: BaseException) -> None:
    """Drop what the frames hold through which an error came: tensors that live for as long as somebody looks at the error."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__


def release() -> None:
    """Give back what nothing holds any more: the interpreter's cycles, the GPU allocator's cache, free parts of glibc's heaps."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Let the system have the memory that is free inside of glibc's heaps; else a process keeps what the busiest moment of each thread took."""
    with suppress(AttributeError, OSError, TypeError):  # another C library; Windows has no handle of the process itself
        ctypes.CDLL(None).malloc_trim(0)
