"""Tells what a safetensors file is by its header alone, whatever its name says.

A checkpoint of SDXL in the original's layout can be opened; anything else is named in a sentence, with
what it lacks. Only names and shapes are read, no tensor.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
"""How the names of the U-Net's weights begin in a checkpoint."""
TEXT_WIDTHS = {768: "SD 1.5", 1024: "SD 2", 1280: "the SDXL refiner"}
"""Width of the text that a U-Net reads -> the family that is not SDXL itself."""
INPUT_CHANNELS = {9: "an inpainting model", 8: "an image-editing model"}
"""Channels that a U-Net takes beside the usual 4 -> what it is for."""
OTHER_MARKS = {
    "double_blocks.": "a Flux model",
    "joint_blocks.": "an SD 3 model",
    "cap_embedder.": "a Lumina model",
    "string_to_param": "an embedding (textual inversion)",
    "emb_params": "an embedding (textual inversion)",
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
}
"""Part of a key -> what its file is."""
LORA_MARKS = ("lora_down.", "lora_up.", "lora_A.", "lora_B.", "hada_w1", "lokr_w", "oft_blocks", ".on_input")
REQUIRED_PARTS = {
    "vae": ("its VAE", "first_stage_model."),
    "text_encoder": ("its text encoders", "conditioner.embedders.0."),
    "text_encoder_2": ("its text encoders", "conditioner.embedders.1."),
}
"""Part of a checkpoint beside its U-Net -> what a person calls it, and how its weights' names begin."""
SCALE_MARKS = ("scaled_fp8", ".scale_weight", ".weight_scale")
"""Part of a key of a checkpoint whose weights are numbers only once they are multiplied."""
VAE_INPUT = "decoder.conv_in.weight"
"""The weight that tells a VAE, (channels, latent channels, 3, 3)."""
LATENT_CHANNELS = 4


def find_obstacle(file: Path) -> str | None:
    """Return why a single file cannot be opened as an SDXL checkpoint: the end of a sentence about it.

    `None` for a checkpoint of SDXL, even if it lacks parts (`find_missing_parts`), and for what only
    opening it can tell. Raises `SafetensorError` for a file that is not one of safetensors.
    """
    shapes = _read_shapes(file)
    if any(mark in key for key in shapes for mark in LORA_MARKS):
        return "is a LoRA. Put it into models/loras"
    if {"clip_l", "clip_g"} & shapes.keys():
        return "is an embedding (textual inversion), not a checkpoint"
    for mark, kind in OTHER_MARKS.items():
        if any(mark in key for key in shapes):
            return f"is {kind}, not a checkpoint of SDXL"
    if not any(key.startswith(UNET_PREFIX) for key in shapes):
        return _describe_part(shapes)
    if any(mark in key for key in shapes for mark in SCALE_MARKS):
        return "holds fp8 weights with scales, which are not read. Use its fp16 or plain fp8 file"
    return _describe_unet(shapes)


def find_missing_parts(file: Path) -> dict[str, str]:
    """Return the parts that a checkpoint lacks beside its U-Net: name -> what a person calls it."""
    shapes = _read_shapes(file)
    return {part: told for part, (told, start) in REQUIRED_PARTS.items() if not _has_any(shapes, (start,))}


def find_vae_obstacle(file: Path) -> str | None:
    """Return why a file cannot be opened as a VAE of SDXL: the end of a sentence about it.

    The VAEs of SD 1.5 and SDXL have the same shapes: no header tells one from the other. Raises
    `SafetensorError` for a file that is not one of safetensors.
    """
    shapes = _read_shapes(file)
    first = next((shape for key, shape in shapes.items() if key.endswith(VAE_INPUT)), ())
    if any(key.startswith(UNET_PREFIX) for key in shapes):
        return "is a checkpoint. Use a VAE alone"
    if len(first) != 4:
        return "is no VAE. Use a .safetensors file of a VAE"
    if first[1] != LATENT_CHANNELS:
        return f"is a VAE of {first[1]} channels. SDXL's has {LATENT_CHANNELS}"
    return None


def _read_shapes(file: Path) -> Shapes:
    with safe_open(file, framework="pt") as opened:
        return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118


def _describe_part(shapes: Shapes) -> str | None:
    """Return what a file without a checkpoint's U-Net is."""
    if _has_any(shapes, ("first_stage_model.", "decoder.conv_in.", "decoder.up_blocks.")):
        return "is a VAE alone. Use a checkpoint with U-Net and text encoders"
    if _has_any(shapes, ("input_blocks.", "down_blocks.", "diffusion_model.")):
        return "is a U-Net alone. Use a checkpoint with its VAE and text encoders"
    if _has_any(shapes, ("text_model.", "conditioner.", "cond_stage_model.", "transformer.")):
        return "is a text encoder alone. Use a checkpoint with U-Net and VAE"
    return "holds no U-Net. Use a checkpoint of SDXL"


def _describe_unet(shapes: Shapes) -> str | None:
    """Return what a U-Net is made for; `None` for SDXL's own, and for another of unknown width."""
    first = shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight", ())
    use = INPUT_CHANNELS.get(first[1]) if len(first) == 4 else None
    widths = {
        shape[1]
        for key, shape in shapes.items()
        if key.startswith(UNET_PREFIX) and key.endswith(".attn2.to_k.weight") and len(shape) == 2
    }
    family = TEXT_WIDTHS.get(next(iter(widths))) if len(widths) == 1 else None
    if family:
        return f"is made for {family}, not for SDXL"
    return f"is {use} ({first[1]} input channels). Use a checkpoint for text to image" if use else None


def _has_any(shapes: Shapes, starts: tuple[str, ...]) -> bool:
    return any(key.startswith(starts) for key in shapes)
