"""What is allowed, in one place: every bound, and the sentence that names the field, the value and the bound."""

import re
from collections.abc import Mapping
from typing import Any

from core.samplers import SAMPLERS
from core.types import Request, UserError

SIDE = (64, 2048)  # pixels
SIDE_STEP = 32  # pixels: the U-Net halves the latents twice, the VAE makes one latent of 8 pixels
PIXELS = 2048 * 1536
ENLARGED = 3584 * 2560  # pixels after hires
STEPS = (1, 150)
CFG = (1.0, 30.0)
SEED = (0, 2**32 - 1)
COUNT = (1, 16)  # pictures a request
PROMPT = 10_000  # characters
STRENGTH = (-5.0, 5.0)  # of a LoRA
STRENGTHS = 64  # of one sweep
PROMPTS = 16
SEEDS = 16
CELLS = 1024  # pictures of one sweep
ROWS = 24  # LoRAs of a transfer study
COLUMNS = 12  # base models of one
TRANSFER_CELLS = 4096  # pictures of one
RANK = (1, 256)
REFERENCES = 32  # pictures of a wanted style
FACTOR = (1.25, 2.0)  # of hires
BUCKET = (32, 8192)  # pixels: sides of a training picture
DATASET_PICTURES = 2000
DATASET_MEMBERS = 10_000  # files of a zip or a folder
DATASET_BYTES = 8 * 2**30  # of all files, unpacked
DATASET_RATIO = 100  # unpacked over packed bytes of a zip; pictures are packed already
DATASET_PIXELS = 8_000_000_000  # of all pictures: what is decoded and written anew
DATASET_FILE = 200_000_000  # bytes of one file: 64 megapixels without compression
PICTURE_PIXELS = 64_000_000
PICTURE_SIDE = 32  # pixels, at least
PICTURE_ASPECT = 16  # longer side over shorter, at most: covering a bucket, a strip would be enlarged to gigapixels
CAPTION = 10_000  # characters
REPEATS = (1, 1000)  # of a picture in an epoch
QUEUE = 32  # requests waiting
SESSIONS = 1000  # whose uploads and results a page remembers; who has been away longest is forgotten first
RUNS_WAITING = 8  # trainings that wait for their turn, of all visitors: nobody has a name here
UPLOAD = "200mb"  # a file
DISK_FLOOR = 2 * 10**9  # bytes that stay free: below it nothing begins that writes
HOUR = 3600
DAY = 24 * HOUR
AGES = {  # seconds without use after which something is swept away: on a hosted Space, at home (`None` is never)
    "files": (DAY, 7 * DAY),  # uploads, and what a page shows
    "cells": (2 * DAY, 90 * DAY),
    "runs": (3 * DAY, None),  # that no process trains
}
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing, halves of UTF-16 pairs."""


def rows() -> list[tuple[str, str]]:
    """What a person may want to know of it beforehand: what is bounded, and how."""

    def between(bounds: tuple[float, float], unit: str = "") -> str:
        return f"{bounds[0]:g} to {bounds[1]:g}{unit}"

    def age(seconds: float | None) -> str:
        return "never" if seconds is None else f"after {seconds // DAY} day{'s' * (seconds >= 2 * DAY)}"

    return [
        ("Picture", f"sides {between(SIDE)} pixels, {PIXELS / 1e6:.1f} megapixels; after hires {ENLARGED / 1e6:.1f}"),
        ("Steps, CFG", f"{between(STEPS)}, {between(CFG)}"),
        ("Pictures at once", between(COUNT)),
        ("Prompt", f"{PROMPT:,} characters"),
        ("LoRA", f"strength {between(STRENGTH)}, rank {between(RANK)}"),
        ("Sweep", f"{STRENGTHS} strengths, {PROMPTS} prompts, {SEEDS} seeds, {CELLS:,} pictures in all"),
        ("Transfer", f"{ROWS} LoRAs, {COLUMNS} base models, {TRANSFER_CELLS:,} pictures in all"),
        ("Training pictures", f"{DATASET_PICTURES:,} of up to {PICTURE_PIXELS / 1e6:g} megapixels, {DATASET_BYTES / 2**30:g} GB unpacked"),
        ("Trainings", f"one at a time, {RUNS_WAITING} more wait"),
        ("Uploaded file", UPLOAD.replace("mb", " MB")),
        ("Requests waiting", f"{QUEUE}"),
        ("Disk", f"nothing begins below {DISK_FLOOR / 1e9:g} GB free"),
        *((f"Unused {name} go", f"{age(hosted)} on a hosted Space, {age(home)} at home") for name, (hosted, home) in AGES.items()),
    ]


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> sentence, for each of `Request`'s fields (and `count`) in `values` that is not allowed.

    Takes anything that a client may send: wrong types, NaN, infinities, huge numbers and texts.
    """
    found: dict[str, str] = {}
    for field, value in values.items():
        if field in CHECKS and (why := CHECKS[field](field, value)):
            found[field] = why
        if field in STAGES and value is not None:
            parts = {f"{field}.{name}": (STAGES[field][name], part) for name, part in vars(value).items() if name in STAGES[field]}
            found |= {name: why for name, (check, part) in parts.items() if (why := check(name, part))}
    if not found and {"width", "height"} <= values.keys():
        width, height, hires = values["width"], values["height"], values.get("hires")
        if width * height > PIXELS:
            found["width"] = f"width x height: {width} x {height} is too large; at most {PIXELS / 1e6:.1f} megapixels."
        elif hires and width * height * hires.factor**2 > ENLARGED:
            found["hires.factor"] = f"hires.factor: {width} x {height} times {hires.factor:g} is too large; at most {ENLARGED / 1e6:.1f} megapixels."
    return found


