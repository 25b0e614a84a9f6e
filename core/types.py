"""What travels between the rooms: frozen records, and the one error a person reads.

Records are keyword-only, small, picklable and varied with `dataclasses.replace`. A part that
is off is `None`. No torch here, so that everything can import it.
"""

from dataclasses import dataclass


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
    file: str | None = None
    """The checkpoint in the Hub's repository; `None` for its diffusers folder."""
    variant: str | None = None
    """`fp16` for a repository that keeps its half-precision weights under that name."""
    config: str | None = None
    """For a `.safetensors` checkpoint: the diffusers folder with its configs and tokenizers; `None` is SDXL's own."""
    unet: str | None = None
    """The folder of a U-Net that takes the place of the source's own: all that a small descendant keeps for itself."""
    merge: tuple[str, ...] = ()
    """Models whose U-Nets are averaged to make this one's, when it is loaded."""
    parents: tuple[str, ...] = ()
    """Models that it was trained or merged from."""
    prediction_type: str = "epsilon"
    """`epsilon` or `v_prediction`; a single file does not say."""
    tagger: str | None = None
    """The name of a `Tool` that reads the tags of its pictures; `None` where none is pinned."""
    native_size: int = 1024
    """Side in pixels of the square that the model was trained on."""
    told_sizes: bool = True
    """Whether in training it was told its pictures' sizes before scaling, as SDXL was."""
    licence: str
    notice: str | None = None
    """What a person must know before publishing pictures or merges of the model."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A model beside the base model: one table of `presets/tools.toml`."""

    name: str
    kind: str
    """`upscaler`, `detector`, `expander`, `tagger` or `eye` (a network whose activations are measured)."""
    source: str
    """A Hub id `owner/name`, or a path in this repository."""
    revision: str | None = None
    """The commit on the Hub, 40 hex digits; `None` for local files."""
    file: str | None = None
    """The file in the Hub's repository; `None` for the whole of it."""
    sha256: str | None = None
    lengths: tuple[int, ...] | None = None
    """Of an expander: the least number of tags of a `very_short`, `short`, `long` and `very_long` prompt."""
    licence: str


@dataclass(frozen=True, kw_only=True)
class Hires:
    """Enlarge the picture, then denoise it anew at the larger size."""

    upscaler: str = "DAT x2"
    """A name of `presets/tools.toml`, `Lanczos` or `Latent`."""
    factor: float = 2.0
    """New side over old side; sides are rounded to multiples of 8 pixels."""
    denoise: float = 0.45
    """0 leaves the enlarged picture as it is."""
    steps: int | None = None
    """Steps that are gone, whatever the denoise; `None` for as many as the picture had."""
    smooth: float = 0.0
    """Before enlarging: how much of the fine texture is evened out, edges kept; 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Detail:
    """Find faces (or hands, or persons) and denoise each anew at the model's own size."""

    detector: str = "anime face"
    """A name of `presets/tools.toml`."""
    prompt: str = ""
    """Empty for the picture's own; `[PROMPT]` stands for it, `[SEP]` divides by place, `[SKIP]` leaves one as it is."""
    negative: str = ""
    """Empty for the picture's own."""
    confidence: float = 0.3
    """Least confidence of a box."""
    largest: int = 0
    """How many of the largest boxes are taken; 0 for all."""
    least: float = 0.0
    """Least share of the picture's area that a box must have."""
    most: float = 1.0
    """Greatest share."""
    dilate: int = 4
    """Pixels by which the mask is grown, or shrunk if negative."""
    blur: int = 4
    """Pixels over which the mask fades out."""
    padding: int = 32
    """Pixels around the mask that the model sees."""
    denoise: float = 0.4
    steps: int | None = None
    """Steps of the whole schedule, of which `denoise` are gone; `None` for as many as the picture had."""
    lora_strength: float | None = None
    """Strength of the picture's LoRAs meanwhile; `None` for their own."""


