"""Makes a picture as each tool saves it, with that tool's own layout of metadata."""

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 832x1216, Model: wai"
INFOTEXT = f"a cat 笑顔\nNegative prompt: a dog\n{SETTINGS}"


def save_texts(file: Path, texts: dict[str, str], size: tuple[int, int] = (8, 8)) -> Path:
    """Save a PNG with text chunks before its pixels."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", size, "red").save(file, "PNG", pnginfo=info)
    return file


def save_comment(file: Path, kind: str, comment: bytes | str, **fields: str) -> Path:
    """Save a JPEG, WebP or AVIF with EXIF's UserComment, and other fields of EXIF by their names."""
    exif = Image.Exif()
    if comment:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    for name, value in fields.items():
        exif[ExifTags.Base[name]] = value
    Image.new("RGB", (16, 16), "red").save(file, kind, exif=exif.tobytes())
    return file


def save_text_after_pixels(file: Path, text: str, kind: bytes = b"tEXt") -> Path:
    """Save a PNG with a chunk of text after its pixels."""
    save_texts(file, {})
    data = {
        b"tEXt": b"parameters\0" + text.encode("latin-1", "replace"),
        b"zTXt": b"parameters\0\0" + zlib.compress(text.encode("latin-1", "replace")),
        b"iTXt": b"parameters\0\1\0\0\0" + zlib.compress(text.encode()),
    }[kind]
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    whole = file.read_bytes()
    file.write_bytes(whole[:-12] + chunk + whole[-12:])
    return file


def save_alpha_text(file: Path, text: str, packed: bool, length: int | None = None) -> Path:
    """Save a stealth PNG: the text in the lowest bits of alpha, column by column."""
    bits = _hide_text(b"stealth_pngcomp" if packed else b"stealth_pnginfo", text, packed, length)
    width = bits.size // 64 + 1
    pixels = np.full((64, width, 4), 255, np.uint8)
    alpha = np.full(64 * width, 254, np.uint8)
    alpha[: bits.size] |= bits
    pixels[..., 3] = alpha.reshape(width, 64).T
    Image.fromarray(pixels).save(file, "PNG")
    return file


def save_colour_text(file: Path, text: str, packed: bool) -> Path:
    """Save a stealth PNG: the text in the lowest bits of red, green and blue, column by column."""
    bits = _hide_text(b"stealth_rgbcomp" if packed else b"stealth_rgbinfo", text, packed)
    width = bits.size // (3 * 64) + 1
    colours = np.full(3 * 64 * width, 254, np.uint8)
    colours[: bits.size] |= bits
    Image.fromarray(colours.reshape(width, 64, 3).transpose(1, 0, 2).copy()).save(file, "PNG")
    return file


def _hide_text(mark: bytes, text: str, packed: bool, length: int | None = None) -> np.ndarray:
    """Return the bits of a hidden text, which may claim another length."""
    data = gzip.compress(text.encode()) if packed else text.encode()
    whole = mark + struct.pack(">I", 8 * len(data) if length is None else length) + data
    return np.unpackbits(np.frombuffer(whole, np.uint8))


