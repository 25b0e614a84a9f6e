"""What travels between the rooms: frozen records, each field with its bounds and its help.

Records are keyword-only, small and picklable, are varied with `dataclasses.replace`, and check
themselves when they are made. A part that is off is `None`. This module imports no torch, so that
everything can import it.
"""

from dataclasses import replace
from typing import Annotated

from core.schema.bounds import Denoise, OneOf, Real, Switch, Text, Texts, Whole
from core.schema.errors import UserError
from core.schema.limits import (
    CFG,
    DETAIL_REGIONS,
    HIRES_FACTOR,
    HIRES_PIXELS,
    PIXELS,
    PROMPT_LENGTH,
    SEED,
    SIDE,
    SIDE_STEP,
    STAGE_SIDE,
    STEPS,
    STRENGTH,
)
from core.schema.records import record
from core.schema.samplers import AUTOMATIC, OLD_SCHEDULES, SAMPLERS, SCHEDULES


@record
class Model:
    """A base model that can be loaded: one table of `presets/models.toml`."""

    name: str
    title: str
    source: str
    """A Hub id `owner/name`, or the path of a diffusers folder or a `.safetensors` checkpoint."""
    revision: str | None = None
    """The commit on the Hub, 40 hex digits; `None` for local files."""
    file: str | None = None
    """The checkpoint in the Hub's repository; `None` for a repository in diffusers' layout."""
    variant: str | None = None
    """`fp16` for a repository that keeps its half-precision weights under that name."""
    config: str | None = None
    """For a `.safetensors` checkpoint, the diffusers folder with its configs and tokenizers.

    `None` is SDXL's own.
    """
    unet: str | None = None
    """The folder of a U-Net that replaces the source's own.

    It is all that a small descendant keeps for itself.
    """
    merge: tuple[str, ...] = ()
    """Models whose U-Nets are averaged into this model's when it is loaded."""
    file_names: tuple[str, ...] = ()
    """Names of its file on other sites, by which trainers name it in a LoRA."""
    parents: tuple[str, ...] = ()
    """Models that this one was trained or merged from."""
    prediction_type: Annotated[str | None, OneOf(("epsilon", "v_prediction"))] = None
    """`None` for what the files tell (`core.models.files.find_prediction`)."""
    vae: str | None = None
    """A `Tool` of kind `vae`, or a file of one's own, in place of the model's VAE; `None` for its own."""
    donor: str | None = None
    """The model that gives the VAE and the text encoders that a checkpoint lacks; `None` for none."""
    tagger: str | None = None
    """The name of a `Tool` that reads tags from the model's pictures; `None` if none is pinned."""
    native_size: int = 1024
    """Side in pixels of the square that the model was trained on."""
    size_conditioning: bool = True
    """Whether it was trained with the sizes that pictures had before scaling, as SDXL was."""
    licence: str
    licence_link: str | None = None
    """Where a licence stands that the Hub has no name for."""
    notice: str | None = None
    """What a person must know before publishing pictures or merges of the model."""

    @property
    def is_nano(self) -> bool:
        """Whether it belongs to the embedded family, whose pictures have sides of 128 pixels."""
        return self.native_size == 128

    def fits(self, family: str) -> bool:
        """Whether a LoRA made for `nano` or `SDXL` belongs on it; of another family that cannot be said."""
        return family not in ("nano", "SDXL") or (family == "nano") == self.is_nano


@record
class Tool:
    """A model that works beside the base model: one table of `presets/tools.toml`."""

    name: str
    kind: str
    """`upscaler`, `detector`, `expander`, `tagger`, `vae` or `eye`.

    An eye is a network whose activations are measured.
    """
    source: str
    """A Hub id `owner/name`, or a path in this repository."""
    revision: str | None = None
    """The commit on the Hub, 40 hex digits; `None` for local files."""
    file: str | None = None
    """The file in the Hub's repository; `None` for the whole repository."""
    sha256: str | None = None
    lengths: tuple[int, ...] | None = None
    """For an expander, the least tags of a `very_short`, `short`, `long` and `very_long` prompt."""
    licence: str


