"""Events of a running job: steps, pictures with what is measured of them, and failure."""

from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from core.schema.records import record
from core.schema.types import Cell

LevelStatistics = tuple[np.ndarray, np.ndarray]
"""Mean and deviation of the activations at one level of a network, each (channels, 16, 16).

There is one value for each of 16 x 16 parts of the picture.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """A picture as a network sees it: the model's own VAE, unless another network is chosen."""

    levels: tuple[LevelStatistics, ...]
    latents: np.ndarray | None
    """What the picture was decoded from, (4, height / 8, width / 8).

    `None` for a picture that was not made here.
    """
    vae_roundtrip: tuple[LevelStatistics, ...] | None = None
    """The levels after the picture has gone through the VAE and back.

    They are there only where the noise floor is wanted.
    """


@dataclass(frozen=True, kw_only=True)
class DownloadProgress:
    """A download from the Hub is under way; the work starts after it."""

    repo: str
    """The repository that is downloaded."""
    bytes_done: int
    """Bytes that have arrived."""
    bytes_total: int


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """A model is being loaded into memory; the work goes on after it."""

    title: str
    """The model's title."""
    bytes_done: int
    """Bytes of the model's files that are in memory.

    0 while the loader checks which parts the new model shares with the loaded one.
    """
    bytes_total: int


@dataclass(frozen=True, kw_only=True)
class ModelLoaded:
    """A model was loaded, and the work goes on with it.

    The event comes from the process that has the model, which on ZeroGPU is not the page's.
    """

    model: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A denoising step is done for every picture of the current batch."""

    step: int
    steps: int
    stage: str
    """`base`, `hires` or `detail`; `probe` where the first steps of a picture are asked again."""
    pictures_done: int
    pictures: int
    seconds_left: float
    """Time until all pictures are done, estimated from the pace so far."""
    previews: tuple[Image, ...] = ()
    """What the pictures of the batch look like so far.

    Empty if previews were not requested, or are not due at this step.
    """


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture of one cell."""

    index: int
    """The cell's place in the job."""
    cell: Cell
    image: Image
    notes: tuple[str, ...] = ()
    """What a person should know about this picture, such as that no face was found."""
    before: Image | None = None
    """The picture before hires and details; `None` if it had neither."""
    features: Features | None = None
    """What is measured of the picture; `None` if it was not requested."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job failed and ends here; what was finished before stays."""

    message: str
    gpu_unavailable: bool = False
    """Whether the GPU was not available, or was taken away.

    Then there is no need to ask for it again at once.
    """


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures:
    """The features of a reference picture, which was given rather than made."""

    index: int
    """The picture's place among the given ones."""
    features: Features


@dataclass(frozen=True, kw_only=True)
class ModelChange:
    """How much single calls of the model change with a LoRA."""

    strength: float
    change: float
    """Relative to what the model predicts without it; infinite where the prediction is no number."""


@record
class Loss:
    """A training step is done."""

    step: int
    """Steps done."""
    loss: float
    """Mean over the pictures of the step."""
    rate: float
    """The learning rate of the U-Net in this step."""
    norm: float
    """Length of the gradient before it was clipped."""


@record
class Validation:
    """The loss on held-out pictures, at the same noise each time."""

    step: int
    loss: float


@record
class Saved:
    """A LoRA was saved."""

    step: int
    file: str
    """The file's name in the run's `loras` folder."""


@record
class Preview:
    """A picture made with the LoRA as it is at this step."""

    step: int
    file: str
    """The file's name in the run's `previews` folder: step, prompt and strength."""


@record
class Note:
    """What a person should know about a training that goes on."""

    step: int
    text: str


Event = (
    DownloadProgress
    | LoadProgress
    | ModelLoaded
    | Step
    | Picture
    | ReferenceFeatures
    | ModelChange
    | Loss
    | Validation
    | Saved
    | Preview
    | Note
    | Failed
)
