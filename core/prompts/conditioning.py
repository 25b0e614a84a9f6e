"""Encodes prompts as SDXL's conditioning: 75-token chunks, weights, schedules, both encoders.

As A1111 does it (`modules/sd_hijack_clip.py`): each chunk is encoded by itself and the states are
joined; a chunk that is full ends at its last comma if that is near; weights multiply the states,
whose mean is then restored; the pooled vector is the first chunk's. A prompt of weight 1 within 75
tokens gives what `StableDiffusionXLPipeline.encode_prompt` gives.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline

from core.prompts.embeddings import EmbeddingSpan, get_embedding, insert_vectors, place_embeddings
from core.prompts.grammar import (
    CHUNK_LENGTH,
    Break,
    Span,
    extract_lora_tags,
    parse_prompt,
    parse_weights,
    resolve_text,
    split_parts,
)
from core.schema.errors import UserError
from core.schema.types import EmbeddingUse, Request

COMMA_BACKTRACK = 20
"""A1111's `comma_padding_backtrack`: a chunk is cut after a comma among its last 20 tokens."""

MAX_CHUNKS = 16
MAX_PARTS = 8
"""Prompts joined by `AND`: each is a row of its own in the model."""
MAX_TOTAL_CHUNKS = 320
"""Chunks of all texts that a request has at any step."""

PromptSpans = tuple[Span | EmbeddingSpan | Break, ...]
"""The content of a prompt at one step."""


class Chunk(NamedTuple):
    """The part of a prompt that the text encoders read at once, with a weight for each token."""

    ids: list[int]
    """At most 75 tokens."""
    weights: list[float]
    embeddings: list[tuple[int, EmbeddingUse]]
    """Places in `ids` where an embedding begins, which has one stand-in for each of its vectors."""

    def cut(self, place: int) -> "tuple[Chunk, Chunk]":
        """Return what stands before a place, and what follows."""
        before = [(at, use) for at, use in self.embeddings if at < place]
        after = [(at - place, use) for at, use in self.embeddings if at >= place]
        return (
            Chunk(self.ids[:place], self.weights[:place], before),
            Chunk(self.ids[place:], self.weights[place:], after),
        )


class Conditioning(NamedTuple):
    """What the U-Net gets of n prompts."""

    states: torch.Tensor
    """(n, 77 * chunks, width): both encoders' penultimate states."""
    pooled: torch.Tensor
    """(n, pooled width) of the second encoder."""


def count_tokens(tokenizer, prompt: str, embeddings: Sequence[EmbeddingUse] = ()) -> int:
    """Count the tokens of the prompt's first step; chunks before the last count as full.

    An embedding counts as many as it has vectors. Of prompts joined by `AND`, the longest counts.
    """
    parts = [split_chunks(tokenizer, resolve_prompt(part.text, embeddings)) for part in split_parts(prompt)]
    return max(CHUNK_LENGTH * (len(made) - 1) + len(made[-1].ids) for made in parts)


def resolve_prompt(prompt: str, embeddings: Sequence[EmbeddingUse] = ()) -> PromptSpans:
    """Return what the prompt contains at its first step, without its `<lora:...>` tags."""
    return resolve_steps(prompt, 1, embeddings=embeddings)[0]


def resolve_steps(
    prompt: str, steps: int, steps_before: int = 0, embeddings: Sequence[EmbeddingUse] = ()
) -> list[PromptSpans]:
    """Return what the prompt contains at each step of a pass, without its `<lora:...>` tags.

    `steps_before` are the steps of the pass before this one. `embeddings` stand where they are named.
    """
    parts = parse_prompt(extract_lora_tags(prompt)[0])
    if all(isinstance(part, str) for part in parts):  # it is the same at every step
        steps_texts = ["".join(map(str, parts))] * steps
    else:
        steps_texts = [resolve_text(parts, step, steps, steps_before) for step in range(1, steps + 1)]
    spans = {
        text: tuple(place_embeddings(parse_weights(text), embeddings)) for text in dict.fromkeys(steps_texts)
    }
    return [spans[text] for text in steps_texts]


