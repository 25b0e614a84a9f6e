"""Turn the form of Generate into the cells of a job.

The preset fills in what the form leaves open, and each picture gets a seed.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Annotated, Any

from core.generate.stages.details import ANIMEFACE, SEPARATOR_TOKEN
from core.generate.stages.hires import LANCZOS, LATENT, build_hires_requests
from core.generate.tag_expander import Expansion, append_tags, check_expand_settings, expand
from core.hub.names import is_hub_name
from core.hub.preflight import NeedsJob
from core.models import bases, catalogue, embedding_library, from_hub, lora_library, tools
from core.models.preset_match import find_preset
from core.prompts.choices import Chosen, choose_text
from core.schema import limits, presets
from core.schema.bounds import OneOf, Real, Seed, Text, Whole, format_value
from core.schema.errors import UserError
from core.schema.records import find_problems, read_form, record
from core.schema.samplers import AUTOMATIC, SCHEDULES, SamplerName, split_sampler
from core.schema.types import (
    Cell,
    Detail,
    EmbeddingUse,
    Expand,
    Grain,
    Hires,
    LoraUse,
    PromptPreset,
    Request,
    check_picture_size,
    count_seeds,
)

RANDOM_SEED = -1
"""The seed that stands for any seed."""
STAGE_RECORDS = {"hires": Hires, "detail": Detail, "grain": Grain, "expand": Expand}
STAGE_TOOLS = {
    "hires": ("upscaler", (LANCZOS, LATENT)),
    "detail": ("detector", (ANIMEFACE,)),
    "expand": ("expander", ()),
}
"""Stage -> the field that names its model, and the names it takes that are not of models."""


@record
class PictureForm:
    """What a person asks of Generate. `None` stands for the preset's value.

    `hires`, `detail`, `expand` and `grain` are each given as true, false, or a table of the settings
    that differ from the preset's. Once the form is made, they are records, or `None` for a stage
    that is off.
    """

    prompt: Annotated[str, Text(limits.PROMPT_LENGTH, allow_empty=False)]
    preset: str | None = None
    """`None` for the one that fits `model`, or nano's without a model."""
    model: str | None = None
    """A name of `core.models.catalogue` or a Hub id; `None` for the preset's."""
    negative: Annotated[str | None, Text(limits.PROMPT_LENGTH)] = None
    sampler: Annotated[str | None, SamplerName()] = None
    """Also with its schedule in one name, `DPM++ 2M Karras`."""
    schedule: Annotated[str | None, OneOf(SCHEDULES)] = None
    """`None` for the one that `sampler` names, or else `Automatic`; without `sampler`, the preset's."""
    width: Annotated[int | None, Whole(*limits.SIDE, step=limits.SIDE_STEP)] = None
    """Pixels."""
    height: Annotated[int | None, Whole(*limits.SIDE, step=limits.SIDE_STEP)] = None
    """Pixels."""
    steps: Annotated[int | None, Whole(*limits.STEPS)] = None
    cfg: Annotated[float | None, Real(*limits.CFG)] = None
    cfg_rescale: Annotated[float | None, Real(0, 1)] = None
    seed: Annotated[int | None, Seed(*limits.SEED, also=RANDOM_SEED)] = None
    """Also as text; -1, blank text and `None` stand for any."""
    count: Annotated[int | None, Whole(*limits.PICTURE_COUNT)] = None
    """Pictures, whose seeds count up from `seed` (0 follows the largest); `None` for 1."""
    clip_skip: Annotated[int | None, Whole(1, 2)] = None
    """`None` for 2."""
    loras: Any = None
    """LoRAs of the library or the Hub, as `core.models.lora_library.parse_lora_list` takes them."""
    lora_file: str | None = None
    """The path of a LoRA."""
    lora_strength: Annotated[float | None, Real(*limits.STRENGTH)] = None
    """Strength of `lora_file`; `None` for 1."""
    hires: Any = None
    detail: Any = None
    expand: Any = None
    grain: Any = None

    def __post_init__(self) -> None:
        for name in STAGE_RECORDS:
            object.__setattr__(self, name, build_stage(name, getattr(self, name), self.prompt_preset))

    @property
    def prompt_preset(self) -> PromptPreset:
        """The record of the chosen preset, or of the one that fits the model.

        Raises `UserError` if the preset, or a model without a preset, is unknown.
        """
        if self.preset is None and self.model:
            return find_preset(self.model)
        return presets.get_prompt_preset(self.preset or "nano")


@dataclass(frozen=True, kw_only=True)
class PictureOrder:
    """A form with the preset's values filled in."""

    request: Request
    """The request of the first picture; its prompt names every LoRA."""
    count: int
    expand: Expand | None


