"""Each shape of a settings text that is found in public pictures gives what it says.

`settings_texts.json` holds the shapes, and what must be read from each.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from core.prompts.dialects import SAMPLER_NAMES, name_weights, translate_names
from core.prompts.infotext import Reading, parse_infotext
from core.schema.samplers import SAMPLERS
from core.schema.types import Hires, Request

SHAPES = json.loads((Path(__file__).parent / "settings_texts.json").read_text(encoding="utf-8"))
KNOWN = {field.name for field in fields(Request)}
HIRES_PARTS = {field.name for field in fields(Hires)}


def list_names(reading: Reading) -> str:
    """Return all that the page would name as not here."""
    loras = " ".join(f"{each['lora']} {each['strength']:g}" for each in reading.loras)
    return f"{reading.fields.get('model')} {loras} {reading.unused.get('TI hashes')}"


@pytest.mark.parametrize("shape", SHAPES, ids=[shape["name"] for shape in SHAPES])
def test_a_public_text_gives_what_it_says(shape: dict[str, Any]) -> None:
    reading, must = parse_infotext(shape["text"]), dict(shape["must"])
    assert all(name in list_names(reading) for name in must.pop("named", [])), list_names(reading)
    assert set(must.pop("unused_names", [])) <= set(reading.unused.values())
    found = {"clip_skip": 2, **reading.fields}
    schedule = must.pop("schedule", None)
    if schedule and "schedule" not in KNOWN:
        must["sampler"] += f" {schedule}"
    hires = must.pop("hires", "unsaid")
    if hires != "unsaid":
        assert (hires is None) == (found.get("hires") is None), found.get("hires")
    for name, value in {} if hires in (None, "unsaid") else hires.items():
        if name in HIRES_PARTS:
            assert found["hires"].get(name) == value, name
    for name, value in must.pop("detail", {}).items():
        assert found["detail"][name] == value, name
    for name, value in must.items():
        if name in KNOWN:
            assert found.get(name) == value, name


@pytest.mark.parametrize("name", SAMPLERS)
def test_our_own_samplers_keep_their_names(name: str) -> None:
    assert " ".join(part for part in translate_names(name) if part) == name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    {
        ("euler_ancestral", ""): ("Euler a", ""),
        ("euler_ancestral", "karras"): ("Euler a", "Karras"),
        ("dpmpp_2m_sde_gpu", "sgm_uniform"): ("DPM++ 2M SDE", "SGM Uniform"),
        ("dpm_2_ancestral", "normal"): ("DPM2 a", "Normal"),
        ("euler_cfg_pp", "beta"): ("Euler CFG++", "Beta"),
        ("uni_pc_bh2", "simple"): ("UniPC", "Simple"),
        ("k_dpmpp_2s_ancestral", "native"): ("DPM++ 2S a", "Normal"),
        ("dpmpp_2m_k", ""): ("DPM++ 2M", "Karras"),
        ("kdpm_2_a", ""): ("DPM2 a", ""),
        ("Euler Ancestral Karras", ""): ("Euler a", "Karras"),
        ("DPM++ 2M SDE Karras", ""): ("DPM++ 2M SDE", "Karras"),
        ("DPM++ 2M Karras", "Exponential"): ("DPM++ 2M", "Exponential"),
        ("ddim_v3", ""): ("DDIM", ""),
        ("dpmpp_2m_sde_gpu_karras", ""): ("DPM++ 2M SDE", "Karras"),
        ("Default", ""): ("", ""),
        ("Undefined", ""): ("", ""),
        ("res_multistep", "karras"): ("res_multistep", "Karras"),
    }.items(),
)
def test_samplers_of_other_tools_get_a1111s_names(theirs: tuple[str, str], ours: tuple[str, str]) -> None:
    assert translate_names(*theirs) == ours
    assert ours[0] in ("", "res_multistep", *SAMPLER_NAMES.values())


def test_weights_are_named_without_folder_and_ending() -> None:
    assert [name_weights(name) for name in ("SDXL\\wai.v14.safetensors", "a/b.CKPT", "plain v1.0")] == [
        "wai.v14",
        "b",
        "plain v1.0",
    ]


@pytest.mark.parametrize(
    ("settings", "tool"),
    [
        ("Version: v1.10.1", "A1111"),
        ("Version: f2.0.1v1.10.1-previous-669-gdfdcbab6", "Forge"),
        ("App: SD.Next, Version: 1a2b3c4", "SD.Next"),
        ("Created Date: 2025-11-28T09:18:43.5269343Z", "Civitai"),
        ("Version: ComfyUI", "ComfyUI"),
        ("Version: Fooocus v2.5.5", "Fooocus"),
        ("Sweetspot: 0.1.0", "Sweetspot"),
    ],
)
def test_the_tool_is_named(settings: str, tool: str) -> None:
    assert parse_infotext(f"a\nSteps: 20, Sampler: Euler, Seed: 1, {settings}").tool == tool


def test_a_sampler_without_a_name_is_told() -> None:
    assert parse_infotext("a\nSteps: 20, Sampler: Undefined, Seed: 1").lost == (
        "sampler: 'Undefined' names none.",
    )


@pytest.mark.parametrize(
    ("written", "own"),
    [
        ("Hires sampler: Euler a, Hires schedule type: Karras", {"sampler": "Euler a", "schedule": "Karras"}),
        ("Hires sampler: DPM++ 2M Karras", {"sampler": "DPM++ 2M", "schedule": "Karras"}),
        ("Hires sampler: Use same sampler, Hires CFG Scale: 5.5", {"cfg": 5.5}),
        ("Hires sampler: Default", {}),
        ("Hires schedule type: Uniform", {"schedule": "Normal"}),
        (
            r'Hires prompt: "a dog, <lora:x:1>\nred", Hires negative prompt: bad',
            {"prompt": "a dog, <lora:x:1>\nred", "negative": "bad"},
        ),
    ],
)
def test_a_second_pass_of_a1111_and_forge_keeps_what_is_its_own(written: str, own: dict) -> None:
    """Without it, the same settings would give another picture than theirs."""
    reading = parse_infotext(
        "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Beta, Seed: 7, Denoising strength: 0.4, "
        f"Hires upscale: 2, Hires upscaler: Latent, {written}"
    )
    assert reading.fields["hires"] == {"factor": 2.0, "upscaler": "Latent", "denoise": 0.4, **own}
    assert not [key for key in reading.unused if key.startswith("Hires")]


def test_no_upscaler_is_a_plain_enlargement() -> None:
    """A1111 enlarges with Lanczos there; the preset's upscaler would give another picture."""
    reading = parse_infotext(
        "a\nSteps: 20, Sampler: Euler, Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: None"
    )
    assert reading.fields["hires"] == {"factor": 2.0, "upscaler": "Lanczos", "denoise": 0.4}


