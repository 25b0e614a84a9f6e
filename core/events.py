"""What a job says while it runs: steps, pictures and what is measured of them, and its failure."""

from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from core.types import Cell

Spread = tuple[np.ndarray, np.ndarray]
"""Of one level of a network, in each of 16 x 16 parts of the picture: its activations' mean and deviation, (channels, 16, 16)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """A picture as a network sees it: the model's own VAE, unless another is chosen."""

    levels: tuple[Spread, ...]
    latents: np.ndarray | None
    """What the picture was decoded from, (4, height / 8, width / 8); `None` for one that was not made here."""
    echo: tuple[Spread, ...] | None = None
    """The levels once the picture has gone through the VAE and back; only where the floor of the noise is wanted."""


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Something comes from the Hub before the work can start."""

    what: str
    """Its repository."""
    done: int
    """Bytes that are here."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A model comes into memory before the work can go on."""

    what: str
    """Its title."""
    done: int
    """Bytes of its files that are in memory; 0 while it is checked which of its parts the loaded model has, too."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model was loaded to go on with; said by the process that has it, which on ZeroGPU is not the page's."""

    model: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A denoising step is done in every picture of the batch under way."""

    step: int
    steps: int
    stage: str
    """`base`, `hires` or `detail`."""
    pictures_done: int
    pictures: int
    seconds_left: float
    """Until all pictures are done; a guess from the pace so far."""
    previews: tuple[Image, ...] = ()
    """What the pictures of the batch look like by now; empty when not asked for, or not at this step."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture of one cell."""

    index: int
    """The cell's place in the job."""
    cell: Cell
    image: Image
    notes: tuple[str, ...] = ()
    """What a person should know of this one, such as that no face was found."""
    before: Image | None = None
    """What it was before hires and details; `None` if there were none."""
    look: Look | None = None
    """What is measured of it; `None` if that was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job ends here; what was finished before stays."""

    message: str
    unlent: bool = False
    """Whether it was the GPU that could not be had, or was taken away: it need not be asked for again at once."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture that was only looked at."""

    index: int
    """Its place among those given."""
    look: Look


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A training step is done."""

    step: int
    """Steps done."""
    loss: float
    """Mean over the step's pictures."""
    rate: float
    """The U-Net's learning rate in this step."""
    norm: float
    """Length of the gradient before it was clipped."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The loss on held-out pictures, at the same noise each time."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A LoRA was written."""

    step: int
    file: str
    """Its name in the run's `loras`."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture of the LoRA as it is."""

    step: int
    file: str
    """Its name in the run's `previews`: step, prompt and strength."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a person should know of a training that goes on."""

    step: int
    text: str


Event = Fetch | Opening | Loaded | Step | Picture | Seen | Loss | Validation | Saved | Preview | Note | Failed
