"""Turn the form of a sweep into its plan, and parse the lists of numbers in it.

Whatever is not allowed becomes a `UserError` with one sentence.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from core.generate.features import VAE
from core.hub.preflight import is_job
from core.lora import apply as lora
from core.models import bases, catalogue, embedding_library, preset_match, tools
from core.prompts.choices import Chosen, choose_text
from core.prompts.grammar import extract_lora_tags
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.prompts.png_metadata import MAX_PIXELS
from core.schema import limits, presets
from core.schema.bounds import OneOf, Switch, format_value, is_number
from core.schema.errors import UserError
from core.schema.records import record
from core.schema.types import EmbeddingUse, LoraUse, Model, PromptPreset, Request
from core.sweep.strengths import FIRST_STRENGTHS, STRENGTH_DECIMALS

_NUMBER = r"-?[0-9]{1,20}(?:\.[0-9]{1,6})?"
RANGE_PATTERN = re.compile(
    rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*\+\s*({_NUMBER})\s*\)|\[\s*([0-9]{{1,4}})\s*\])?"
)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """One LoRA over strengths, prompts and seeds."""

    lora: LoraUse
    """The LoRA to sweep; its strength is ignored."""
    settings: Request
    """What all pictures share; its prompt, seed and LoRAs are ignored, its embeddings are those of all
    prompts."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    """In rising order, including 0; empty where the study finds them by a probe."""
    limit: float = limits.STRENGTH[1]
    """The greatest strength, of either sign, to which a probe or an extension may go."""
    feature_extractor: str = "VAE"
    """Network whose activations are measured: the model's own `VAE`, or a `Tool` of kind `eye`."""
    references: tuple[str, ...] = ()
    """Files of pictures in the target style."""
    refine: bool = False
    """Whether to measure once more afterwards, between the strengths where something changes."""
    looks: tuple[int, ...] = ()
    """After how many prompts to ask for the verdict, and to end where it stands; empty: after all."""


NO_LORA = LoraUse(path="", strength=0.0)
"""The LoRA of a plan whose pictures have none (`core.sweep.axes`)."""
AUTOMATIC_STRENGTHS = {"": limits.STRENGTH[1], "auto": limits.STRENGTH[1], "-auto": limits.STRENGTH[0]}
"""What stands for strengths that a probe finds -> the greatest of them that is allowed."""
DEFAULT_SEEDS = "1, 2"
"""Other prompts tell more than other seeds: two are needed as the unit of distances."""
BUDGETS = {"Quick": 4, "Standard": 8, "Full": 16}
"""Budget -> most prompts of a sweep."""
DEFAULT_BUDGET = "Standard"
LOOKS = (4, 6, 8, 12, 16)
"""After how many prompts a sweep with a budget asks for its verdict."""
SUGGESTED_STEPS = (0.05, 0.1, 0.2, 0.25, 0.5)
"""Steps between suggested strengths."""


@record
class SweepForm:
    """What a person asks of a sweep; `None` stands for the default or the preset's value."""

    lora: Any
    """The path of the LoRA."""
    preset: str | None = None
    """`None` for the one that fits `model`, or nano's without a model."""
    model: Any = None
    """A name of `core.models.catalogue` or a Hub id; `None` for the preset's."""
    prompts: Any = None
    """Text with one prompt per line, or a list; `None` for neutral ones of the preset, with the LoRA's
    trigger."""
    budget: Annotated[str | None, OneOf(tuple(BUDGETS))] = None
    """How many neutral prompts there are; with any budget, the sweep ends earlier where the verdict stands.

    `None` with prompts: all of them are used; without: `Standard`."""
    seeds: Any = DEFAULT_SEEDS
    """A list of numbers as text, such as `1-4`."""
    strengths: Any = None
    """A list of numbers as text, such as `0-3.5 (+0.25)`; `None` or `auto` for those that a probe finds.

    `-auto` finds strengths below 0.
    """
    references: Any = None
    """Files of images in the target style."""
    refine: Annotated[bool, Switch()] = False
    feature_extractor: str = VAE
    """`VAE` or the name of a `Tool` of kind `eye`."""


def suggest_strengths(known: float | None) -> str:
    """Return what to sweep, as text: up to 2.5 times a strength that is known to work, in 15 steps at most.

    Where none is known, they are found by a probe: below 0 for one that works there.
    """
    if known is None or known <= 0:
        return "-auto" if known else ""
    last = min(2.5 * known, limits.STRENGTH[1])
    step = next((step for step in SUGGESTED_STEPS if last / step <= 15), SUGGESTED_STEPS[-1])
    return f"0-{step * round(last / step):g} (+{step:g})"