@record
class Hires:
    """Enlarge the picture, then denoise it again at the larger size."""

    upscaler: str = "DAT x2"
    """A name in `presets/tools.toml`, `Lanczos` or `Latent`."""
    factor: Annotated[float, Real(*HIRES_FACTOR)] = 2.0
    """New side over old side; sides are rounded to multiples of 8 pixels."""
    denoise: Annotated[float, Denoise()] = 0.45
    """0 leaves the enlarged picture as it is."""
    steps: Annotated[int | None, Whole(*STEPS)] = None
    """Steps to take, whatever the denoise; `None` for as many as the picture had."""
    smooth: Annotated[float, Real(0, 1)] = 0.0
    """How much fine texture is smoothed before enlarging, 0 to 1; edges are kept."""
    prompt: Annotated[str, Text(PROMPT_LENGTH)] = ""
    """Of the second pass, whose LoRAs it names, too; empty for the picture's own prompt and LoRAs."""
    negative: Annotated[str, Text(PROMPT_LENGTH)] = ""
    """Empty for the picture's own negative prompt."""
    sampler: Annotated[str | None, OneOf(tuple(SAMPLERS))] = None
    """`None` for the first pass's."""
    schedule: Annotated[str | None, OneOf(SCHEDULES)] = None
    """`None` for the first pass's."""
    cfg: Annotated[float | None, Real(*CFG)] = None
    """`None` for the first pass's."""


@record
class Detail:
    """Find faces (or hands, or persons) and denoise each again at the model's own size."""

    detector: str = "anime face"
    """A name in `presets/tools.toml`."""
    prompt: Annotated[str, Text(PROMPT_LENGTH)] = ""
    """Empty for the picture's own prompt.

    `[PROMPT]` stands for the picture's own, `[SEP]` separates the prompts of regions by place, and
    `[SKIP]` leaves a region as it is. A LoRA's tag applies to the regions of its prompt.
    """
    negative: Annotated[str, Text(PROMPT_LENGTH)] = ""
    """Empty for the picture's own negative prompt."""
    confidence: Annotated[float, Real(0.05, 1)] = 0.3
    """Least confidence that a box must have."""
    largest: Annotated[int, Whole(0, DETAIL_REGIONS)] = 0
    """How many of the largest boxes are taken; 0 for all."""
    least: Annotated[float, Real(0, 1)] = 0.0
    """Least share of the picture's area that a box must have."""
    most: Annotated[float, Real(0, 1)] = 1.0
    """Greatest share of the picture's area that a box may have."""
    dilate: Annotated[int, Whole(-128, 128)] = 4
    """Pixels by which the mask grows, or shrinks if negative."""
    blur: Annotated[int, Whole(0, 64)] = 4
    """Pixels over which the mask fades out."""
    padding: Annotated[int, Whole(0, 256)] = 32
    """Pixels around the mask that the model sees."""
    denoise: Annotated[float, Real(0.05, 1)] = 0.4
    steps: Annotated[int | None, Whole(*STEPS)] = None
    """Steps of the whole schedule, of which the share `denoise` is taken.

    `None` for as many as the picture had.
    """
    lora_strength: Annotated[float | None, Real(*STRENGTH)] = None
    """Strength of the picture's LoRAs in the regions; `None` for their own strengths."""

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise UserError("least", f"{self.least:g} is more than the greatest share, {self.most:g}.")


@record
class Grain:
    """Noise and a slight blur, to bring back texture that a smoothing LoRA took away."""

    amount: Annotated[float, Real(0, 0.5)] = 0.04
    """Deviation of the noise; 1 is from black to white."""
    size: Annotated[float, Real(0.5, 8)] = 1.0
    """Size of a grain, in pixels."""
    monochrome: Annotated[bool, Switch()] = True
    blur: Annotated[float, Real(0, 4)] = 0.4
    """Deviation, in pixels, of the blur that is applied first."""


@record
class Expand:
    """How DanTagGen adds tags to a prompt."""

    expander: str = "DanTagGen delta-rev2"
    """A name in `presets/tools.toml`."""
    length: str = "short"
    """Least tags the prompt shall have, as `very_short`, `short`, `long` or `very_long`."""
    temperature: Annotated[float, Real(0.05, 2)] = 0.8
    top_p: Annotated[float, Real(0.05, 1)] = 0.9
    top_k: Annotated[int, Whole(1, 1000)] = 80
    ban: Annotated[tuple[str, ...], Texts(200, PROMPT_LENGTH)] = ()
    """Tags that are not added: globs (`*boy*`) or the patterns of people's lists (`.*boy.*`)."""
    without: Annotated[tuple[str, ...], Texts(10, PROMPT_LENGTH)] = ()
    """Categories whose tags are not added: hair, eyes, clothes, background."""
    max_tags: Annotated[int, Whole(1, 100)] = 20
    """Most tags that are added."""
    lora_tags: str = "lock"
    """What happens to the tags that the chosen LoRAs stand for.

    `lock` gives them to the model as tags that the prompt already has; `ban` keeps them out.
    """