def check(request: Request) -> None:
    """Raise `UserError` with the first sentence, before any work starts."""
    for sentence in problems(vars(request)).values():
        raise UserError(sentence)


def _whole(low: int, high: int, step: int = 1):
    allowed = f"a whole number from {low} to {high}" + (f" in steps of {step}" if step > 1 else "")

    def why(field: str, value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # false for NaN
        if fits and value == int(value) and value % step == 0:
            return None
        return f"{field}: {_shown(value)} is not allowed; it takes {allowed}."

    return why


def _whole_or_none(low: int, high: int):
    number = _whole(low, high)
    return lambda field, value: None if value is None else number(field, value)


def _denoise(field: str, value: Any) -> str | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and (value == 0 or 0.05 <= value <= 1)
    return None if fits else f"{field}: {_shown(value)} is not allowed; it takes 0, or a number from 0.05 to 1."


def _real(low: float, high: float):
    def why(field: str, value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # false for NaN
        return None if fits else f"{field}: {_shown(value)} is not allowed; it takes a number from {low:g} to {high:g}."

    return why


def _real_or_none(low: float, high: float):
    number = _real(low, high)
    return lambda field, value: None if value is None else number(field, value)


def _text(empty: bool):
    def why(field: str, value: Any) -> str | None:
        if not isinstance(value, str):
            return f"{field}: {_shown(value)} is not text."
        if not empty and not value.strip():
            return f"{field}: it is empty; write what the picture should show."
        if len(value) > PROMPT:
            return f"{field}: {len(value):,} characters are too many; it takes up to {PROMPT:,}."
        if FORBIDDEN.search(value):
            return f"{field}: it holds a control character or half of one; only text and line breaks are allowed."
        return None

    return why


def _texts(most: int):
    one = _text(empty=True)

    def why(field: str, value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            return f"{field}: {_shown(value)} is not a list of texts."
        if len(value) > most:
            return f"{field}: {len(value)} entries are too many; it takes up to {most}."
        return next((problem for part in value if (problem := one(field, part))), None)

    return why


def _switch(field: str, value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{field}: {_shown(value)} is not allowed; it takes true or false."


def _sampler(field: str, value: Any) -> str | None:
    return None if value in list(SAMPLERS) else f"{field}: {_shown(value)} is unknown; it takes {', '.join(SAMPLERS)}."


def _shown(value: Any) -> str:
    """The value as a message may repeat it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


CHECKS = {
    "prompt": _text(empty=False),
    "negative": _text(empty=True),
    "width": _whole(*SIDE, step=SIDE_STEP),
    "height": _whole(*SIDE, step=SIDE_STEP),
    "steps": _whole(*STEPS),
    "cfg": _real(*CFG),
    "sampler": _sampler,
    "seed": _whole(*SEED),
    "clip_skip": _whole(1, 2),
    "count": _whole(*COUNT),
}
STAGES = {
    "hires": {
        "factor": _real(*FACTOR),
        "denoise": _denoise,
        "steps": _whole_or_none(*STEPS),
        "smooth": _real(0, 1),
    },
    "detail": {
        "prompt": _text(empty=True),
        "negative": _text(empty=True),
        "confidence": _real(0.05, 1),
        "largest": _whole(0, 100),
        "least": _real(0, 1),
        "most": _real(0, 1),
        "dilate": _whole(-128, 128),
        "blur": _whole(0, 64),
        "padding": _whole(0, 256),
        "denoise": _real(0.05, 1),
        "steps": _whole_or_none(*STEPS),
        "lora_strength": _real_or_none(*STRENGTH),
    },
    "grain": {
        "amount": _real(0, 0.5),
        "size": _real(0.5, 8),
        "monochrome": _switch,
        "blur": _real(0, 4),
    },
    "expand": {
        "temperature": _real(0.05, 2),
        "top_p": _real(0.05, 1),
        "top_k": _whole(1, 1000),
        "ban": _texts(200),
        "without": _texts(10),
        "max_tags": _whole(1, 100),
    },
}
"""The numbers and texts of the records that `Request` and `Recipe` hold."""

TRAINING = {
    "rank": _whole(*RANK),
    "alpha": _real(0.01, 1024),
    "dropout": _real(0, 0.9),
    "resolution": _whole(64, 2048, step=8),
    "least_side": _whole(32, 2048, step=8),
    "most_side": _whole(64, 8192, step=8),
    "bucket_step": _whole(8, 256, step=8),
    "steps": _whole(1, 100_000),
    "batch": _whole(1, 64),
    "accumulation": _whole(1, 256),
    "rate": _real(2e-7, 10),
    "text_rate": _real(2e-7, 10),
    "weight_decay": _real(0, 10),
    "warmup": _whole(0, 100_000),
    "cycles": _whole(1, 1000),
    "clip": _real(0, 1000),
    "min_snr": _real_or_none(0.1, 100),
    "noise_offset": _real(0, 1),
    "prior_weight": _real(0, 10),
    "ema": _real_or_none(0, 0.9999),
    "clip_skip": _whole(1, 2),
    "keep_tokens": _whole(0, 75),
    "tag_dropout": _real(0, 1),
    "caption_dropout": _real(0, 1),
    "held_out": _whole(0, 100),
    "seed": _whole(*SEED),
    "expected_strength": _real(0.05, STRENGTH[1]),
    "preview_every": _whole(0, 100_000),
    "save_every": _whole(1, 100_000),
}
"""The numbers of a training."""


def training_problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> sentence for each number of a training that is not allowed."""
    found = {name: why for name, check in TRAINING.items() if (why := check(name, values[name]))}
    if not found and not all(0 <= beta < 1 for beta in values["betas"]):
        found["betas"] = f"betas: {_shown(values['betas'])} is not allowed; it takes two numbers from 0 to less than 1."
    return found