def build_stage(name: str, value: Any, preset: PromptPreset) -> Any:
    """Build the record of a stage from what a form says about it.

    `value` is true, false, a table of settings, or `None` for what the preset advises. Returns
    `None` for a stage that is off. Raises `UserError` for a setting that does not exist or is not
    allowed.
    """
    kind = STAGE_RECORDS[name]
    if isinstance(value, kind) or value is False or (value is None and name not in preset.on):
        return value or None
    if not (value is None or value is True or isinstance(value, Mapping)):
        raise UserError(
            name, f"{format_value(value)} is not valid. Use true, false or a table of its settings."
        )
    settings = value if isinstance(value, Mapping) else {}
    known = [field.name for field in fields(kind)]
    if unknown := [str(key) for key in settings if key not in known]:
        message = f"{format_value(unknown[0])} is not a setting; the settings are {', '.join(known)}."
        raise UserError(name, message)
    values = {**vars(getattr(preset, name)), **_normalise_settings(settings)}
    for field, sentence in find_problems(kind, values).items():
        raise UserError(f"{name}.{field}", sentence)
    stage = kind(**values)
    field = STAGE_TOOLS[name][0] if name in STAGE_TOOLS else None
    if field in from_hub.TOOL_SUFFIXES and is_hub_name(hub_id := getattr(stage, field)):
        try:
            return replace(stage, **{field: from_hub.pin_tool(field, hub_id)})
        except NeedsJob:
            return stage
        except UserError as error:
            raise UserError(f"{name}.{field}", error.sentence) from error
    return stage


def _normalise_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's settings as its record has them: lists as tuples, texts as infotext keeps them.

    A sampler that is named with its schedule is parted from it.
    """
    values: dict[str, Any] = {
        key: tuple(each) if isinstance(each, list) else _strip(each) if isinstance(each, str) else each
        for key, each in settings.items()
    }
    if isinstance(sampler := values.get("sampler"), str):
        values["sampler"], named = split_sampler(sampler)
        values["schedule"] = values.get("schedule") or named
    return values


def _strip(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def list_stage_models(name: str) -> list[str]:
    """Return the names of the models that a stage takes."""
    field, others = STAGE_TOOLS[name]
    return [*tools.list_tools(field), *others]


def find_form_problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Return field -> message for everything that is not allowed; empty where `fill_form` has an order.

    Values of `None` are left to the preset, except the prompt, which a picture needs.
    """
    said = {name: value for name, value in values.items() if value is not None or name == "prompt"}
    problems = find_problems(PictureForm, said)
    form = None if problems else read_form(PictureForm, said)
    if form:
        try:
            form = _choose_texts(form)[0]
        except UserError as error:
            return {str(error.field): str(error)}
        problems = find_problems(Request, fill_values(form)) | _find_unknown_models(form)
    messages = {field: f"{field}: {sentence}" for field, sentence in problems.items()}
    return messages | (_find_lora_problems(form) | _find_combination_problems(form) if form else {})


def _find_lora_problems(form: PictureForm) -> dict[str, str]:
    problems = {}
    try:
        with suppress(NeedsJob):
            collect_loras(form)
    except UserError as error:
        given = (name for name in ("lora_file", "loras") if getattr(form, name) is not None)
        problems[next(given, "prompt")] = str(error)
    for collect in (_collect_hires_loras, _collect_detail_loras):
        try:
            collect(form)
        except UserError as error:
            problems[str(error.field)] = str(error)
    return problems


def _find_combination_problems(form: PictureForm) -> dict[str, str]:
    """Return the problems of values that belong together, such as a picture's sides and its factor."""
    try:
        if form.expand:
            check_expand_settings(form.expand)
        if not find_problems(Request, values := fill_values(form)):
            _check_together(Request(**values, embeddings=_find_known_embeddings(form, values)))
    except UserError as error:
        return {str(error.field): str(error)}
    return {}


def _find_known_embeddings(form: PictureForm, values: Mapping[str, Any]) -> tuple[EmbeddingUse, ...]:
    """Return the embeddings of a form; none where its LoRAs, which may bring some, are not known yet."""
    try:
        applied = _collect_all_loras(form)
    except (UserError, NeedsJob):
        return ()
    return collect_embeddings(values, applied)


def _collect_all_loras(form: PictureForm) -> tuple[LoraUse, ...]:
    """Return the LoRAs of a form with those that the prompts of its hires and details name."""
    of_details = chain.from_iterable(_collect_detail_loras(form))
    return (*collect_loras(form), *(_collect_hires_loras(form) or ()), *of_details)


def collect_embeddings(values: Mapping[str, Any], applied: Sequence[LoraUse]) -> tuple[EmbeddingUse, ...]:
    """Return the embeddings that a request's prompts name, those of its hires and details included.

    `values` are fields of a `Request`. Raises `UserError` for an `embedding:name` that is not there,
    cannot be used or is made for another family of models.
    """
    prompts = list_prompts(values)
    return embedding_library.find_embeddings(prompts, applied, catalogue.find_model(values["model"]))