def plan_sweep(form: SweepForm) -> SweepPlan:
    """Plan the sweep that a form asks for. Raises `UserError` for whatever is not allowed."""
    if not form.lora:
        raise UserError("lora", "choose a LoRA to sweep.")
    plan = plan_pictures(form, (LoraUse(path=str(form.lora)),))
    looks = [many for many in LOOKS if many < len(plan.prompts)]
    asks_early = form.budget is not None or form.prompts in (None, "")
    wanted = read_numbers(form.strengths, "")
    limit = AUTOMATIC_STRENGTHS.get(wanted.strip()) if isinstance(wanted, str) else None
    strengths = parse_strengths(wanted) if limit is None else []
    check_cell_count(plan, len(strengths) or FIRST_STRENGTHS, "strengths")
    return replace(
        plan,
        strengths=tuple(strengths),
        limit=limit or (limits.STRENGTH[1] if max(strengths) > 0 else limits.STRENGTH[0]),
        refine=form.refine,
        # With one seed, nothing is measured that could end it.
        looks=(*looks, len(plan.prompts)) if asks_early and len(plan.seeds) > 1 else (),
    )


def choose_base(form: SweepForm) -> tuple[PromptPreset, Model]:
    """Return the preset and the base model of a form. Raises `UserError` for one that is unknown."""
    base = None if form.model in (None, "") else catalogue.find_model(form.model)
    fitting = preset_match.match_preset(base).preset if base else "nano"
    preset = presets.get_prompt_preset(form.preset or fitting)
    return preset, base or catalogue.find_model(preset.model)


def plan_pictures(form: SweepForm, loras: Sequence[LoraUse]) -> SweepPlan:
    """Plan what all pictures of a form share, without strengths; of its LoRAs, `loras` are the files.

    Raises `UserError` for whatever is not allowed.
    """
    preset, base = choose_base(form)
    triggers = []
    for use in loras:
        file = lora.get_lora_file(use.path)
        triggers.append(file.trigger or "")
        if not base.fits(file.family):
            raise UserError(
                "lora",
                f"{Path(use.path).name} is made for {file.family}, but {base.title} is not of that family; "
                "choose another preset or model.",
            )
    trigger = ", ".join(dict.fromkeys(filter(None, triggers)))
    neutral = compose_neutral_prompts(preset)[: BUDGETS[form.budget or DEFAULT_BUDGET]]
    prompts = _parse_prompts(form.prompts) or tuple(insert_trigger(prompt, trigger) for prompt in neutral)
    seeds = parse_seeds(read_numbers(form.seeds, DEFAULT_SEEDS))
    taken = ("negative", "width", "height", "steps", "cfg", "cfg_rescale", "sampler", "schedule")
    shared = {name: getattr(preset, name) for name in taken}
    settings = [{**shared, "model": base.name, "prompt": prompt, "seed": seeds[0]} for prompt in prompts]
    named: dict[EmbeddingUse, None] = {}
    for values in settings:
        try:
            texts = {field: values[field] for field in ("prompt", "negative")}
            found = embedding_library.find_embeddings(texts, loras, base)
            bases.check_prompt_length(Request(**values, embeddings=found))
            named |= dict.fromkeys(each for each in found if not each.key_prefix)
        except UserError as error:
            raise UserError("prompts" if error.field == "prompt" else error.field, error.sentence) from error
    if form.feature_extractor not in list_feature_extractors():
        raise UserError(
            "feature_extractor",
            f"{form.feature_extractor[:40]!r} is unknown. "
            f"Use one of: {', '.join(list_feature_extractors())}.",
        )
    return SweepPlan(
        lora=next(iter(loras), NO_LORA),
        settings=Request(**settings[0], embeddings=tuple(named)),
        feature_extractor=form.feature_extractor,
        references=tuple(check_reference(Path(str(file))) for file in _list_references(form.references)),
        prompts=prompts,
        seeds=tuple(seeds),
        strengths=(),
    )


def check_cell_count(plan: SweepPlan, columns: int, field: str) -> None:
    """Raise `UserError` if so many columns, of the form's `field`, are more pictures than are allowed."""
    cells = len(plan.prompts) * len(plan.seeds) * columns
    if cells > limits.SWEEP_CELLS:
        raise UserError(
            field,
            f"{columns} {field} x {len(plan.prompts)} prompts x {len(plan.seeds)} seeds are {cells} images; "
            f"the limit is {limits.SWEEP_CELLS}.",
        )


def list_feature_extractors() -> list[str]:
    """Return the names of the networks whose activations can be measured."""
    return [VAE, *tools.list_tools("eye")]


