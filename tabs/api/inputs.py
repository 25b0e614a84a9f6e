"""Build the hidden components that are the parameters of the named endpoints."""

from typing import Any


def build_input(kind: Any, value: Any = None) -> Any:
    """Build a hidden component of a Gradio class that passes on what a client sent.

    Gradio's own would turn anything into text and round numbers; here the form checks the value, and
    says what is wrong with it.
    """
    component = kind(value, visible=False)
    component.preprocess = lambda sent: sent
    return component