def list_prompts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the prompts among a request's values by their fields, those of hires and details included."""
    prompts = {name: values[name] for name in ("prompt", "negative")}
    for stage in ("hires", "detail"):
        if values[stage]:
            prompts |= {f"{stage}.{name}": getattr(values[stage], name) for name in ("prompt", "negative")}
    return prompts


def _check_together(request: Request) -> None:
    """Raise `UserError` for values that are allowed by themselves, but not with each other."""
    check_picture_size(request)
    bases.check_prompt_length(request)
    if request.hires:
        _check_stage_prompts("hires", build_hires_requests([request]))
    if request.detail:
        parts, negative = request.detail.prompt.split(SEPARATOR_TOKEN), request.detail.negative
        _check_stage_prompts("detail", [replace(request, prompt=part, negative=negative) for part in parts])


def _check_stage_prompts(stage: str, requests: Sequence[Request]) -> None:
    try:
        for request in requests:
            bases.check_prompt_length(request)
    except UserError as error:
        raise UserError(f"{stage}.{error.field}", error.sentence) from error


def _find_unknown_models(form: PictureForm) -> dict[str, str]:
    problems = {}
    for name, (field, _) in STAGE_TOOLS.items():
        stage, known = getattr(form, name), list_stage_models(name)
        if stage is None or (model := getattr(stage, field)) in known:
            continue
        suffix = from_hub.TOOL_SUFFIXES.get(field)
        if suffix and is_hub_name(model):
            continue
        allowed = ", ".join(known) + (f", or a Hub id owner/name:file{suffix}" if suffix else "")
        problems[f"{name}.{field}"] = f"{str(model)[:40]!r} is unknown. Use one of: {allowed}."
    return problems


def fill_form(form: PictureForm) -> PictureOrder:
    """Fill in what the form leaves to the preset, make its prompts' choices, and collect its LoRAs.

    Raises `UserError` for the first value that is not allowed, and for LoRAs and embeddings
    that `collect_loras` and `collect_embeddings` refuse, those of its hires and details included.
    """
    form, templates = _choose_texts(form)
    for field, sentence in _find_unknown_models(form).items():
        raise UserError(field, sentence)
    if form.expand:
        check_expand_settings(form.expand)
    applied = collect_loras(form)
    from_prompt = lora_library.parse_lora_tags(form.prompt)
    # Only the LoRAs that the prompt does not name yet.
    tags = " ".join(map(lora_library.format_lora_tag, applied[: len(applied) - len(from_prompt)]))
    values = fill_values(form)
    values["prompt"] = f"{form.prompt.strip()} {tags}".strip().replace("\r\n", "\n")
    request = Request(
        **values,
        **templates,
        loras=applied,
        hires_loras=_collect_hires_loras(form),
        detail_loras=_collect_detail_loras(form),
        embeddings=collect_embeddings(values, _collect_all_loras(form)),
    )
    lora_library.check_loras(request.lora_uses)
    _check_together(request)
    return PictureOrder(request=request, count=form.count or 1, expand=form.expand)


def _choose_texts(form: PictureForm) -> tuple[PictureForm, dict[str, Any]]:
    """Return the form with the choices that its seed makes in its texts, and the templates of a `Request`.

    Raises `UserError` for choices that cannot be made.
    """
    values = fill_values(form)
    texts = list_prompts(values)
    templates: dict[str, Any] = {}
    chosen = {field: choose_by_seed(text, values["seed"], field).text for field, text in texts.items()}
    if chosen == texts:
        return form, {}
    for field, name in (("prompt", "template"), ("negative", "negative_template")):
        if chosen[field] != texts[field]:
            templates[name] = texts[field].strip().replace("\r\n", "\n")
    stages = keep_stages(form)
    for stage in ("hires", "detail"):
        if values[stage]:
            own = {name: chosen[f"{stage}.{name}"] for name in ("prompt", "negative")}
            stages[stage] = replace(values[stage], **own)
    texts = {name: chosen[name] for name in ("prompt", "negative")}
    return replace(form, seed=values["seed"], **texts, **stages), templates


def choose_by_seed(text: str, seed: int, field: str) -> Chosen:
    """Return a field's text with its choices made by the seed. Raises `UserError` for the field."""
    try:
        return choose_text(text, f"{seed} {field}")
    except UserError as error:
        raise UserError(field, error.sentence) from error


