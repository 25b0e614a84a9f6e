"""Prompts -> SDXL's conditioning: chunks of 75 tokens, weights and turns, through both text encoders.

As A1111 does it (`modules/sd_hijack_clip.py`): each chunk is encoded by itself and the states are joined; a
chunk that is full ends at its last comma if that is near; weights multiply the states, whose mean is then
restored; the pooled vector is the first chunk's. A prompt of weight 1 within 75 tokens gives what
`StableDiffusionXLPipeline.encode_prompt` gives.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline

from core.prompts import PLACES, Break, Span, networks, parse, spans
from core.types import Request, UserError

BACK_TO_COMMA = 20
"""A1111's `comma_padding_backtrack`: a chunk is cut behind a comma that is among its last 20 tokens."""

MOST_CHUNKS = 16
MOST_TEXTS = 320
"""Chunks of all that a request says at any step."""

Said = tuple[Span | Break, ...]
"""What a prompt says at one step."""


class Chunk(NamedTuple):
    ids: list[int]
    """At most 75 tokens."""
    weights: list[float]


class Conditioning(NamedTuple):
    states: torch.Tensor
    """(n, 77 * chunks, width): both encoders' penultimate states."""
    pooled: torch.Tensor
    """(n, pooled width) of the second encoder."""


def tokens(tokenizer, prompt: str) -> int:
    """How many of CLIP's places the prompt's first step takes; chunks before the last count as full."""
    made = chunks(tokenizer, said(prompt))
    return PLACES * (len(made) - 1) + len(made[-1].ids)


def said(prompt: str, step: int = 1, steps: int = 1, gone: int = 0) -> Said:
    """What the prompt says at a step, without its `<lora:...>` tags."""
    return tuple(spans(parse(networks(prompt)[0]), step, steps, gone))


def conditions(pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], guided: bool, gone: int = 0) -> Callable[[int], Conditioning]:
    """The conditioning of a batch at each step (from 1): n rows, or 2n with the negatives first.

    Requests of one batch have the same number of steps, the same clip skip and, so that none is changed by another,
    the same `chunks_of`. Everything is encoded at once, each distinct text one time. Raises `UserError` as `chunks_of` does.
    """
    for request in requests:
        chunks_of(pipeline, request)
    steps = requests[0].steps
    prompts = [r.negative for r in requests] * guided + [r.prompt for r in requests]
    rows = [[said(text, step, steps, gone) for step in range(1, steps + 1)] for text in prompts]
    where = {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
    made = encode(pipeline, list(where), requests[0].clip_skip)
    silent = len(requests) * guided if pipeline.config.force_zeros_for_empty_prompt else 0  # SDXL base knows no prompt as zeros
    factors = torch.tensor([float(i >= silent or bool(text.strip())) for i, text in enumerate(prompts)], device=made.pooled.device, dtype=made.pooled.dtype)

    @lru_cache(1)  # most prompts say the same at every step
    def chosen(texts: tuple[int, ...]) -> Conditioning:
        return Conditioning(made.states[list(texts)] * factors[:, None, None], made.pooled[list(texts)] * factors[:, None])

    return lambda step: chosen(tuple(where[row[step - 1]] for row in rows))


def chunks_of(pipeline: StableDiffusionXLPipeline, request: Request) -> int:
    """Chunks that a request's conditioning is long: those of the longer of its two texts at any step.

    Raises `UserError` for texts that are so long, or change so often, that they would fill the memory.
    """
    texts = {said(text, step, request.steps) for text in (request.prompt, request.negative) for step in range(1, request.steps + 1)}
    many = max(len(chunks(pipeline.tokenizer, text)) for text in texts)
    if many > MOST_CHUNKS:
        raise UserError(f"prompt: {many} chunks of {PLACES} tokens are too many; up to {MOST_CHUNKS} are read.")
    if many * len(texts) > MOST_TEXTS:
        raise UserError(f"prompt: it changes {len(texts)} times over {many} chunks of {PLACES} tokens; up to {MOST_TEXTS} chunks are read in all.")
    return many


def encode(pipeline: StableDiffusionXLPipeline, texts: Sequence[Said], clip_skip: int = 2) -> Conditioning:
    """Every text as one row; shorter ones are filled up with empty chunks. `clip_skip` 2 is the layer before the last, as SDXL has it.

    Each text goes through the encoders by itself, so that not even the last bit depends on its company.
    """
    both = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
    many = max(len(chunks(pipeline.tokenizer, text)) for text in texts)
    device = pipeline._execution_device  # once: diffusers looks through every module for it
    rows = []
    for text in texts:
        states, pooled = [], torch.empty(0)
        for tokenizer, encoder in both:
            made = chunks(tokenizer, text)
            made += [Chunk([], [])] * (many - len(made))
            start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
            ids = torch.tensor([[start, *c.ids, end, *[pad] * (PLACES - len(c.ids))] for c in made], device=device)
            weights = torch.tensor([[1.0, *c.weights, *[1.0] * (PLACES + 1 - len(c.ids))] for c in made])
            out = encoder(ids, output_hidden_states=True)
            states.append(_weighted(out.hidden_states[-clip_skip], weights).flatten(0, 1))
            pooled = out[0][0]
        rows.append(Conditioning(torch.cat(states, dim=-1), pooled))
    return Conditioning(torch.stack([row.states for row in rows]), torch.stack([row.pooled for row in rows]))


def _weighted(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """States (m, 77, width) times weights (m, 77), each chunk's mean as before; rows of weight 1 stay bit for bit."""
    rows = [i for i, row in enumerate(weights) if not bool((row == 1).all())]
    states = states.clone()
    for i in rows:
        heavier = states[i] * weights[i].to(states)[:, None]
        ratio = states[i].mean() / heavier.mean()
        states[i] = heavier * (ratio if torch.isfinite(ratio) else 1)
    return states


def chunks(tokenizer, text: Said) -> list[Chunk]:
    """The text's tokens in chunks of at most 75; at least one chunk."""
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    done, now, after_comma = [], Chunk([], []), 0
    for token, weight in _tokens(tokenizer, text):
        if token is None:
            done.append(now)
            now, after_comma = Chunk([], []), 0
            continue
        if len(now.ids) == PLACES:
            cut = after_comma if after_comma and PLACES - after_comma < BACK_TO_COMMA and token != comma else PLACES
            done.append(Chunk(now.ids[:cut], now.weights[:cut]))
            now, after_comma = Chunk(now.ids[cut:], now.weights[cut:]), 0
        now.ids.append(token)
        now.weights.append(weight)
        if token == comma:
            after_comma = len(now.ids)
    return [*done, now] if now.ids or not done else done  # a BREAK at the end begins nothing


def _tokens(tokenizer, text: Said) -> Iterator[tuple[int | None, float]]:
    """Tokens with their weights; `None` where a new chunk begins."""
    for part in text:
        if isinstance(part, Break):
            yield None, 1.0
        else:
            for token in tokenizer(part.text, add_special_tokens=False, verbose=False).input_ids:
                yield token, part.weight