def check_reference(file: Path) -> str:
    """Return the path of a reference picture after checking that it can be opened.

    Before the job, the picture is not decoded. Raises `UserError` if it is too large, or cannot be
    read as a PNG, JPEG or WebP image.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    "references", f"{file.name} is too large; the limit is {MAX_PIXELS // 10**6} megapixels."
                )
            if is_job():
                picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError("references", f"{file.name} cannot be read as a PNG, JPEG or WebP image.") from error
    return str(file)


def _parse_prompts(value: Any) -> tuple[str, ...]:
    lines = value if isinstance(value, list | tuple) else ["" if value is None else value]
    if wrong := [line for line in lines if not isinstance(line, str)]:
        raise UserError(
            "prompts", f"{format_value(wrong[0])} is not text; use one prompt per line, or a list."
        )
    text = "\n".join(lines)
    if len(text) > limits.PROMPT_LENGTH:
        raise UserError(
            "prompts", f"{len(text):,} characters are too many; the limit is {limits.PROMPT_LENGTH:,}."
        )
    prompts = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if tagged := next((prompt for prompt in prompts if extract_lora_tags(prompt)[0] != prompt), None):
        raise UserError(
            "prompts",
            f"{tagged[:60]!r} contains a LoRA, or another <tag:...>; "
            "a sweep applies only the LoRA that is swept.",
        )
    if chosen := next((prompt for prompt in prompts if choose_text(prompt, "") != Chosen(prompt, ())), None):
        raise UserError(
            "prompts",
            f"{chosen[:60]!r} makes choices, {{a|b}} or a __wildcard__; in a sweep, all strengths need "
            "the same words.",
        )
    if len(prompts) > limits.PROMPTS:
        raise UserError(
            "prompts", f"{len(prompts)} are too many; the limit is {limits.PROMPTS}, one per line."
        )
    return prompts


def read_numbers(value: Any, default: str) -> Any:
    """Return a list of numbers as text, as `parse_numbers` takes it; a number is a list of one.

    `None` and a blank text stand for the default.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    return f"{value}" if is_number(value) else value


def _list_references(value: Any) -> Sequence[Any]:
    files = value if isinstance(value, list | tuple) else [value] if value else []
    if len(files) > limits.REFERENCES:
        raise UserError("references", f"{len(files)} images are too many; the limit is {limits.REFERENCES}.")
    return files


def parse_numbers(text: Any, field: str, max_count: int) -> list[float]:
    """Parse a list of numbers such as `0, 0.5, 1`, `0-3.5 (+0.25)`, `0-3.5 [15]` or `1-4`.

    Returns each number once, in the order of the text; no range goes beyond its end. Raises
    `UserError` if `text` is not such a list, or has more than `max_count` numbers.
    """
    return list(dict.fromkeys(map(float, _parse_decimals(text, field, max_count))))


def _parse_decimals(text: Any, field: str, max_count: int) -> list[Decimal]:
    if not isinstance(text, str) or len(text) > limits.PROMPT_LENGTH:
        raise UserError(field, "use a list such as '0, 0.5, 1', '0-3.5 (+0.25)' or '0-3.5 [15]'.")
    found: list[Decimal] = []
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        if re.fullmatch(_NUMBER, part):
            found.append(Decimal(part))
        elif match := RANGE_PATTERN.fullmatch(part):
            found += _parse_range(match, field, part, max_count)
        else:
            raise UserError(
                field,
                f"{part[:40]!r} is neither a number nor a range; "
                "use a list such as '0, 0.5, 1', '0-3.5 (+0.25)' or '0-3.5 [15]'.",
            )
        if len(found) > max_count:
            raise UserError(field, f"{part[:40]!r} makes more than {max_count} numbers, the limit.")
    if not found:
        raise UserError(
            field, "it is empty; use a list such as '0, 0.5, 1', '0-3.5 (+0.25)' or '0-3.5 [15]'."
        )
    return found


def _parse_range(match: re.Match[str], field: str, part: str, max_count: int) -> list[Decimal]:
    first, last = Decimal(match[1]), Decimal(match[2])
    if last < first:
        raise UserError(field, f"{part[:40]!r} ends before it begins.")
    if match[4]:
        many = int(match[4])
        if not 2 <= many <= max_count:
            raise UserError(
                field, f"{part[:40]!r} asks for {many} numbers; a range has from 2 to {max_count}."
            )
        return [first + (last - first) * i / (many - 1) for i in range(many)]
    step = Decimal(match[3] or 1)
    if step <= 0:
        raise UserError(field, f"{part[:40]!r} has no valid step; the number after + must be above 0.")
    many = int((last - first) / step) + 1
    if many > max_count:
        raise UserError(field, f"{part[:40]!r} makes {many} numbers; the limit is {max_count}.")
    return [first + step * i for i in range(many)]


def parse_strengths(text: Any, field: str = "strengths") -> list[float]:
    """Parse the strengths of a LoRA; return them in rising order, including 0.

    Raises `UserError` if `parse_numbers` refuses the text, or a strength is out of range.
    """
    given = parse_numbers(text, field, limits.STRENGTHS)
    low, high = limits.STRENGTH
    for strength in given:
        if not low <= strength <= high:
            raise UserError(field, f"{strength:.6g} is not valid. Use strengths from {low:g} to {high:g}.")
    found = sorted({0.0, *(round(strength, STRENGTH_DECIMALS) for strength in given)})
    if found == [0.0]:
        raise UserError(field, "0 alone shows nothing; use at least one other strength.")
    return found


def parse_seeds(text: Any, field: str = "seeds") -> list[int]:
    """Parse seeds; return them in the order of the text.

    Raises `UserError` if `parse_numbers` refuses the text, or a seed is not whole or is out of
    range.
    """
    found = _parse_decimals(text, field, limits.SEEDS)
    low, high = limits.SEED
    for seed in found:
        if not low <= seed <= high or seed != int(seed):
            raise UserError(field, f"{str(seed)[:40]} is not valid. Use whole numbers from {low} to {high}.")
    return list(dict.fromkeys(map(int, found)))