def fill_values(form: PictureForm) -> dict[str, Any]:
    """Return the fields of a `Request` except its LoRAs, unchecked.

    They come from the form, or else from the preset.
    """
    preset = form.prompt_preset
    shared = ("negative", "sampler", "width", "height", "steps", "cfg", "cfg_rescale")
    chosen = {name: getattr(preset if getattr(form, name) is None else form, name) for name in shared}
    sampler, named = split_sampler(chosen["sampler"])
    schedule = form.schedule or named or (preset.schedule if form.sampler is None else AUTOMATIC)
    seed = secrets.randbelow(limits.RANDOM_SEEDS) if form.seed in (None, RANDOM_SEED) else form.seed
    return {
        **chosen,
        "sampler": sampler,
        "schedule": schedule,
        "model": catalogue.find_model(form.model).name if form.model else preset.model,
        "prompt": form.prompt,
        "negative": _strip(chosen["negative"]),
        "cfg": float(chosen["cfg"]),
        "seed": seed,
        "clip_skip": form.clip_skip or 2,
        **{name: getattr(form, name) for name in ("hires", "detail", "grain")},
    }


def collect_loras(form: PictureForm) -> tuple[LoraUse, ...]:
    """Return the LoRAs of a form.

    They come from `lora_file` with `lora_strength`, the list `loras`, and the `<lora:...>` tags of
    the prompt. Raises `UserError` for a file that cannot be used, a name that is not in the LoRA
    library, and a strength or blocks that are not allowed.
    """
    found = () if form.loras is None else lora_library.parse_lora_list(form.loras)
    if form.lora_file:
        strength = 1.0 if form.lora_strength is None else form.lora_strength
        found = (LoraUse(path=form.lora_file, strength=strength), *found)
    return lora_library.check_loras([*found, *lora_library.parse_lora_tags(form.prompt)])


def _collect_hires_loras(form: PictureForm) -> tuple[LoraUse, ...] | None:
    """Return what the `<lora:...>` tags of hires' own prompt name; `None` if it has no prompt of its own."""
    if form.hires is None or not form.hires.prompt:
        return None
    return _parse_stage_tags("hires.prompt", form.hires.prompt)


def _collect_detail_loras(form: PictureForm) -> tuple[tuple[LoraUse, ...], ...]:
    """Return the LoRAs of the details' prompts, for each of those between `[SEP]`; empty if none has any."""
    if form.detail is None:
        return ()
    parts = form.detail.prompt.split(SEPARATOR_TOKEN)
    found = tuple(_parse_stage_tags("detail.prompt", part) for part in parts)
    return found if any(found) else ()


def _parse_stage_tags(field: str, text: str) -> tuple[LoraUse, ...]:
    """Return the LoRAs that a stage's prompt names. Raises `UserError` for its field."""
    try:
        return lora_library.parse_lora_tags(text)
    except UserError as error:
        raise UserError(field, error.sentence if error.field == "prompt" else str(error)) from error


def resolve_seed(form: PictureForm) -> PictureForm:
    """Return the form with a random seed drawn if it asks for any.

    Then every stage of a job has the same seed.
    """
    return replace(form, seed=fill_values(form)["seed"], **keep_stages(form))


def keep_stages(form: PictureForm) -> dict[str, Any]:
    """Return the stages as `replace` needs them.

    A stage that is off becomes `False`, since `None` would be the preset's advice.
    """
    return {name: getattr(form, name) or False for name in STAGE_RECORDS}


def replace_prompt(form: PictureForm, prompt: str) -> PictureForm:
    """Return the form with another prompt."""
    return replace(form, prompt=prompt, **keep_stages(form))


def expand_request(form: PictureForm) -> Expansion | None:
    """Add DanTagGen's tags to the prompt, with the picture's seed.

    Returns `None` if the form does not ask for it.
    """
    if form.expand is None:
        return None
    template, form = form.prompt, _choose_texts(form)[0]
    settings, values = form.expand, fill_values(form)
    assert settings is not None
    tags = lora_library.collect_lora_tags(collect_loras(form))
    if settings.lora_tags == "ban":
        settings, tags = replace(settings, ban=(*settings.ban, *map(re.escape, tags))), ()
    size = {"width": values["width"], "height": values["height"]}
    found = expand(form.prompt, settings, **size, seed=values["seed"], known_tags=tags)
    return replace(found, prompt=append_tags(template, found.added))


def build_cells(form: PictureForm, unexpanded_prompt: str | None = None) -> list[Cell]:
    """Return one cell for each picture, with seeds that count up from the first.

    `unexpanded_prompt` is the prompt before tags were added to it. Raises `UserError` if `fill_form`
    refuses the form.
    """
    order = fill_form(form)
    first = replace(order.request, expanded=unexpanded_prompt)
    seeds = count_seeds(first.seed, order.count)
    if _choose_texts(form)[0] is form:
        return [Cell(label=f"seed {seed}", request=replace(first, seed=seed)) for seed in seeds]
    requests = [fill_form(replace(form, seed=seed, **keep_stages(form))).request for seed in seeds]
    return [Cell(label=f"seed {r.seed}", request=replace(r, expanded=unexpanded_prompt)) for r in requests]
