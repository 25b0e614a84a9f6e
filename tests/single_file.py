"""Write a diffusers SDXL folder as one checkpoint in the original layout (SAI, A1111).

It is the inverse of what diffusers reads. The names are those that diffusers 0.42.1 translates in
`loaders/single_file_utils.py`. Widths and depths come from the folder, with two limits of
diffusers' own: at most ten input blocks (it finds block 1 also in `input_blocks.10`), and two text
encoders of different widths (it tells them apart by that).
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET_KEYS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_KEYS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_KEYS = {
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"up_blocks\.(\d+)\.resnets": r"up.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d+)\.upsamplers\.0": r"up.\1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    "group_norm": "norm",
    r"to_out\.0": "proj_out",
    r"to_([qkv])": r"\1",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
OPEN_CLIP_KEYS = {
    r"embeddings\.token_embedding": "token_embedding",
    r"embeddings\.position_embedding\.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    r"encoder\.layers": "transformer.resblocks",
    r"layer_norm(\d)": r"ln_\1",
    "self_attn": "attn",
    "fc1": "c_fc",
    "fc2": "c_proj",
}

Weights = dict[str, torch.Tensor]


def write_checkpoint(folder: Path, file: Path) -> None:
    """Write the diffusers SDXL `folder` to `file`, with the same values and precision."""
    parts = {
        "model.diffusion_model.": _convert_unet(*_read_part(folder / "unet")),
        "first_stage_model.": _convert_vae(*_read_part(folder / "vae")),
        "conditioner.embedders.0.transformer.text_model.": _convert_text_encoder(
            *_read_part(folder / "text_encoder")
        ),
        "conditioner.embedders.1.model.": _convert_open_clip(*_read_part(folder / "text_encoder_2")),
    }
    save_file(
        {
            prefix + key: value.contiguous()
            for prefix, weights in parts.items()
            for key, value in weights.items()
        },
        file,
    )


def _read_part(folder: Path) -> tuple[Weights, dict]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file), json.loads((folder / "config.json").read_text())


def _convert_unet(weights: Weights, config: dict) -> Weights:
    layers = config["layers_per_block"]

    def convert_key(key: str) -> str:
        parts = re.fullmatch(
            r"((?:down_|up_|mid_)blocks?(?:\.\d+)?\.[a-z]+\.\d+|[a-z_]+(?:\.linear_\d)?)\.(.*)", key
        )
        assert parts, key
        where, inner = parts.groups()
        if where in UNET_KEYS:
            return f"{UNET_KEYS[where]}.{inner}"
        side, *block, kind, layer = where.split(".")
        layer = int(layer)
        if kind == "resnets":
            inner = re.sub("^[^.]+", lambda match: RESNET_KEYS[match[0]], inner)
        if side == "mid_block":
            return f"middle_block.{2 * layer + (kind == 'attentions')}.{inner}"
        block = int(block[0])
        # A block is its layers and then, as one more, its downsampler; block 0 is conv_in.
        if side == "down_blocks":
            if kind == "downsamplers":
                return f"input_blocks.{1 + block * (layers + 1) + layers}.0.{inner.replace('conv', 'op')}"
            return f"input_blocks.{1 + block * (layers + 1) + layer}.{int(kind == 'attentions')}.{inner}"
        # A block is its layers and one more; the upsampler comes last within the last.
        if kind == "upsamplers":
            after = 1 + config["up_block_types"][block].startswith("CrossAttn")
            return f"output_blocks.{block * (layers + 1) + layers}.{after}.{inner}"
        return f"output_blocks.{block * (layers + 1) + layer}.{int(kind == 'attentions')}.{inner}"

    return {convert_key(key): value for key, value in weights.items()}


def _convert_vae(weights: Weights, config: dict) -> Weights:
    last = len(config["up_block_types"]) - 1
    found = {}
    for key, value in weights.items():
        # The original numbers blocks from the picture.
        key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up_blocks.{last - int(match[1])}", key)
        name = _rename_key(key, VAE_KEYS)
        # The original has 1x1 convolutions.
        found[name] = value[:, :, None, None] if ".attn_1." in name and value.ndim == 2 else value
    return found


def _convert_text_encoder(weights: Weights, config: dict) -> Weights:
    return {key.removeprefix("text_model."): value for key, value in weights.items()} | {
        "embeddings.position_ids": _position_ids(config)
    }


def _convert_open_clip(weights: Weights, config: dict) -> Weights:
    weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    found = {"text_projection": weights.pop("text_projection.weight").T}
    for key, value in weights.items():
        if ".q_proj." in key:  # q, k and v in one, in this order
            fused = torch.cat(
                [weights[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            )
            found[_rename_key(key, OPEN_CLIP_KEYS).replace("q_proj.", "in_proj_")] = fused
        elif ".k_proj." not in key and ".v_proj." not in key:
            found[_rename_key(key, OPEN_CLIP_KEYS)] = value
    return found


def _position_ids(config: dict) -> torch.Tensor:
    return torch.arange(config["max_position_embeddings"])[None]  # the original has them; nothing reads them


def _rename_key(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = re.sub(rf"(?<![^.]){old}(?![^.])", new, key)
    return key
