"""Where the parts of a base lie while it is trained on a card that does not hold them all: what is trained stays there, the others take turns.

A layer's weights are moved in place, so that the base and its twin, which share them, are always at one place. What is trained
on the twin alone is never moved: it is one vector, of which a moved layer would have a copy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import StableDiffusionXLPipeline
from torch import nn

from core.device import this_machine

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@contextmanager
def keep_on_device(pipeline: StableDiffusionXLPipeline, trained: Sequence[str]) -> Iterator[None]:
    """While it lasts, the components that are `trained` are on the device, and no other; before and after, all take turns."""
    if not this_machine().offload:
        yield
        return
    try:
        _settle(pipeline, trained)
        yield
    finally:  # also where what is trained did not find room
        pipeline.enable_model_cpu_offload(device=this_machine().device)


@contextmanager
def bring(*parts: nn.Module) -> Iterator[None]:
    """While it lasts, these parts of a base are on the device."""
    if not this_machine().offload:
        yield
        return
    for part in parts:
        part.to(this_machine().device)
    try:
        yield
    finally:
        for part in parts:
            part.to("cpu")


@contextmanager
def take_turns(pipeline: StableDiffusionXLPipeline, trained: Sequence[str]) -> Iterator[None]:
    """While it lasts, the base makes pictures, each of its parts on the device when it works; afterwards as `keep_on_device` has them."""
    if not this_machine().offload:
        yield
        return
    pipeline.enable_model_cpu_offload(device=this_machine().device)
    try:
        yield
    finally:
        _settle(pipeline, trained)


def _settle(pipeline: StableDiffusionXLPipeline, trained: Sequence[str]) -> None:
    pipeline.remove_all_hooks()
    for name in sorted(PARTS, key=lambda name: name in trained):  # what goes makes room for what comes
        getattr(pipeline, name).to(this_machine().device if name in trained else "cpu")