def encode_requests(
    pipeline: StableDiffusionXLPipeline,
    requests: Sequence[Request],
    guided: bool,
    calls: int | None = None,
    calls_before: int = 0,
) -> Callable[[int], Conditioning]:
    """Return a function that gives a batch's conditioning at each call of the model (from 0).

    It has a row for each part of each prompt: n with the negatives if `guided`, n with the first parts,
    and so on; all prompts have the same number of parts. A prompt's steps are counted over
    `calls`, or else the first request's own, after `calls_before` of an earlier pass. As A1111 counts
    them from 0, `[a:b:5]` is a for six calls, and `[a|b]` begins with a twice; calls beyond the last
    are like the first. Requests of one batch have the same number of steps, the same clip skip and the
    same `count_chunks`, so that none is changed by another. Everything is encoded at once, each distinct
    text one time. Raises `UserError` for texts that `count_chunks` refuses.
    """
    for request in requests:
        count_chunks(pipeline.tokenizer, request)
    steps = calls or requests[0].calls
    parts = zip(*(split_parts(r.prompt) for r in requests), strict=True)
    prompts = [r.negative for r in requests] * guided + [part.text for each in parts for part in each]
    embeddings = [r.embeddings for r in requests] * (len(prompts) // len(requests))
    rows = [
        resolve_steps(text, steps, calls_before, uses) for text, uses in zip(prompts, embeddings, strict=True)
    ]
    where = {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
    made = encode_texts(pipeline, list(where), requests[0].clip_skip)
    # SDXL base knows an empty prompt as zeros.
    silent = len(requests) * guided if pipeline.config.force_zeros_for_empty_prompt else 0
    factors = torch.tensor(
        [float(i >= silent or bool(text.strip())) for i, text in enumerate(prompts)],
        device=made.pooled.device,
        dtype=made.pooled.dtype,
    )

    @lru_cache(1)  # most prompts are the same at every step
    def select_rows(texts: tuple[int, ...]) -> Conditioning:
        return Conditioning(
            made.states[list(texts)] * factors[:, None, None], made.pooled[list(texts)] * factors[:, None]
        )

    def find_conditioning(call: int) -> Conditioning:
        at = call - 1 if 1 <= call <= steps else 0
        return select_rows(tuple(where[row[at]] for row in rows))

    return find_conditioning


def count_chunks(tokenizer, request: Request) -> int:
    """Return how many chunks a request's conditioning is long.

    The longer of its two texts counts, at any step. Raises `UserError` for `prompt` or `negative` if
    they are so long, or change so often, that they would fill the memory.
    """
    parts = split_parts(request.prompt)
    if len(parts) > MAX_PARTS:
        raise UserError(
            "prompt", f"{len(parts)} prompts joined by AND are too many; the limit is {MAX_PARTS}."
        )
    texts = {
        field: {
            text
            for prompt in prompts
            for text in resolve_steps(prompt, request.calls, embeddings=request.embeddings)
        }
        for field, prompts in (("prompt", [part.text for part in parts]), ("negative", [request.negative]))
    }
    chunks = {field: max(len(split_chunks(tokenizer, text)) for text in texts[field]) for field in texts}
    for field, many in chunks.items():
        if many > MAX_CHUNKS:
            raise UserError(
                field, f"{many} chunks of {CHUNK_LENGTH} tokens are too many; the limit is {MAX_CHUNKS}."
            )
    many, changes = max(chunks.values()), len(texts["prompt"] | texts["negative"])
    if many * changes > MAX_TOTAL_CHUNKS:
        raise UserError(
            max(texts, key=lambda field: len(texts[field])),
            f"it changes {changes} times over {many} chunks of {CHUNK_LENGTH} tokens; "
            f"the limit is {MAX_TOTAL_CHUNKS} chunks in total.",
        )
    return many


def encode_texts(
    pipeline: StableDiffusionXLPipeline, texts: Sequence[PromptSpans], clip_skip: int = 2
) -> Conditioning:
    """Encode every text as one row, the shorter ones padded with empty chunks.

    `clip_skip` 2 is the layer before the last, as in SDXL. Each text goes through the encoders by
    itself, so that not even the last bit depends on the other texts.
    """
    both = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
    many = max(len(split_chunks(pipeline.tokenizer, text)) for text in texts)
    device = pipeline._execution_device  # read once: diffusers searches every module for it
    rows = []
    for text in texts:
        states, pooled = [], torch.empty(0)
        for number, (tokenizer, encoder) in enumerate(both):
            made = split_chunks(tokenizer, text)
            made += [Chunk([], [], [])] * (many - len(made))
            start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
            ids = torch.tensor(
                [[start, *c.ids, end, *[pad] * (CHUNK_LENGTH - len(c.ids))] for c in made], device=device
            )
            weights = torch.tensor(
                [[1.0, *c.weights, *[1.0] * (CHUNK_LENGTH + 1 - len(c.ids))] for c in made]
            )
            places = [(row, 1 + at, use) for row, c in enumerate(made) for at, use in c.embeddings]
            with insert_vectors(encoder, number, places):
                out = encoder(ids, output_hidden_states=True)
            states.append(_apply_prompt_weights(out.hidden_states[-clip_skip], weights).flatten(0, 1))
            pooled = out[0][0]
        rows.append(Conditioning(torch.cat(states, dim=-1), pooled))
    return Conditioning(torch.stack([row.states for row in rows]), torch.stack([row.pooled for row in rows]))


def _apply_prompt_weights(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply states (m, 77, width) by weights (m, 77), restoring each chunk's mean.

    Rows of weight 1 stay bit for bit as they are.
    """
    rows = [i for i, row in enumerate(weights) if not bool((row == 1).all())]
    states = states.clone()
    for i in rows:
        heavier = states[i] * weights[i].to(states)[:, None]
        ratio = states[i].mean() / heavier.mean()
        states[i] = heavier * (ratio if torch.isfinite(ratio) else 1)
    return states


def split_chunks(tokenizer, text: PromptSpans) -> list[Chunk]:
    """Split the text's tokens into chunks of at most 75; returns at least one chunk.

    An embedding is never divided.
    """
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    done, now, after_comma = [], Chunk([], [], []), 0
    for token, weight in _iterate_tokens(tokenizer, text):
        if token is None:
            done.append(now)
            now, after_comma = Chunk([], [], []), 0
            continue
        if len(now.ids) == CHUNK_LENGTH:
            cut = (
                after_comma
                if after_comma and CHUNK_LENGTH - after_comma < COMMA_BACKTRACK and token != comma
                else CHUNK_LENGTH
            )
            full, now = now.cut(cut)
            done.append(full)
            after_comma = 0
        if isinstance(token, EmbeddingUse):
            length = get_embedding(token).length
            if len(now.ids) + length > CHUNK_LENGTH:
                done.append(now)
                now, after_comma = Chunk([], [], []), 0
            now.embeddings.append((len(now.ids), token))
            now.ids.extend([comma] * length)  # any token that is no mark
            now.weights.extend([weight] * length)
            continue
        now.ids.append(token)
        now.weights.append(weight)
        if token == comma:
            after_comma = len(now.ids)
    return [*done, now] if now.ids or not done else done  # a BREAK at the end begins nothing


def _iterate_tokens(tokenizer, text: PromptSpans) -> Iterator[tuple[int | EmbeddingUse | None, float]]:
    """Yield tokens and embeddings with their weights; `None` where a new chunk begins."""
    for part in text:
        if isinstance(part, Break):
            yield None, 1.0
        elif isinstance(part, EmbeddingSpan):
            yield part.use, part.weight
        else:
            for token in tokenizer(part.text, add_special_tokens=False, verbose=False).input_ids:
                yield token, part.weight
