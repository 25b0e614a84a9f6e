"""Running out of memory is recognised from any library and however it is wrapped.

The message is the one of the nearest place.
"""

import errno

import onnxruntime.capi.onnxruntime_pybind11_state as onnx
import pytest
import torch

from core.schema.errors import UserError
from core.system.memory import is_out_of_memory, translate_out_of_memory

MEMORY_ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4 bytes."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: "
        "you tried to allocate 4 bytes."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("std::bad_alloc"),
    onnx.RuntimeException(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : "
        "Failed to allocate memory for requested buffer of size 4"
    ),
]


@pytest.mark.parametrize("refusal", MEMORY_ERRORS, ids=str)
def test_a_refusal_is_told_as_memory_also_where_a_library_takes_it_for_a_bad_file(refusal: Exception) -> None:
    def open_file() -> None:
        try:
            raise refusal
        except Exception as error:
            raise UserError(None, "it cannot be opened") from error

    with pytest.raises(UserError, match=r"^the outer$"), translate_out_of_memory(None, "the outer"):
        open_file()
    with (
        pytest.raises(UserError, match=r"^the inner$"),
        translate_out_of_memory(None, "the outer"),
        translate_out_of_memory(None, "the inner"),
    ):
        raise refusal


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such thing"),
        OSError(errno.ENOENT, "not there"),
        UserError("disk", "out of memory cards"),
    ],
    ids=str,
)
def test_another_error_stays_what_it_is(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as told, translate_out_of_memory(None, "never"):
        raise error
    assert told.value is error


def test_what_an_attempt_held_is_let_go() -> None:
    def attempt() -> None:
        held = torch.zeros(2**20)
        raise MemoryError(held.shape)

    with pytest.raises(UserError) as told, translate_out_of_memory(None, "lower it"):
        attempt()
    context = told.value.__context__
    assert context is not None
    frames, trace = [], context.__traceback__
    while trace is not None:
        frames, trace = [*frames, trace.tb_frame], trace.tb_next
    assert not [frame for frame in frames if "held" in frame.f_locals and frame.f_code.co_name == "attempt"]
