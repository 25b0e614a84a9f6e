"""Records of the components by which one tab fills another."""

from collections.abc import Callable
from typing import Any, NamedTuple


class PictureHandoff(NamedTuple):
    """How the Sweep tab is filled from an image of the Generate tab."""

    sweep_button: Any
    inputs: list[Any]
    """The components that `read` takes, all but the last."""
    read: Callable[..., dict[str, Any]]
    """(…, preset of the Sweep tab) -> values by name. Raises `gr.Error` for an image without settings."""


class GenerateHandoff(NamedTuple):
    """How another tab puts a picture's settings into the Generate tab."""

    load_settings: Callable[[str, str], tuple[dict[str, Any], str]]
    """(file, preset) -> values by name, and what to say."""
    components: dict[str, Any]
    """By the names of the values."""
    preset: Any
    message: Any
    pictures: tuple[PictureHandoff, ...]


class SweepHandoff(NamedTuple):
    """The components by which another tab puts a LoRA into the Sweep tab."""

    lora_file: Any
    preset: Any
    model: Any
    references: Any
    found_references: Any


MAX_REMEMBERED_RUNS = 50  # runs that a browser remembers
REMEMBER_RUNS_JS, RECALL_RUNS_JS = (
    "(runs) => { localStorage.setItem('sweetspot-runs', runs) }",
    "() => [localStorage.getItem('sweetspot-runs') ?? '']",
)
"""Scripts for the page's own storage.

It outlives the app; that of `gr.BrowserState` does not.
"""


class TrainHandoff(NamedTuple):
    """The components by which another tab trains what the Train tab is filled with."""

    inputs: dict[str, Any]
    """By the `INPUT_NAMES` of the Train tab: what `plan_from_controls` takes."""
    my_runs: Any
    """The runs that this browser knows, and those of the account, one per line."""
    publish_button: Any
    """The button that takes `run` into the Publish tab."""
    run: Any


class ReportHandoff(NamedTuple):
    """What a tab measured, for the Publish tab."""

    publish_button: Any
    """The button that takes the result into the Publish tab."""
    result: Any
    """The state that holds the `report`, and of a sweep the `lora`."""