def test_sd_next_is_read_in_its_own_words() -> None:
    reading = parse_infotext(
        "a cat\nNegative prompt: dog\nSteps: 20, Size: 832x1216, Sampler: DPM++ 2M, Sampler sigma: karras, "
        "Seed: 7, CFG scale: 6, CFG rescale: 0.7, Model: wai, Hires scale: 1.5, Hires upscaler: Latent, "
        "Hires strength: 0.4, Hires steps: 12, App: SD.Next, Version: 1a2b3c4"
    )
    assert (reading.fields["sampler"], reading.fields["schedule"]) == ("DPM++ 2M", "Karras")
    assert reading.fields["hires"] == {"factor": 1.5, "upscaler": "Latent", "denoise": 0.4, "steps": 12}
    assert reading.fields["cfg_rescale"] == 0.7


def test_a_comfyui_savers_loras_are_loras() -> None:
    reading = parse_infotext(
        "a cat\nSteps: 20, Sampler: dpmpp_2m_karras, CFG scale: 5, Seed: 1, Size: 832x1216, "
        "Model: x.safetensors, Lora_0 Model name: a style.safetensors, Lora_0 Strength model: 0.8, "
        "Lora_0 Strength clip: 0.5, Version: ComfyUI"
    )
    assert reading.loras == ({"lora": "a style", "strength": 0.8, "text_strength": 0.5},)
    assert reading.tool == "ComfyUI"
    assert (reading.fields["sampler"], reading.fields["schedule"]) == ("DPM++ 2M", "Karras")


def test_fooocus_lora_weights_are_loras() -> None:
    reading = parse_infotext(
        "a cat\nSteps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 7, Size: 896x1152, CFG scale: 4, "
        'Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", Model: juggernautXL, Performance: Speed, '
        'Scheduler: karras, Lora hashes: "a style: 0123456789, other: ab", Lora weights: "a style: 0.5, '
        'other: 1.0", Version: Fooocus v2.5.5'
    )
    assert reading.loras == ({"lora": "a style", "strength": 0.5}, {"lora": "other", "strength": 1.0})
    assert (reading.fields["sampler"], reading.fields["schedule"]) == ("DPM++ 2M SDE", "Karras")