@record
class PromptPreset:
    """A named starting point for one base model: one file of `presets/prompts/`."""

    name: str
    title: str
    model: str
    """The name of a `Model`."""
    template: Annotated[str, Text(PROMPT_LENGTH)]
    """The parts of the prompt in order, as `{subject}, {character}, {general}, {quality}`."""
    subject: Annotated[str, Text(PROMPT_LENGTH)]
    character: Annotated[str, Text(PROMPT_LENGTH)]
    general: Annotated[str, Text(PROMPT_LENGTH)]
    quality: Annotated[str, Text(PROMPT_LENGTH)]
    negative: Annotated[str, Text(PROMPT_LENGTH)]
    steps: Annotated[int, Whole(*STEPS)]
    cfg: Annotated[float, Real(*CFG)]
    cfg_range: tuple[float, float]
    """Range that the model's author advises; the ends of the slider."""
    sampler: Annotated[str, OneOf(tuple(SAMPLERS))]
    schedule: Annotated[str, OneOf(SCHEDULES)] = AUTOMATIC
    cfg_rescale: Annotated[float, Real(0, 1)] = 0.0
    width: Annotated[int, Whole(*SIDE, step=SIDE_STEP)]
    height: Annotated[int, Whole(*SIDE, step=SIDE_STEP)]
    size_range: tuple[int, int]
    """Least and greatest side in pixels."""
    size_step: Annotated[int, Whole(8, SIDE[1], step=8)]
    """Sides are multiples of this many pixels."""
    ultrawide_beyond: int | None = None
    """Sides of more pixels are only for pictures that are at least twice as wide as high.

    `None` if the author names no such limit.
    """
    help: Annotated[str, Text(PROMPT_LENGTH)]
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
        "solo, short hair, school uniform, classroom, hand up, upper body",
        "solo, very long hair, dress, flower field, arms up, full body",
        "solo, braid, hat, beach, walking, from behind, looking back",
        "solo, bob cut, glasses, library, holding book, serious",
        "solo, side ponytail, kimono, festival, holding fan, smile",
        "solo, messy hair, hoodie, bedroom, lying, on back",
        "solo, high ponytail, armor, mountain, wind, cowboy shot",
        "solo, wavy hair, apron, kitchen, cup, closed eyes, smile",
        "solo, long hair, coat, scarf, snow, portrait, blush",
        "solo, twin braids, umbrella, rain, street, looking up",
        "solo, short hair, shirt, shorts, running, sunset, open mouth",
        "solo, hair bun, white background, standing, full body, arms at sides",
    )
    """General tags of a sweep's prompts when none are given.

    They name different things, and no style.
    """
    on: tuple[str, ...] = ()
    """Which of `hires`, `detail`, `expand` and `grain` the author advises.

    The settings of the others apply once somebody switches them on.
    """


@record
class LoraUse:
    """A LoRA, and how strongly it is applied to the model."""

    path: str
    strength: float = 1.0
    """Multiplies alpha / rank; 0 is off."""
    text_strength: float | None = None
    """Strength for the text encoders; `None` for `strength`."""
    blocks: str | None = None
    """The value of `lbw=`, such as 12 weights or `STYLE`; `None` for the whole LoRA."""
    start: int | None = None
    """The step with which it begins to change the U-Net; `None` for the first."""
    stop: int | None = None
    """The step with which it ends to change the U-Net; `None` for never."""

    @property
    def off(self) -> "LoraUse":
        """The use with nothing changed."""
        return replace(self, strength=0.0, text_strength=0.0)

    def at_step(self, step: int) -> "LoraUse":
        """Return the use within a pass at a step, as sd-webui-lora-block-weight counts them, from 0.

        The text encoders, which have done their work before the first step, keep their strength.
        """
        early = self.start is not None and step < self.start - 1
        late = self.stop is not None and step >= self.stop - 1
        text = self.strength if self.text_strength is None else self.text_strength
        return replace(self, strength=0.0, text_strength=text) if early or late else self


@record
class EmbeddingUse:
    """An embedding (textual inversion) that a prompt names."""

    word: str
    """What the prompt calls it."""
    path: str
    """A file of its own, or a LoRA that brings it along."""
    sha256: str
    """Of the file, so that another one under its name makes another picture."""
    key_prefix: str = ""
    """How the names of its tensors begin in a LoRA."""


