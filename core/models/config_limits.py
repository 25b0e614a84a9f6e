"""Limits on what a base model's configs and checkpoint declare: no more than SDXL itself.

What a config names is built before a weight is read: a thousand million layers would take for ever
to build.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

CONFIG_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler")
CONFIG_NAMES = ("config.json", "scheduler_config.json")
"""The configs that modules are built from."""
MAX_VALUES = {
    "layers_per_block": 2,
    "transformer_layers_per_block": 10,
    "reverse_transformer_layers_per_block": 10,
    "num_hidden_layers": 32,
    "block_out_channels": 1280,
    "time_embedding_dim": 1280,
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "max_position_embeddings": 77,
    "vocab_size": 50_000,
    "bos_token_id": 50_000,
    "eos_token_id": 50_000,
    "pad_token_id": 50_000,
    "sample_size": 2048,
    "num_train_timesteps": 1000,
    "sigma_max": 1000,
}
"""Field -> the largest number in any part: SDXL's, with room where nothing is built from it."""
MAX_OTHER_VALUE = 256
"""The largest number of any other field."""
MAX_ENTRIES = 8
"""Entries of a list or a table in a config."""
MAX_TENSORS = 10_000
"""Tensors of a checkpoint; SDXL has 2,515. Translating their names searches each block once more
for each name."""


def find_excess(source: Path) -> str | None:
    """Return the first thing that is larger than SDXL's and its limit; `None` if nothing is.

    Reads a diffusers folder's configs, or a checkpoint's list of tensors.
    """
    if source.is_dir():
        return next(
            (
                said
                for part in CONFIG_PARTS
                for file in sorted((source / part).glob("*.json"))
                if file.name in CONFIG_NAMES and (said := _find_config_excess(file))
            ),
            None,
        )
    try:
        with safe_open(source, framework="pt") as opened:
            count = len(opened.keys())
    except (OSError, SafetensorError):  # opening it reports that
        return None
    return f"{count:,} tensors; the limit is {MAX_TENSORS:,}" if count > MAX_TENSORS else None


def _find_config_excess(file: Path) -> str | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    where = f"{file.parent.name}/{file.name}"
    todo = list(found.items()) if isinstance(found, dict) else []
    while todo:
        field, value = todo.pop()
        if str(field).startswith("_"):  # where it is from; nothing is built from it
            continue
        if isinstance(value, list | dict):
            if len(value) > MAX_ENTRIES:
                return f"{len(value):,} entries in {field[:40]} of {where}; the limit is {MAX_ENTRIES}"
            todo += value.items() if isinstance(value, dict) else [(field, each) for each in value]
        most = MAX_VALUES.get(field, MAX_OTHER_VALUE)
        if isinstance(value, int | float) and value > most:
            return f"{str(value)[:20]} as {field[:40]} in {where}; the limit is {most:,}"
    return None
