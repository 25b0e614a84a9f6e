"""Where the parts of a base lie while it is trained on a GPU that does not hold them all.

What is trained stays there, the other parts take turns. A layer's weights are moved in place, so
that the base and its twin, which share them, are always on one device. What is trained on the twin
alone is never moved: it is one vector, and a moved layer would have a copy of its part.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import StableDiffusionXLPipeline
from torch import nn

from core.system.device import detect_machine

BASE_COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@contextmanager
def keep_on_device(pipeline: StableDiffusionXLPipeline, components: Sequence[str]) -> Iterator[None]:
    """Keep only the `components` that are trained on the device while the context lasts.

    Before and after it, all parts take turns.
    """
    if not detect_machine().offload:
        yield
        return
    try:
        _place_components(pipeline, components)
        yield
    finally:  # also if what is trained did not fit
        pipeline.enable_model_cpu_offload(device=detect_machine().device)


@contextmanager
def onload(*parts: nn.Module) -> Iterator[None]:
    """Keep these parts of a base on the device while the context lasts."""
    if not detect_machine().offload:
        yield
        return
    for part in parts:
        part.to(detect_machine().device)
    try:
        yield
    finally:
        for part in parts:
            part.to("cpu")


@contextmanager
def enable_cpu_offload(pipeline: StableDiffusionXLPipeline, components: Sequence[str]) -> Iterator[None]:
    """Let the base make pictures while the context lasts, each part on the device when it works.

    Afterwards the parts lie as `keep_on_device` places them.
    """
    if not detect_machine().offload:
        yield
        return
    pipeline.enable_model_cpu_offload(device=detect_machine().device)
    try:
        yield
    finally:
        _place_components(pipeline, components)


def _place_components(pipeline: StableDiffusionXLPipeline, components: Sequence[str]) -> None:
    pipeline.remove_all_hooks()
    # What goes makes room for what comes.
    for name in sorted(BASE_COMPONENTS, key=lambda name: name in components):
        getattr(pipeline, name).to(detect_machine().device if name in components else "cpu")
