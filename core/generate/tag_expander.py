"""Add tags to a prompt with DanTagGen, a small language model; the prompt itself stays as it is.

Sampling is tipo-kgen's (`kgen.executor.dtg`) on a model that is loaded here. What the model may add
is limited here, too: by banned tags and categories, a maximum number, and a time limit.
"""

import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from core.models import tools
from core.prompts.grammar import Break, escape_brackets, extract_lora_tags, parse_prompt, resolve_spans
from core.prompts.tag_patterns import compile_patterns
from core.schema.errors import UserError
from core.schema.types import Expand
from core.system.memory import translate_out_of_memory

MAX_SECONDS = 20.0
"""Seconds for one expansion, checked between two runs of the model."""
MAX_TAG_LENGTH = 60  # characters
CATEGORY_PATTERNS = {
    "hair": (
        r".*\bhair\b.*|.*\b(bangs|braids?|twintails|ponytail|ahoge|sidelocks|bob cut|buns?)\b.*|"
        r".*\bhair (bow|ribbon|ornament)\b.*"
    ),
    "eyes": r".*\beyes?\b.*|.*\b(heterochromia|pupils?|eyelashes|eyeshadow)\b.*",
    "clothes": (
        r".*\b(uniform|hoodie|maid|kimono|dress|skirt|shirt|jacket|coat|sweater|pants|shorts|swimsuit|"
        r"bikini|leotard|thighhighs|pantyhose|socks?|shoes|boots|gloves?|hat|cap|bow|bowtie|necktie|"
        r"ribbon|apron|collar|sleeves?|sleeveless|serafuku|cape|scarf|clothes|footwear|underwear)\b.*"
    ),
    "background": (
        r".*\bbackground\b.*|.*\b(sky|sunset|classroom|beach|forest|outdoors|indoors|scenery|cityscape|"
        r"night|cloud|clouds|tree|trees|building|room|window|water|ocean|stars?)\b.*"
    ),
}
"""Category -> a pattern of its tags."""

LENGTHS = ("very_short", "short", "long", "very_long")

_kgen_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """The tags that were added, and the prompt with them at its end."""

    prompt: str
    added: tuple[str, ...]


def check_expand_settings(settings: Expand) -> list[re.Pattern[str]]:
    """Check the settings and return the compiled patterns of tags that must not be added.

    Raises `UserError` for an unknown length or category, another value of `lora_tags` than `lock`
    or `ban`, and a bad pattern.
    """
    if settings.length not in LENGTHS:
        raise UserError(
            "expand.length", f"{str(settings.length)[:40]!r} is unknown. Use one of: {', '.join(LENGTHS)}."
        )
    if settings.lora_tags not in ("lock", "ban"):
        raise UserError(
            "expand.lora_tags", f"{str(settings.lora_tags)[:40]!r} is not valid. Use lock or ban."
        )
    for name in settings.without:
        if name not in CATEGORY_PATTERNS:
            raise UserError(
                "expand.without",
                f"{str(name)[:40]!r} is unknown. Use one of: {', '.join(CATEGORY_PATTERNS)}.",
            )
    return compile_patterns(settings.ban) + [re.compile(CATEGORY_PATTERNS[name]) for name in settings.without]


def expand(
    prompt: str, settings: Expand, *, width: int, height: int, seed: int, known_tags: Sequence[str] = ()
) -> Expansion:
    """Expand a prompt with tags from the language model.

    `known_tags` are other tags that the picture has, such as a LoRA's. `width` and `height` in
    pixels tell the model the picture's shape. The same seed gives the same tags, and the process's
    random states stay as they were. Raises `UserError` for a bad pattern, an unknown length or
    category, a model that is not available, and if memory runs out.
    """
    banned = check_expand_settings(settings)
    tool = tools.find_tool("expander", settings.expander)
    least = (tool.lengths or ())[LENGTHS.index(settings.length)]
    with translate_out_of_memory(
        None, f"This machine ran out of memory for {settings.expander}, which suggests tags: turn expand off."
    ):
        return _sample_tags(prompt, settings, banned, least, width / height, seed, known_tags)


def _sample_tags(
    prompt: str,
    settings: Expand,
    banned: list[re.Pattern[str]],
    least: int,
    ratio: float,
    seed: int,
    known_tags: Sequence[str],
) -> Expansion:
    model, tokenizer = load_expander(tools.fetch_tool("expander", settings.expander))
    # Imported late: kgen writes a folder beside itself and logs when it is imported.
    from kgen import models as kgen_models
    from kgen.executor.dtg import apply_dtg_prompt, tag_gen
    from kgen.formatter import seperate_tags

    given = [*extract_prompt_tags(prompt), *known_tags]
    groups = seperate_tags(given)
    begin, added = time.monotonic(), []
    with _kgen_lock, _preserve_random_state():
        # This model's prompt has a quality line, like nano's.
        kgen_models.current_model_name = "DanTagGen-delta-rev2"
        text = apply_dtg_prompt(groups, settings.length, ratio)
        rounds = tag_gen(
            model,
            tokenizer,
            text,
            groups["special"] + groups["general"],
            least,
            banned,  # compiled patterns: `re.match` takes them as they are
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_retry=3,
            max_same_output=2,
            seed=seed % (2**31 - 1),
        )
        for _, tags, _ in rounds:
            known_already = {tag.replace("_", " ") for tag in given}
            whole = [
                tag
                for tag in tags
                if tag and len(tag) <= MAX_TAG_LENGTH and "<|" not in tag and "\n" not in tag
            ]
            added = [tag for tag in dict.fromkeys(whole) if tag.replace("_", " ") not in known_already][
                : settings.max_tags
            ]
            if len(added) == settings.max_tags or time.monotonic() - begin > MAX_SECONDS:
                break
    return Expansion(prompt=append_tags(prompt, added), added=tuple(added))


def append_tags(prompt: str, added: Sequence[str]) -> str:
    """Append tags, with their brackets escaped, to a prompt that otherwise stays as it is.

    Only a comma and white space at the prompt's end are replaced.
    """
    return ", ".join([prompt.rstrip().rstrip(","), *map(escape_brackets, added)]) if added else prompt


def extract_prompt_tags(prompt: str) -> list[str]:
    """Return a prompt's tags as plain words: no weights, breaks and LoRAs, brackets unescaped."""
    text = ",".join(
        " , " if isinstance(part, Break) else part.text
        for part in resolve_spans(parse_prompt(extract_lora_tags(prompt)[0]))
    )
    return list(dict.fromkeys(tag for part in text.split(",") if (tag := " ".join(part.split()))))


@cache
def load_expander(folder: Path) -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """Load a folder's language model and tokenizer, and cache them.

    The model is in float32 on the CPU, where it gives the same tags on every machine. Raises
    `UserError` if it cannot be opened.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = LlamaForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            "expander", f"{folder.name} cannot be opened as DanTagGen ({type(error).__name__})."
        ) from error
    return model.eval(), tokenizer


@contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Restore the process's random generators after the `with` block; kgen seeds them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
