"""Embeddings (textual inversion): a file's vectors stand in a prompt where its name is written.

A file for SDXL has `clip_l` and `clip_g`, n vectors for each text encoder. A name counts as a word as
in A1111 (`modules/textual_inversion/textual_inversion.py`): whatever its capitals, between the words
into which CLIP's tokenizer divides a text, and the longest of several names. A1111 compares tokens,
so that `style` is also found in `restyle`; here it is not, and a name means the same for every
tokenizer. `embedding:name` is ComfyUI's form. The vectors take the place of token embeddings;
tokenizer and vocabulary stay.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from core.prompts.grammar import CHUNK_LENGTH, Break, Span, extract_lora_tags, iterate_texts, parse_prompt
from core.schema.errors import UserError
from core.schema.types import EmbeddingUse
from core.system.concurrency import BoundedDict
from core.system.tensor_files import calculate_sha256

ENCODER_KEYS = ("clip_l", "clip_g")
"""Names of the vectors of the first and the second text encoder."""
FAMILY_BY_WIDTHS = {(768, 1280): "SDXL", (64, 96): "nano"}
"""Widths of both encoders' vectors -> family of base models."""
OTHER_FAMILIES = {768: "SD 1.5", 1024: "SD 2"}
"""Width of a single encoder's vectors -> the family that an embedding is made for."""
MAX_VECTORS = CHUNK_LENGTH
MAX_FILE_BYTES = 10 * 2**20
"""75 vectors of SDXL have 0.6 MB."""
MAX_NAME_LENGTH = 300  # characters, of a folder and a file's name