def build_node(kind: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of ComfyUI's graph."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


COMFYUI_GRAPH = {
    "1": build_node("CheckpointLoaderSimple", ckpt_name="SDXL\\wai.safetensors"),
    "2": build_node(
        "LoraLoader",
        lora_name="a style.safetensors",
        strength_model=0.8,
        strength_clip=0.5,
        model=["1", 0],
        clip=["1", 1],
    ),
    "3": build_node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["2", 1]),
    "4": build_node("CLIPTextEncode", text="a cat 笑顔", clip=["3", 0]),
    "5": build_node("CLIPTextEncode", text=["12", 0], clip=["3", 0]),
    "6": build_node("EmptyLatentImage", width=832, height=1216, batch_size=1),
    "7": build_node(
        "KSampler",
        seed=7,
        steps=20,
        cfg=5.0,
        sampler_name="euler_ancestral",
        scheduler="karras",
        denoise=1.0,
        model=["2", 0],
        positive=["4", 0],
        negative=["5", 0],
        latent_image=["6", 0],
    ),
    "8": build_node("LatentUpscaleBy", upscale_method="nearest-exact", scale_by=1.5, samples=["7", 0]),
    "9": build_node(
        "KSampler",
        seed=8,
        steps=12,
        cfg=5.0,
        sampler_name="euler_ancestral",
        scheduler="karras",
        denoise=0.5,
        model=["2", 0],
        positive=["4", 0],
        negative=["5", 0],
        latent_image=["8", 0],
    ),
    "10": build_node("VAEDecode", samples=["9", 0], vae=["1", 2]),
    "11": build_node("SaveImage", filename_prefix="x", images=["10", 0]),
    "12": build_node("String Literal", string="a dog"),
}
COMFYUI_CUSTOM_GRAPH = {
    "1": build_node("UNETLoader", unet_name="wai.safetensors", weight_dtype="default"),
    "2": build_node(
        "Power Lora Loader (rgthree)",
        lora_1={"on": True, "lora": "a style.safetensors", "strength": 0.8},
        lora_2={"on": False, "lora": "off.safetensors", "strength": 1},
        model=["1", 0],
        clip=["3", 0],
    ),
    "3": build_node("DualCLIPLoader", clip_name1="l", clip_name2="g", type="sdxl"),
    "4": build_node(
        "CLIPTextEncodeSDXL", text_g="a cat", text_l="a cat", width=1024, height=1024, clip=["2", 1]
    ),
    "5": build_node("CLIPTextEncode", text="a dog", clip=["2", 1]),
    "6": build_node(
        "ControlNetApplyAdvanced", positive=["4", 0], negative=["5", 0], strength=0.5, image=["20", 0]
    ),
    "7": build_node("RescaleCFG", multiplier=0.7, model=["2", 0]),
    "8": build_node("CFGGuider", cfg=5, model=["7", 0], positive=["6", 0], negative=["6", 1]),
    "9": build_node("RandomNoise", noise_seed=18446744073709551615),
    "10": build_node("KSamplerSelect", sampler_name="dpmpp_2m"),
    "11": build_node("KarrasScheduler", steps=20, sigma_max=14.6, sigma_min=0.03, rho=7),
    "12": build_node("EmptyLatentImage", width=["21", 0], height=["21", 1], batch_size=1),
    "13": build_node(
        "SamplerCustomAdvanced",
        noise=["9", 0],
        guider=["8", 0],
        sampler=["10", 0],
        sigmas=["11", 0],
        latent_image=["12", 0],
    ),
    "14": build_node("VAEDecode", samples=["13", 0], vae=["22", 0]),
    "15": build_node("UpscaleModelLoader", model_name="4x-UltraSharp.pth"),
    "16": build_node("ImageUpscaleWithModel", upscale_model=["15", 0], image=["14", 0]),
    "17": build_node("ImageScaleBy", upscale_method="lanczos", scale_by=0.5, image=["16", 0]),
    "18": build_node("FaceDetailer", image=["17", 0], steps=20, cfg=5, sampler_name="euler", guide_size=512),
    "19": build_node("SaveImage", images=["18", 0]),
    "20": build_node("LoadImage", image="pose.png"),
    "21": build_node("SDXL Size", width=832, height=1216),
    "22": build_node("VAELoader", vae_name="sdxl_vae.safetensors"),
}
SWARMUI = {
    "sui_image_params": {
        "prompt": "a cat 笑顔",
        "negativeprompt": "a dog",
        "model": "SDXL/wai",
        "seed": 7,
        "steps": 20,
        "cfgscale": 5.0,
        "aspectratio": "Custom",
        "width": 832,
        "height": 1216,
        "sampler": "euler_ancestral",
        "scheduler": "karras",
        "loras": ["styles/a style"],
        "loraweights": ["0.8"],
        "refinercontrolpercentage": 0.4,
        "refinermethod": "PostApply",
        "refinerupscale": 1.5,
        "refinerupscalemethod": "model-4x-UltraSharp.pth",
        "automaticvae": True,
        "swarm_version": "0.9.6.2",
    },
    "sui_extra_data": {"date": "2025-01-01", "generation_time": "1.0 sec"},
}
INVOKEAI = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a cat 笑顔",
    "negative_prompt": "a dog",
    "positive_style_prompt": "",
    "negative_style_prompt": "",
    "width": 832,
    "height": 1216,
    "seed": 7,
    "rand_device": "cpu",
    "cfg_scale": 5.0,
    "cfg_rescale_multiplier": 0.0,
    "steps": 20,
    "scheduler": "euler_a",
    "clip_skip": 0,
    "model": {"key": "1-2", "hash": "blake3:ab", "name": "wai", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"key": "3", "name": "a style", "base": "sdxl", "type": "lora"}, "weight": 0.8}],
    "app_version": "5.6.0",
}
NOVELAI = {
    "Title": "NovelAI generated image",
    "Description": "{a cat} 笑顔",
    "Software": "NovelAI",
    "Source": "NovelAI Diffusion V4 37442FCA",
    "Comment": json.dumps(
        {
            "prompt": "{a cat} 笑顔",
            "steps": 20,
            "height": 1216,
            "width": 832,
            "scale": 5.0,
            "uncond_scale": 0.0,
            "cfg_rescale": 0.0,
            "seed": 7,
            "n_samples": 1,
            "noise_schedule": "karras",
            "sampler": "k_euler_ancestral",
            "sm": False,
            "uc": "a dog",
            "request_type": "PromptGenerateRequest",
            "signed_hash": "x",
            "v4_prompt": {
                "caption": {
                    "base_caption": "{a cat} 笑顔",
                    "char_captions": [{"char_caption": "1.5::a girl::", "centers": [{"x": 0.5, "y": 0.5}]}],
                }
            },
            "v4_negative_prompt": {"caption": {"base_caption": "a dog", "char_captions": []}},
        }
    ),
}
FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "wai",
    "base_model_hash": "0123456789",
    "clip_skip": 2,
    "full_negative_prompt": ["a dog"],
    "full_prompt": ["a cat 笑顔"],
    "guidance_scale": 5.0,
    "lora_combined_1": "a style : 0.8",
    "loras": [["a style", 0.8, "ab"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "a dog",
    "performance": "Speed",
    "prompt": "a cat 笑顔",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(832, 1216)",
    "sampler": "euler_ancestral",
    "scheduler": "karras",
    "seed": "7",
    "sharpness": 2.0,
    "steps": 20,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}
