"""Opens an upscaler's file by spandrel, which builds what the names and shapes of its weights say."""

from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

from core.device import this_machine
from core.types import UserError

# What reading and fitting weights raises: torn files, objects that are not weights, shapes that do not belong together.
NOT_WEIGHTS = (OSError, EOFError, UnpicklingError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
LAYERS = 200
"""In a weight's name: as many layers are built as the largest number says."""


@lru_cache(2)
def upscaler(file: Path) -> ImageModelDescriptor:
    """The upscaler of a file. A `.pth` is read by spandrel's restricted unpickler, which runs no code.

    Raises `UserError` for a file that is no upscaler, that holds half-precision weights only or other
    objects than weights, or that does not enlarge.
    """
    said = f"upscaler: {file.name}"
    try:
        weights = ModelLoader().load_state_dict_from_file(file)
        if named := next((str(key) for key in weights if not _is_usual(str(key))), None):
            raise UserError(f"{said} names a weight {named[:60]!r}; no upscaler has more than {LAYERS} layers of a kind.")
        model = ModelLoader().load_from_state_dict(weights)
    except UnsupportedModelError as error:
        raise UserError(f"{said} is no upscaler that is known here.") from error
    except NOT_WEIGHTS as error:
        raise UserError(f"{said} cannot be read as an upscaler's weights ({type(error).__name__}).") from error
    if all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point()):
        raise UserError(f"{said} holds half-precision weights only; it takes the float32 file.")
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.output_channels != 3:
        raise UserError(f"{said} does not turn one RGB picture into another.")
    if not 2 <= model.scale <= 8:
        raise UserError(f"{said} enlarges {model.scale} times; it takes one that enlarges 2 to 8 times.")
    exact = torch.bfloat16 if this_machine().dtype == torch.bfloat16 and model.supports_bfloat16 else torch.float32
    return model.eval().to(dtype=exact)


def _is_usual(name: str) -> bool:
    """Whether the numbers in a weight's name are few layers' and written as such: to Python `1_0` is a number as well."""
    return all(part.isascii() and part.isdigit() and len(part) < 4 and int(part) <= LAYERS for part in name.split(".") if _is_number(part))


def _is_number(part: str) -> bool:
    try:
        int(part)
    except ValueError:
        return False
    return True