@dataclass(frozen=True, kw_only=True)
class Grain:
    """Noise and a slight blur, for texture that a smoothing LoRA took away."""

    amount: float = 0.04
    """Deviation of the noise; 1 is from black to white."""
    size: float = 1.0
    """Of a grain, in pixels."""
    monochrome: bool = True
    blur: float = 0.4
    """Deviation in pixels of the blur that goes before."""


@dataclass(frozen=True, kw_only=True)
class Expand:
    """How DanTagGen adds tags to a prompt."""

    expander: str = "DanTagGen delta-rev2"
    """A name of `presets/tools.toml`."""
    length: str = "short"
    """`very_short`, `short`, `long` or `very_long`: how many tags the prompt is to have, at least."""
    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 80
    ban: tuple[str, ...] = ()
    """Tags that are not added: globs (`*boy*`) or the patterns of people's lists (`.*boy.*`)."""
    without: tuple[str, ...] = ()
    """Categories that are not added: hair, eyes, clothes, background."""
    max_tags: int = 20
    """At most so many are added."""
    lora_tags: str = "lock"
    """The tags that the chosen LoRAs stand for: `lock` tells them to the model as said, `ban` keeps them out."""


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
    ultrawide_beyond: int | None = None
    """Sides of more pixels are for pictures at least twice as wide as high; `None` if the author names no such limit."""
    help: str
    """What the model's author says about prompting it, in Markdown."""
    hires: Hires = Hires()
    detail: Detail = Detail()
    expand: Expand = Expand()
    grain: Grain = Grain()
    neutral: tuple[str, ...] = (
        "solo, short hair, blue eyes, smile, upper body, simple background",
        "solo, long hair, looking at viewer, sitting, indoors, window",
        "solo, twintails, open mouth, outdoors, sky, tree, full body",
        "solo, ponytail, night, city, from side",
    )
    """General tags of the prompts that a sweep takes when none are given: different things, no style."""
    on: tuple[str, ...] = ()
    """Which of `hires`, `detail`, `expand` and `grain` the author advises; the others' settings wait to be switched on."""


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """A LoRA on the model."""

    path: str
    strength: float = 1.0
    """Multiplies alpha / rank; 0 is off."""
    text_strength: float | None = None
    """The same for the text encoders; `None` for `strength`."""
    blocks: str | None = None
    """12 block weights as text, or `CONTENT` or `STYLE`; `None` for all of it."""


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
    clip_skip: int = 2
    """2: the layer before the text encoders' last, as SDXL is made; 1: the last."""
    hires: Hires | None = None
    detail: Detail | None = None
    grain: Grain | None = None
    loras: tuple[LoraUse, ...] = ()
    expanded: str | None = None
    """The prompt before tags were added to it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place in a grid: a label and the picture asked for."""

    label: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One LoRA over strengths, prompts and seeds."""

    lora: LoraUse
    """Its strength is of no account."""
    settings: Request
    """What all pictures share; its prompt, seed and LoRAs are of no account."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    """Rising, 0 among them."""
    eye: str = "VAE"
    """Whose activations are measured: the model's own `VAE`, or a `Tool` of kind `eye`."""
    references: tuple[str, ...] = ()
    """Files of pictures in the wanted style."""
    refine: bool = False
    """Afterwards, look once more between the strengths where something changes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A LoRA of a transfer study."""

    name: str
    lora: LoraUse
    """Its strength is of no account."""
    home: str | None = None
    """The model that it was trained on; `None` if nobody says."""
    references: tuple[str, ...] = ()
    """Files of the pictures that it was trained on."""
    data: str | None = None
    """What tells one training set from another; rows of one set can be compared."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """LoRAs over base models."""

    rows: tuple[Row, ...]
    models: tuple[str, ...]
    settings: Request
    """What all pictures share; its model, prompt, seed and LoRAs are of no account."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    """Rising, 0 among them."""
    eye: str = "VAE"