@record
class Request:
    """Everything that is needed to make one picture again; it is written into the PNG."""

    model: str
    prompt: Annotated[str, Text(PROMPT_LENGTH)]
    negative: Annotated[str, Text(PROMPT_LENGTH)]
    width: Annotated[int, Whole(*STAGE_SIDE, step=8)]
    """Pixels."""
    height: Annotated[int, Whole(*STAGE_SIDE, step=8)]
    """Pixels."""
    steps: Annotated[int, Whole(*STEPS)]
    cfg: Annotated[float, Real(*CFG)]
    """Classifier-free guidance scale; 1 turns guidance off."""
    cfg_rescale: Annotated[float, Real(0, 1)] = 0.0
    """How far guidance keeps the contrast of the prediction with the prompt; 0 is off."""
    sampler: Annotated[str, OneOf(tuple(SAMPLERS))]
    schedule: Annotated[str, OneOf(SCHEDULES)] = AUTOMATIC
    seed: Annotated[int, Whole(*SEED)]
    clip_skip: Annotated[int, Whole(1, 2)] = 2
    """2 is SDXL's default, the layer before the text encoders' last; 1 uses the last."""
    hires: Hires | None = None
    detail: Detail | None = None
    grain: Grain | None = None
    loras: tuple[LoraUse, ...] = ()
    hires_loras: tuple[LoraUse, ...] | None = None
    """What the prompt of hires names; `None` for `loras`, where hires has no prompt of its own."""
    detail_loras: tuple[tuple[LoraUse, ...], ...] = ()
    """The LoRAs that the prompts of its details name, for each of those between `[SEP]`."""
    embeddings: tuple[EmbeddingUse, ...] = ()
    """What its prompts name, those of hires and details included; any other name is read as words."""
    expanded: str | None = None
    """The prompt before tags were added; `None` if none were."""
    template: str | None = None
    """The prompt before its `{a|b}` and `__wildcards__` were chosen; `None` if it had none."""
    negative_template: str | None = None
    """The negative prompt before its choices."""

    def __post_init__(self) -> None:
        _check_schedule(self.sampler, self.schedule, "schedule")
        if self.hires:
            both = self.hires.sampler or self.sampler, self.hires.schedule or self.schedule
            _check_schedule(*both, "hires.schedule")

    @property
    def lora_uses(self) -> tuple[LoraUse, ...]:
        """All of its LoRAs, as they apply in the first pass: those of hires and of the details are off."""
        return (*self.loras, *self._hires_off, *(use.off for uses in self.detail_loras for use in uses))

    @property
    def hires_lora_uses(self) -> tuple[LoraUse, ...]:
        """All of its LoRAs in the same order, as they apply in the second pass."""
        if self.hires_loras is None:
            return self.lora_uses
        off = replace(self, loras=tuple(use.off for use in self.loras), hires_loras=None).lora_uses
        first = len(self.loras)
        return (*off[:first], *self.hires_loras, *off[first:])

    @property
    def _hires_off(self) -> tuple[LoraUse, ...]:
        return tuple(use.off for use in self.hires_loras or ())

    def select_detail_loras(self, part: int) -> tuple[LoraUse, ...]:
        """Return all of its LoRAs as they apply to the regions of a prompt of the details.

        The picture's own stay on, unless that prompt names them at a strength of its own.
        """
        own = {use.path for use in self.detail_loras[part]} if self.detail_loras else set()
        strength = self.detail.lora_strength if self.detail else None
        shared = [
            use if strength is None else replace(use, strength=strength, text_strength=None)
            for use in self.loras
        ]
        return (
            *(use.off if use.path in own else use for use in shared),
            *self._hires_off,
            *(use if i == part else use.off for i, uses in enumerate(self.detail_loras) for use in uses),
        )

    @property
    def calls(self) -> int:
        """How often the model is asked in all steps, as A1111 counts for prompts that change."""
        return self.steps * (1 if self.schedule in OLD_SCHEDULES else SAMPLERS[self.sampler].calls_per_step)

    @property
    def is_guided(self) -> bool:
        """Whether the model also computes the negative prompt; at 1, guidance would change nothing."""
        return self.cfg > 1 or SAMPLERS[self.sampler].unguided


def _check_schedule(sampler: str, schedule: str, field: str) -> None:
    known = OLD_SCHEDULES.get(schedule, SAMPLERS)
    if sampler not in known:
        raise UserError(field, f"{schedule!r} is not for {sampler}; it is for {', '.join(known)}.")


def count_seeds(first: int, count: int) -> list[int]:
    """Return `count` seeds that count up from the first; after the largest comes 0."""
    return [(first + i) % (SEED[1] + 1) for i in range(count)]


def check_picture_size(request: Request) -> None:
    """Raise `UserError` for a picture that is too large, before or after hires.

    Stages make requests of their own, which may be larger.
    """
    size, pixels = f"{request.width} x {request.height}", request.width * request.height
    if pixels > PIXELS:
        raise UserError("width", f"{size} is too large; at most {PIXELS / 1e6:.1f} megapixels.")
    if request.hires and pixels * request.hires.factor**2 > HIRES_PIXELS:
        size += f" times {request.hires.factor:g}"
        raise UserError("hires.factor", f"{size} is too large; at most {HIRES_PIXELS / 1e6:.1f} megapixels.")


@record
class Cell:
    """One place in a grid: a label, and the request for its picture."""

    label: str
    request: Request