# CLIP's own division of a text, in which a digit is a word; but each other sign stands alone, so that a
# name may end with a bracket before a comma.
PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\w\s]|_", re.IGNORECASE)
COMFYUI_MARK = re.compile(r"embedding:(?=[^\s,])", re.IGNORECASE)
MODEL_SUFFIX = re.compile(r"\.(?:safetensors|pt|bin)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """The vectors of an embedding."""

    vectors: tuple[torch.Tensor, torch.Tensor]
    """(n, width) of each text encoder, float32."""

    @property
    def length(self) -> int:
        """How many tokens it takes."""
        return len(self.vectors[0])

    @property
    def family(self) -> str:
        """The family of base models that it is made for, `SDXL` or `nano`."""
        return FAMILY_BY_WIDTHS[self.vectors[0].shape[1], self.vectors[1].shape[1]]


@dataclass(frozen=True)
class EmbeddingSpan:
    """An embedding's vectors within a prompt, at one weight."""

    use: EmbeddingUse
    weight: float


class Mention(NamedTuple):
    """A place in a text that names an embedding."""

    word: str | None
    """The name; `None` after `embedding:` if there is none of that name."""
    text: str
    """What the prompt says, `embedding:` included."""


# --- files ---------------------------------------------------------------------------------------

_embeddings: BoundedDict[tuple[str, str], Embedding] = BoundedDict(64)  # by hash and prefix


def get_embedding(use: EmbeddingUse) -> Embedding:
    """Return the embedding, read once for each content.

    Raises `UserError` for a file that cannot be used or is no longer the one that was named.
    """
    key = (use.sha256, use.key_prefix)
    if (known := _embeddings.get(key)) is None:
        known = _read_embedding(Path(use.path), use.key_prefix)
        if calculate_sha256(Path(use.path)) != use.sha256:
            raise UserError("embedding", f"{Path(use.path).name} was changed while it was in use; try again.")
        _embeddings[key] = known
    return known


def _read_embedding(path: Path, prefix: str) -> Embedding:
    """Read the vectors whose names begin with `prefix`, after checking their shapes."""
    name = path.name
    try:
        if not prefix and path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(
                "embedding", f"{name} is too large for an embedding; the limit is {MAX_FILE_BYTES:,} bytes."
            )
        with safe_open(path, framework="pt") as file:
            shapes = {
                key.removeprefix(prefix): tuple(file.get_slice(key).get_shape())
                for key in file.keys()  # noqa: SIM118
                if key.startswith(prefix)
            }
            _check_shapes(shapes, name)
            first, second = (file.get_tensor(prefix + key) for key in ENCODER_KEYS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            "embedding", f"{name} is not a complete safetensors file ({type(error).__name__})."
        ) from error
    for key, tensor in zip(ENCODER_KEYS, (first, second), strict=True):
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise UserError(
                "embedding", f"{name}: {key!r} contains NaN or infinite numbers; the file is broken."
            )
    return Embedding(vectors=(first.float(), second.float()))


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise `UserError`, with what the file is, unless it holds an embedding of SDXL's or nano's."""
    need = "Use one for SDXL, with clip_l and clip_g"
    if any(key.startswith(("lora_", "lycoris_")) or ".lora_" in key for key in shapes):
        raise UserError("embedding", f"{name} is a LoRA. Put it into models/loras.")
    if not set(ENCODER_KEYS) <= shapes.keys():
        widths = {shape[-1] for shape in shapes.values() if shape}
        family = OTHER_FAMILIES.get(next(iter(widths))) if len(widths) == 1 else None
        kind = f"is an embedding for {family}" if family else "has no clip_l and clip_g"
        raise UserError("embedding", f"{name} {kind}. {need}.")
    if other := shapes.keys() - set(ENCODER_KEYS):
        raise UserError("embedding", f"{name} contains {min(other)[:60]!r}, which is not supported. {need}.")
    first, second = (shapes[key] for key in ENCODER_KEYS)
    if len(first) != 2 or len(second) != 2 or (first[1], second[1]) not in FAMILY_BY_WIDTHS:
        raise UserError(
            "embedding",
            f"{name} has vectors of the shapes {first} and {second}. {need} of 768 and 1280 wide.",
        )
    if first[0] != second[0] or not 1 <= first[0] <= MAX_VECTORS:
        raise UserError(
            "embedding",
            f"{name} has {first[0]} and {second[0]} vectors. Use one with as many in both, "
            f"1 to {MAX_VECTORS}.",
        )


# --- names in a text -----------------------------------------------------------------------------


class _Words(NamedTuple):
    """Names, ready to be found in a text."""

    by_pieces: dict[tuple[str, ...], str]
    by_name: dict[str, str]
    lengths: list[int]
    """How many pieces the names have, the longest first."""


@lru_cache(16)
def _index_words(words: tuple[str, ...]) -> _Words:
    """Index names by their pieces; of two that differ in capitals alone, the first counts."""
    by_pieces: dict[tuple[str, ...], str] = {}
    by_name: dict[str, str] = {}
    for word in words:
        plain = unicodedata.normalize("NFC", word).lower()
        by_name.setdefault(plain, word)
        by_pieces.setdefault(tuple(PIECE.findall(plain)), word)
    by_pieces.pop((), None)
    return _Words(by_pieces, by_name, sorted({len(pieces) for pieces in by_pieces}, reverse=True))


def find_mentions(prompt: str, words: Iterable[str]) -> list[Mention]:
    """Return the places of a prompt that name one of the embeddings, whatever step they are for."""
    texts = iterate_texts(parse_prompt(extract_lora_tags(prompt)[0]))
    known = tuple(words)
    return [part for text in texts for part in _split_text(text, known) if isinstance(part, Mention)]


def select_embeddings(prompts: Iterable[str], uses: Sequence[EmbeddingUse]) -> tuple[EmbeddingUse, ...]:
    """Return those of the embeddings that the prompts name; of two with one name, the first."""
    by_word = {use.word: use for use in reversed(uses)}
    said = {mention.word for prompt in prompts for mention in find_mentions(prompt, by_word)}
    return tuple(use for use in dict.fromkeys(uses) if use.word in said and by_word[use.word] == use)


def place_embeddings(
    spans: Iterable[Span | Break], uses: Collection[EmbeddingUse]
) -> Iterator[Span | EmbeddingSpan | Break]:
    """Yield the spans with embeddings where they are named.

    An `embedding:name` that is not among them is left out, as ComfyUI does.
    """
    by_word = {use.word: use for use in uses}
    for span in spans:
        if isinstance(span, Break) or not (by_word or COMFYUI_MARK.search(span.text)):
            yield span
            continue
        for part in _split_text(span.text, tuple(by_word)):
            if isinstance(part, str):
                yield Span(part, span.weight)
            elif part.word is not None:
                yield EmbeddingSpan(by_word[part.word], span.weight)


@lru_cache(64)  # a prompt that changes from step to step mostly says the same
def _split_text(text: str, words: tuple[str, ...]) -> tuple[str | Mention, ...]:
    """Split a text into what is said in words and what names an embedding."""
    text, known = unicodedata.normalize("NFC", text), _index_words(words)
    pieces = [*PIECE.finditer(text)]
    plain = [piece[0].lower() for piece in pieces]
    found: list[str | Mention] = []
    number = done = 0
    while number < len(pieces):
        start = pieces[number].start()
        if mark := COMFYUI_MARK.match(text, start):
            word, end = _read_comfyui_name(text, mark.end(), known.by_name)
        else:
            word, count = _match_pieces(plain, number, known)
            end = pieces[number + count - 1].end()
            if word is None:
                number += 1
                continue
        found += [text[done:start]] if start > done else []
        found.append(Mention(word, text[start:end]))
        done = end
        while number < len(pieces) and pieces[number].start() < end:
            number += 1
    return (*found, text[done:]) if done < len(text) or not found else tuple(found)


def _match_pieces(plain: Sequence[str], start: int, known: _Words) -> tuple[str | None, int]:
    """Return the longest name that begins at a piece, and its pieces."""
    for length in known.lengths:
        pieces = tuple(plain[start : start + length])
        if (word := known.by_pieces.get(pieces)) is not None:
            return word, len(pieces)
    return None, 1


def _read_comfyui_name(text: str, start: int, by_name: Mapping[str, str]) -> tuple[str | None, int]:
    """Return the name after `embedding:`, and where it ends: at a blank, a comma or the text's end.

    It may stand with its folder and its suffix.
    """
    rest = text[start : start + MAX_NAME_LENGTH]
    ends = [match.start() for match in re.finditer(r"[\s,]|$", rest)]
    for end in reversed(ends):  # a file's name can have blanks
        if (word := by_name.get(rest[:end].lower())) is not None:
            return word, start + end
    bare = MODEL_SUFFIX.sub("", re.split(r"[/\\]", rest[: ends[0]])[-1])
    return by_name.get(bare.lower()), start + ends[0]


# --- encoding ------------------------------------------------------------------------------------


@contextmanager
def insert_vectors(
    encoder: PreTrainedModel, number: int, places: Sequence[tuple[int, int, EmbeddingUse]]
) -> Iterator[None]:
    """Put vectors in the place of token embeddings while a text encoder is called.

    `number` is 0 for the first encoder, 1 for the second; each place is a row of the ids, a column, and
    an embedding. Raises `UserError` if the encoder has another width.
    """
    vectors = [(row, column, get_embedding(use).vectors[number]) for row, column, use in places]
    layer = encoder.get_input_embeddings()
    for (_, _, use), (_, _, each) in zip(places, vectors, strict=True):
        if each.shape[1] != layer.embedding_dim:
            raise UserError(
                "embedding",
                f"{use.word[:60]} has vectors of {each.shape[1]} numbers, this model's text encoder "
                f"reads {layer.embedding_dim}.",
            )

    def replace_rows(_layer: torch.nn.Module, _ids: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for row, column, each in vectors:
            output[row, column : column + len(each)] = each.to(output)
        return output

    hook = layer.register_forward_hook(replace_rows) if vectors else None
    try:
        yield
    finally:
        if hook:
            hook.remove()
