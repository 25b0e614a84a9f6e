"""All limits, in one place."""

SIDE = (64, 2048)  # pixels
SIDE_STEP = 8  # pixels: a latent stands for 8, and the U-Net halves odd sides, too
PIXELS = 2048 * 1536
STAGE_SIDE = (8, 8192)  # pixels of a picture that a stage makes, such as hires; the VAE makes one latent of 8
HIRES_PIXELS = 3584 * 2560  # pixels after hires
STEPS = (1, 150)
CFG = (1.0, 30.0)
SEED = (0, 2**64 - 1)
RANDOM_SEEDS = 2**32  # from 0, of which any is drawn: torch's generator uses no more bits of a seed
PICTURE_COUNT = (1, 16)  # pictures of one request
PROMPT_LENGTH = 10_000  # characters
STRENGTH = (-5.0, 5.0)  # of a LoRA
STRENGTHS = 64  # of one sweep
PROMPTS = 16
SEEDS = 16
SWEEP_CELLS = 1024  # pictures of one sweep
TRANSFER_LORAS = 24  # LoRAs of a transfer study
TRANSFER_MODELS = 12  # base models of a transfer study
TRANSFER_CELLS = 4096  # pictures of a transfer study
RANK = (1, 256)
REFERENCES = 32  # pictures of a target style
HIRES_FACTOR = (1.0, 4.0)  # new side over old side
DETECTED_BOXES = 100  # boxes that a detector finds in a picture
DETAIL_REGIONS = 24  # boxes that are denoised again, each at the model's own size
DETECTOR_SIDE = (32, 2048)  # pixels that a detector shrinks a picture to
DETECTOR_SECONDS = 20  # for one picture, with a visitor's own detector
UPSCALER_SECONDS = 60  # for opening a visitor's own upscaler
SANDBOX_BYTES = 4 * 2**30  # of memory, for a visitor's own detector or upscaler
BUCKET_SIDE = (32, 8192)  # pixels: sides of a training picture
DATASET_PICTURES = 2000
DATASET_MEMBERS = 10_000  # files of a zip or a folder
DATASET_BYTES = 8 * 2**30  # of all files, unpacked
DATASET_RATIO = 100  # unpacked over packed bytes of a zip; pictures are packed already
DATASET_PIXELS = 8_000_000_000  # of all pictures, which are decoded and written again
DATASET_FILE_BYTES = 200_000_000  # bytes of one file: 64 megapixels without compression
PICTURE_PIXELS = 64_000_000
PICTURE_SIDE = 32  # pixels, at least
# Longer side over shorter side, at most: to cover a bucket, a strip would grow to gigapixels.
PICTURE_ASPECT = 16
CAPTION_LENGTH = 10_000  # characters
REPEATS = (1, 1000)  # of a picture in an epoch
TOML_BYTES = 100_000  # of a preset, a run, a dataset's description, or lines of training settings
TOML_DEPTH = 8  # dots of a key, or lists and tables inside each other
QUEUE_LENGTH = 32  # requests waiting
DOWNLOADS = 4  # at once from the Hub, on a Space; several people who want the same thing share one
REPO_FILES = 5000  # files of a repository on the Hub
SESSIONS = 1000  # whose uploads and results a page remembers; the one unused for longest goes first
RUNS_WAITING = 8  # trainings in the queue, of all visitors together: nobody has a name here
# Bytes of a file, on a hosted Space and at home. On a Space, all visitors share 50 GB, and the
# largest LoRAs (rank 128 with both text encoders) have 1.8 GB. At home, where nobody is a stranger,
# a whole dataset's zip is allowed.
UPLOAD_BYTES = (2 * 10**9, DATASET_BYTES)
# Bytes of any other request. The largest is a report of 4,096 pictures to publish, or 4,000
# uploaded files by name.
BODY_BYTES = 4 * 2**20
BODY_VALUES = 200_000  # values of a request: each takes a hundred bytes and more, several times
BODY_DEPTH = 32  # lists and tables inside each other
DISK_FLOOR = 2 * 10**9  # free bytes below which nothing starts that writes
HOUR = 3600
DAY = 24 * HOUR
# Seconds without use after which something is deleted, on a hosted Space and at home; `None` is
# never.
UNUSED_AGES = {
    "files": (DAY, 7 * DAY),  # uploads, and what a page shows
    "cells": (2 * DAY, 90 * DAY),
    "runs": (3 * DAY, None),  # that no process trains
    "downloads": (DAY, None),  # from the Hub, that the studio's own tables do not name
}


def list_limits() -> list[tuple[str, str]]:
    """Return the limits that a person may want to know beforehand, as (what is limited, how)."""

    def format_range(bounds: tuple[float, float], unit: str = "") -> str:
        return f"{bounds[0]:g} to {bounds[1]:g}{unit}"

    def format_age(seconds: float | None) -> str:
        return "never" if seconds is None else f"after {seconds // DAY} day{'s' * (seconds >= 2 * DAY)}"

    return [
        (
            "Image",
            f"sides {format_range(SIDE)} pixels in steps of {SIDE_STEP}, {PIXELS / 1e6:.1f} megapixels; "
            f"after hires {HIRES_PIXELS / 1e6:.1f}, up to {HIRES_FACTOR[1]:g} times a side",
        ),
        ("Steps, CFG", f"{format_range(STEPS)}, {format_range(CFG)}"),
        ("Images at once", format_range(PICTURE_COUNT)),
        (
            "Details",
            f"up to {DETAIL_REGIONS} faces per image; a detector from Hugging Face gets "
            f"{DETECTOR_SECONDS} seconds per image and {SANDBOX_BYTES / 2**30:g} GB",
        ),
        ("Prompt", f"{PROMPT_LENGTH:,} characters"),
        ("LoRA", f"strength {format_range(STRENGTH)}, rank {format_range(RANK)}"),
        (
            "Sweep",
            f"{STRENGTHS} strengths, {PROMPTS} prompts, {SEEDS} seeds, {SWEEP_CELLS:,} images in total",
        ),
        (
            "Transfer",
            f"{TRANSFER_LORAS} LoRAs, {TRANSFER_MODELS} base models, {TRANSFER_CELLS:,} images in total",
        ),
        (
            "Training images",
            f"{DATASET_PICTURES:,} of up to {PICTURE_PIXELS / 1e6:g} megapixels, "
            f"{DATASET_BYTES / 2**30:g} GB unpacked",
        ),
        ("Trainings", f"one at a time, up to {RUNS_WAITING} more in the queue"),
        (
            "Uploaded file",
            f"{UPLOAD_BYTES[0] / 1e9:g} GB on a hosted Space, {UPLOAD_BYTES[1] / 2**30:g} GB at home",
        ),
        ("Any other request", f"{BODY_BYTES / 2**20:g} MB, {BODY_VALUES:,} values"),
        ("TOML", f"{TOML_BYTES / 1000:g} kB, fewer than {TOML_DEPTH} dots in a key"),
        ("Requests waiting", f"{QUEUE_LENGTH}"),
        (
            "Downloads",
            f"{DOWNLOADS} at once on a hosted Space, from repositories of up to {REPO_FILES:,} files",
        ),
        ("Disk", f"no job starts below {DISK_FLOOR / 1e9:g} GB free"),
        *(
            (
                f"Unused {name} are deleted",
                f"{format_age(hosted)} on a hosted Space, {format_age(home)} at home",
            )
            for name, (hosted, home) in UNUSED_AGES.items()
        ),
    ]
