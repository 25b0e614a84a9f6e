"""How large a base model may say that it is: no number of its configs is larger than SDXL's own, and neither is its list of tensors.

What a config names is built before a weight is looked at: a thousand million layers would be built for ever.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler")
NAMES = ("config.json", "scheduler_config.json")
"""Of the configs that things are built from."""
MOST = {
    "layers_per_block": 2, "transformer_layers_per_block": 10, "reverse_transformer_layers_per_block": 10, "num_hidden_layers": 32,
    "block_out_channels": 1280, "time_embedding_dim": 1280, "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816,
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "max_position_embeddings": 77,
    "vocab_size": 50_000, "bos_token_id": 50_000, "eos_token_id": 50_000, "pad_token_id": 50_000,
    "sample_size": 2048, "num_train_timesteps": 1000, "sigma_max": 1000,
}  # fmt: skip
"""Field -> the largest number, of all parts: SDXL's, with some room where nothing is built by it."""
OTHERS = 256
"""The largest number of any other field."""
ENTRIES = 8
"""Of a list or a table in a config."""
TENSORS = 10_000
"""Of a checkpoint; SDXL has 2,515. What translates their names looks at each block once more for each name."""


def outsized(source: Path) -> str | None:
    """What is larger than SDXL's in a diffusers folder's configs, or in a checkpoint: the first of it, and the bound; `None` if nothing is."""
    if source.is_dir():
        return next((said for part in PARTS for file in sorted((source / part).glob("*.json")) if file.name in NAMES and (said := _of_config(file))), None)
    try:
        with safe_open(source, framework="pt") as opened:
            count = len(opened.keys())
    except (OSError, SafetensorError):  # whoever opens it says so
        return None
    return f"{count:,} tensors; it takes up to {TENSORS:,}" if count > TENSORS else None


def _of_config(file: Path) -> str | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    where = f"{file.parent.name}/{file.name}"
    todo = list(found.items()) if isinstance(found, dict) else []
    while todo:
        field, value = todo.pop()
        if str(field).startswith("_"):  # whom it is from; nothing is built by it
            continue
        if isinstance(value, list | dict):
            if len(value) > ENTRIES:
                return f"{len(value):,} entries in {field[:40]} of {where}; it takes up to {ENTRIES}"
            todo += value.items() if isinstance(value, dict) else [(field, each) for each in value]
        most = MOST.get(field, OTHERS)
        if isinstance(value, int | float) and value > most:
            return f"{str(value)[:20]} as {field[:40]} in {where}; it takes up to {most:,}"
    return None
