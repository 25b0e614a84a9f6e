"""Turn a handler that takes one form into one that takes its fields as parameters."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from core.schema.records import read_form


def takes(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let Gradio call a handler, whose last parameter is a form, with the form's fields by name.

    The fields are the parameters of the endpoint, with their defaults.
    """

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        *own, _ = inspect.signature(handler).parameters.values()

        if inspect.isgeneratorfunction(handler):

            @wraps(handler)
            def call(*args: Any, **values: Any) -> Any:
                yield from handler(*args, read_form(kind, values))

        else:

            @wraps(handler)
            def call(*args: Any, **values: Any) -> Any:
                return handler(*args, read_form(kind, values))

        named = inspect.signature(kind).parameters
        given = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=named[field.name].default)
            for field in fields(kind)
        ]
        call.__signature__ = inspect.Signature([*own, *given])  # type: ignore[attr-defined]
        return call

    return wrap
