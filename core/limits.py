"""What is allowed, in one place: every bound, and the sentence that names the field, the value and the bound."""

from collections.abc import Mapping
from typing import Any

from core.checks import denoise, real, real_or_none, sampler, shown, switch, text, texts, whole, whole_or_none
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
FOUND = 100  # boxes that a detector finds in a picture
PLACES = 24  # of them that are made anew, each a picture of the model's own size
DETECTOR_SIDE = (32, 2048)  # pixels that a detector shrinks a picture to
DETECTOR_SECONDS = 20  # that a detector which a visitor brought has for one picture
UPSCALER_SECONDS = 60  # that an upscaler which a visitor brought has to be opened
BROUGHT_BYTES = 4 * 2**30  # of memory that they may take
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
TOML_BYTES = 100_000  # of a preset, a run, a dataset's description or the lines of a training's settings
TOML_DEPTH = 8  # dots of a key, lists and tables inside of each other
QUEUE = 32  # requests waiting
DOWNLOADS = 4  # from the Hub at once, on a Space; what several people want at the same time is one
REPO_FILES = 5000  # of a repository of the Hub
SESSIONS = 1000  # whose uploads and results a page remembers; who has been away longest is forgotten first
RUNS_WAITING = 8  # trainings that wait for their turn, of all visitors: nobody has a name here
UPLOAD = (2 * 10**9, DATASET_BYTES)  # bytes of a file: on a hosted Space, where all share 50 GB and the largest LoRAs (rank 128 with both
# text encoders) have 1.8; at home, where nobody is a stranger, a whole dataset's zip
BODY = 4 * 2**20  # bytes of any other request: the largest is a report of 4,096 pictures to publish, or 4,000 uploaded files by name
BODY_VALUES = 200_000  # in it: each becomes a hundred bytes and more, several times
BODY_DEPTH = 32  # lists and tables inside of each other
DISK_FLOOR = 2 * 10**9  # bytes that stay free: below it nothing begins that writes
HOUR = 3600
DAY = 24 * HOUR
AGES = {  # seconds without use after which something is swept away: on a hosted Space, at home (`None` is never)
    "files": (DAY, 7 * DAY),  # uploads, and what a page shows
    "cells": (2 * DAY, 90 * DAY),
    "runs": (3 * DAY, None),  # that no process trains
    "downloads": (DAY, None),  # of the Hub's, that the studio's own tables do not name
}


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
        ("Details", f"up to {PLACES} places a picture; a detector of the Hub has {DETECTOR_SECONDS} seconds a picture and {BROUGHT_BYTES / 2**30:g} GB"),
        ("Prompt", f"{PROMPT:,} characters"),
        ("LoRA", f"strength {between(STRENGTH)}, rank {between(RANK)}"),
        ("Sweep", f"{STRENGTHS} strengths, {PROMPTS} prompts, {SEEDS} seeds, {CELLS:,} pictures in all"),
        ("Transfer", f"{ROWS} LoRAs, {COLUMNS} base models, {TRANSFER_CELLS:,} pictures in all"),
        ("Training pictures", f"{DATASET_PICTURES:,} of up to {PICTURE_PIXELS / 1e6:g} megapixels, {DATASET_BYTES / 2**30:g} GB unpacked"),
        ("Trainings", f"one at a time, {RUNS_WAITING} more wait"),
        ("Uploaded file", f"{UPLOAD[0] / 1e9:g} GB on a hosted Space, {UPLOAD[1] / 2**30:g} GB at home"),
        ("Any other request", f"{BODY / 2**20:g} MB, {BODY_VALUES:,} values"),
        ("TOML", f"{TOML_BYTES / 1000:g} kB, fewer than {TOML_DEPTH} dots in a key"),
        ("Requests waiting", f"{QUEUE}"),
        ("Downloads", f"{DOWNLOADS} at once on a hosted Space, from repositories of up to {REPO_FILES:,} files"),
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


CHECKS = {
    "prompt": text(PROMPT, empty=False),
    "negative": text(PROMPT),
    "width": whole(*SIDE, step=SIDE_STEP),
    "height": whole(*SIDE, step=SIDE_STEP),
    "steps": whole(*STEPS),
    "cfg": real(*CFG),
    "sampler": sampler,
    "seed": whole(*SEED),
    "clip_skip": whole(1, 2),
    "count": whole(*COUNT),
}
STAGES = {
    "hires": {
        "factor": real(*FACTOR),
        "denoise": denoise,
        "steps": whole_or_none(*STEPS),
        "smooth": real(0, 1),
    },
    "detail": {
        "prompt": text(PROMPT),
        "negative": text(PROMPT),
        "confidence": real(0.05, 1),
        "largest": whole(0, PLACES),
        "least": real(0, 1),
        "most": real(0, 1),
        "dilate": whole(-128, 128),
        "blur": whole(0, 64),
        "padding": whole(0, 256),
        "denoise": real(0.05, 1),
        "steps": whole_or_none(*STEPS),
        "lora_strength": real_or_none(*STRENGTH),
    },
    "grain": {
        "amount": real(0, 0.5),
        "size": real(0.5, 8),
        "monochrome": switch,
        "blur": real(0, 4),
    },
    "expand": {
        "temperature": real(0.05, 2),
        "top_p": real(0.05, 1),
        "top_k": whole(1, 1000),
        "ban": texts(200, PROMPT),
        "without": texts(10, PROMPT),
        "max_tags": whole(1, 100),
    },
}
"""The numbers and texts of the records that `Request` and `Recipe` hold."""

TRAINING = {
    "rank": whole(*RANK),
    "alpha": real(0.01, 1024),
    "dropout": real(0, 0.9),
    "resolution": whole(64, 2048, step=8),
    "least_side": whole(32, 2048, step=8),
    "most_side": whole(64, 8192, step=8),
    "bucket_step": whole(8, 256, step=8),
    "steps": whole(1, 100_000),
    "batch": whole(1, 64),
    "accumulation": whole(1, 256),
    "rate": real(2e-7, 10),
    "text_rate": real(2e-7, 10),
    "weight_decay": real(0, 10),
    "warmup": whole(0, 100_000),
    "cycles": whole(1, 1000),
    "clip": real(0, 1000),
    "min_snr": real_or_none(0.1, 100),
    "noise_offset": real(0, 1),
    "prior_weight": real(0, 10),
    "ema": real_or_none(0, 0.9999),
    "clip_skip": whole(1, 2),
    "keep_tokens": whole(0, 75),
    "tag_dropout": real(0, 1),
    "caption_dropout": real(0, 1),
    "held_out": whole(0, 100),
    "seed": whole(*SEED),
    "expected_strength": real(0.05, STRENGTH[1]),
    "preview_every": whole(0, 100_000),
    "save_every": whole(1, 100_000),
}
"""The numbers of a training."""


def training_problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> sentence for each number of a training that is not allowed."""
    found = {name: why for name, check in TRAINING.items() if (why := check(name, values[name]))}
    if not found and not all(0 <= beta < 1 for beta in values["betas"]):
        found["betas"] = f"betas: {shown(values['betas'])} is not allowed; it takes two numbers from 0 to less than 1."
    return found
