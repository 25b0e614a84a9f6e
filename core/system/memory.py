"""Recognise errors of memory, translate them for a person, and give memory back."""

import ctypes
import errno
import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from core.schema.errors import UserError

OUT_OF_MEMORY_PHRASES = (
    "out of memory",  # CUDA, cuDNN
    "allocate memory",  # torch on the CPU, the system's own error 12, onnxruntime
    "not enough memory",  # torch on the CPU of Windows
    "bad_alloc",
    "bad allocation",
    "alloc_failed",  # cuBLAS, cuDNN
)
"""Phrases in the errors of allocators that have no error class of their own."""


class OutOfMemory(UserError):
    """Memory ran out; the message says what helps."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the GPU or the machine ran out of memory, or follows from that.

    Causes are checked, too, because libraries mistake a refused allocation for a bad file.
    """
    chain: BaseException | None = error
    while chain is not None:
        if not isinstance(chain, UserError) and _is_allocation_error(chain):
            return True
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return False


def _is_allocation_error(error: BaseException) -> bool:
    # By name, because OutOfMemoryError is torch's and a detector's process has no torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    said = str(error).lower()
    return any(refusal in said for refusal in OUT_OF_MEMORY_PHRASES)


@contextmanager
def translate_out_of_memory(field: str | None, sentence: str | Callable[[], str]) -> Iterator[None]:
    """Raise `OutOfMemory(field, sentence)` if memory runs out inside the `with` block.

    What the attempt held is given back first. A `UserError` that already explains the lack of
    memory passes unchanged: the code nearest to the failure knows best.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        clear_frames(error)
        release_memory()
        raise OutOfMemory(field, sentence if isinstance(sentence, str) else sentence()) from None


def clear_frames(error: BaseException) -> None:
    """Drop the local variables in an error's traceback, whose tensors live as long as the error."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__


def release_memory() -> None:
    """Give back unused memory: reference cycles, the GPU allocator's cache, glibc's free memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return free memory inside glibc's heaps to the system.

    Otherwise a process keeps what each thread took in its busiest moment.
    """
    # Another C library has no such function; Windows has no handle of the process itself.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
