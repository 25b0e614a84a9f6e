"""What travels between the rooms: frozen records, the events of a job, and the one error a person reads.

Records are keyword-only, small, picklable and varied with `dataclasses.replace`. A part that
is off is `None`. No torch here, so that everything can import it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


class UserError(Exception):
    """One sentence for the person: the field, the value, what is allowed. Never a bug of ours."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model that can be loaded: one table of `presets/models.toml`."""

    name: str
    title: str
    source: str
    """A Hub id `owner/name`, or the path of a diffusers folder or a `.safetensors` checkpoint."""
    revision: str | None = None
    """The commit on the Hub, 40 hex digits; `None` for local files."""
    variant: str | None = None
    """`fp16` for a repository that keeps its half-precision weights under that name."""
    config: str | None = None
    """For a `.safetensors` checkpoint: the diffusers folder with its configs and tokenizers; `None` is SDXL's own."""
    prediction_type: str = "epsilon"
    """`epsilon` or `v_prediction`; a single file does not say."""
    native_size: int = 1024
    """Side in pixels of the square that the model was trained on."""
    licence: str
    notice: str | None = None
    """What a person must know before publishing pictures or merges of the model."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named starting point for one base model: one file of `presets/prompts/`."""

    name: str
    title: str
    model: str
    """The name of a `Model`."""
    template: str
    """The prompt's parts in order, as `{subject}, {character}, {general}, {quality}`."""
    subject: str
    character: str
    general: str
    quality: str
    negative: str
    steps: int
    cfg: float
    cfg_range: tuple[float, float]
    """What the model's author advises; the slider's ends."""
    sampler: str
    width: int
    height: int
    size_range: tuple[int, int]
    """Least and greatest side in pixels."""
    size_step: int
    """Sides are multiples of this many pixels."""
    help: str
    """What the model's author says about prompting it, in Markdown."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything needed to make one picture again; it is written into the PNG."""

    model: str
    prompt: str
    negative: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    steps: int
    cfg: float
    """Classifier-free guidance scale; 1 is none."""
    sampler: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place in a grid: a label and the picture asked for."""

    label: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Step:
    """A denoising step is done in every picture of the batch under way."""

    step: int
    steps: int
    pictures_done: int
    pictures: int
    seconds_left: float
    """Until all pictures are done; a guess from the pace so far."""
    previews: "tuple[Image, ...]" = ()
    """What the pictures of the batch look like by now; empty when not asked for, or not at this step."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture of one cell."""

    index: int
    """The cell's place in the job."""
    cell: Cell
    image: "Image"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job ends here; what was finished before stays."""

    message: str


Event = Step | Picture | Failed
