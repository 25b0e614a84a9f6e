"""DanTagGen: a small language model adds tags to a prompt, which itself comes through untouched.

Sampling is tipo-kgen's (`kgen.executor.dtg`) on a model that is loaded here; what it may add is held back
here, too: banned tags and categories, a greatest number, a time limit.
"""

import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from core import tools
from core.memory import enough_memory
from core.prompts import Break, escaped, networks, parse, spans
from core.types import Expand, UserError

SECONDS = 20.0
"""Time for one expansion, looked at between two runs of the model."""
LONGEST_TAG = 60  # characters
PATTERNS = 200
PATTERN = 100  # characters
WILDCARDS = 3
"""Repeats and alternatives in one pattern: with them nested or more of them, one tag could take for ever."""
CATEGORIES = {
    "hair": r".*\bhair\b.*|.*\b(bangs|braids?|twintails|ponytail|ahoge|sidelocks|bob cut|buns?)\b.*|.*\bhair (bow|ribbon|ornament)\b.*",
    "eyes": r".*\beyes?\b.*|.*\b(heterochromia|pupils?|eyelashes|eyeshadow)\b.*",
    "clothes": (
        r".*\b(uniform|hoodie|maid|kimono|dress|skirt|shirt|jacket|coat|sweater|pants|shorts|swimsuit|bikini|leotard|thighhighs|pantyhose|socks?|"
        r"shoes|boots|gloves?|hat|cap|bow|bowtie|necktie|ribbon|apron|collar|sleeves?|sleeveless|serafuku|cape|scarf|clothes|footwear|underwear)\b.*"
    ),
    "background": (
        r".*\bbackground\b.*|.*\b(sky|sunset|classroom|beach|forest|outdoors|indoors|scenery|cityscape|night|cloud|clouds|tree|trees|building|room|"
        r"window|water|ocean|stars?)\b.*"
    ),
}
"""What a category's tags look like."""

LENGTHS = ("very_short", "short", "long", "very_long")

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """What was added; the prompt is the old one with it at the end."""

    prompt: str
    added: tuple[str, ...]


def patterns(texts: Sequence[str]) -> list[re.Pattern[str]]:
    """Ban patterns, ready to match a tag from its start: words, globs (`*boy*`) and plain regular expressions (`.*boy.*`).

    A word bans the tags that begin with it: `mecha` bans `mecha musume`, not `mechanical arms`. Raises
    `UserError` naming the first that is not one or could take too long.
    """
    if len(texts) > PATTERNS:
        raise UserError(f"ban: {len(texts)} patterns are too many; it takes up to {PATTERNS}.")
    return [_pattern(text.strip().lower()) for text in texts if text.strip()]


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) > PATTERN:
        raise UserError(f"ban: {text[:40]!r}… is too long; a pattern takes up to {PATTERN} characters.")
    if re.search(r"[.^$()|+\\]", text):
        found = text
    elif re.search(r"[*?\[]", text):
        found = translate(text)  # a glob: what the whole tag looks like
    else:
        found = re.escape(text.replace("_", " ")) + r"(?!\w)"  # a word: how it begins
    if len(re.findall(r"[*+?{|]", text)) > WILDCARDS or re.search(r"\)\s*[*+?{]|\\\d|\(\?", text):
        raise UserError(f"ban: {text!r} could take too long; a pattern takes up to {WILDCARDS} wildcards, no repeated group and no back-reference.")
    try:
        return re.compile(found)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"ban: {text!r} is not a pattern: {error}.") from error


def check(how: Expand) -> list[re.Pattern[str]]:
    """What must not be added, ready to match; raises `UserError` for what cannot be asked."""
    if how.length not in LENGTHS:
        raise UserError(f"expand.length: {str(how.length)[:40]!r} is unknown; it takes {', '.join(LENGTHS)}.")
    if how.lora_tags not in ("lock", "ban"):
        raise UserError(f"expand.lora_tags: {str(how.lora_tags)[:40]!r} is not allowed; it takes lock or ban.")
    for name in how.without:
        if name not in CATEGORIES:
            raise UserError(f"expand.without: {str(name)[:40]!r} is unknown; it takes {', '.join(CATEGORIES)}.")
    return patterns(how.ban) + [re.compile(CATEGORIES[name]) for name in how.without]


def expand(prompt: str, how: Expand, *, width: int, height: int, seed: int, known: Sequence[str] = ()) -> Expanded:
    """The prompt and what the model adds to it. `known` are tags that the picture has besides, such as a LoRA's.

    `width` and `height` in pixels tell the model the picture's shape. The same seed, the same tags; the
    process's random states stay as they were. Raises `UserError` for a bad pattern, a length or a category
    that is unknown, for a model that cannot be had, and where memory runs out.
    """
    banned = check(how)
    tool = tools.find("expander", how.expander)
    least = (tool.lengths or ())[LENGTHS.index(how.length)]
    with enough_memory(f"This machine ran out of memory for {how.expander}, which adds tags: leave expand off."):
        return _expanded(prompt, how, banned, least, width / height, seed, known)


def _expanded(prompt: str, how: Expand, banned: list[re.Pattern[str]], least: int, ratio: float, seed: int, known: Sequence[str]) -> Expanded:
    model, tokenizer = loaded(tools.file("expander", how.expander))
    from kgen import models as kgen_models  # late: it writes a folder beside itself and logs when it is imported
    from kgen.executor.dtg import apply_dtg_prompt, tag_gen
    from kgen.formatter import seperate_tags

    given = [*said_tags(prompt), *known]
    groups = seperate_tags(given)
    begin, added = time.monotonic(), []
    with _one_at_a_time, _own_randomness():
        kgen_models.current_model_name = "DanTagGen-delta-rev2"  # whose prompt has a quality line, as nano's
        text = apply_dtg_prompt(groups, how.length, ratio)
        rounds = tag_gen(
            model,
            tokenizer,
            text,
            groups["special"] + groups["general"],
            least,
            banned,  # compiled patterns: `re.match` takes them as they are
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            max_retry=3,
            max_same_output=2,
            seed=seed % (2**31 - 1),
        )
        for _, tags, _ in rounds:
            known_already = {tag.replace("_", " ") for tag in given}
            whole = [tag for tag in tags if tag and len(tag) <= LONGEST_TAG and "<|" not in tag and "\n" not in tag]
            added = [tag for tag in dict.fromkeys(whole) if tag.replace("_", " ") not in known_already][: how.max_tags]
            if len(added) == how.max_tags or time.monotonic() - begin > SECONDS:
                break
    return Expanded(prompt=with_tags(prompt, added), added=tuple(added))


def with_tags(prompt: str, added: Sequence[str]) -> str:
    """The prompt, letter by letter, and the tags behind it; their brackets are escaped."""
    return ", ".join([prompt.rstrip().rstrip(","), *map(escaped, added)]) if added else prompt


def said_tags(prompt: str) -> list[str]:
    """The prompt's tags as words: without weights, breaks and LoRAs, brackets as they are meant."""
    text = ",".join(" , " if isinstance(part, Break) else part.text for part in spans(parse(networks(prompt)[0])))
    return list(dict.fromkeys(tag for part in text.split(",") if (tag := " ".join(part.split()))))


@cache
def loaded(folder: Path) -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """The language model of a folder, in float32 on the CPU, where it gives the same tags on every machine."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"expander: {folder.name} cannot be opened as DanTagGen ({type(error).__name__}).") from error
    return model.eval(), tokenizer


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The library seeds the process's generators; they get back what they had."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
