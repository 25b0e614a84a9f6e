"""A second pass in ComfyUI's graph becomes hires, with all its own; what has no place here is named."""

import json
from typing import Any

import pytest

from core.prompts.infotext import Reading
from core.prompts.png_metadata import _read_settings
from tests.prompts.tool_pictures import COMFYUI_GRAPH, build_node

FIRST, SECOND = "7", "9"


def read_graph(changes: dict[str, Any], second: dict[str, Any] | None = None) -> Reading:
    """Read the graph with some nodes changed, and some inputs of its second pass; both have one seed."""
    sampler = COMFYUI_GRAPH[SECOND]
    inputs = {**sampler["inputs"], "seed": 7, **(second or {})}
    graph = {**COMFYUI_GRAPH, SECOND: {**sampler, "inputs": inputs}, **changes}
    reading = _read_settings({"prompt": json.dumps(graph)})
    assert isinstance(reading, Reading)
    assert reading.lost == ()
    return reading


BASE_HIRES = {"upscaler": "Latent", "factor": 1.5, "denoise": 0.5, "steps": 12}


def test_a_second_pass_keeps_its_own_prompts_sampler_and_cfg() -> None:
    """Else a person gets the first pass's picture twice, and not what was published."""
    texts = {
        "20": build_node("CLIPTextEncode", text="a lynx"),
        "21": build_node("CLIPTextEncode", text="fog"),
    }
    own = {"positive": ["20", 0], "negative": ["21", 0], "cfg": 3.5, "sampler_name": "dpmpp_2m"}
    reading = read_graph(texts, {**own, "scheduler": "sgm_uniform"})
    assert reading.fields["hires"] == {
        **BASE_HIRES,
        "prompt": "a lynx <lora:a style:0.5:0.8>",
        "negative": "fog",
        "sampler": "DPM++ 2M",
        "schedule": "SGM Uniform",
        "cfg": 3.5,
    }
    assert (reading.fields["prompt"], reading.unused) == ("a cat 笑顔", {})


def test_a_second_pass_without_the_loras_has_none_here() -> None:
    """They stay on in our second pass unless it has a prompt of its own."""
    reading = read_graph({}, {"model": ["1", 0]})
    assert reading.fields["hires"] == {**BASE_HIRES, "prompt": "a cat 笑顔"}
    assert reading.loras


def test_what_a_second_pass_cannot_have_here_is_named() -> None:
    other = {
        "20": build_node("CheckpointLoaderSimple", ckpt_name="other.safetensors"),
        "21": build_node("RescaleCFG", multiplier=0.7, model=["20", 0]),
        "22": build_node("ConditioningZeroOut", conditioning=["4", 0]),
    }
    reading = read_graph(other, {"model": ["21", 0], "seed": 8, "negative": ["22", 0]})
    assert reading.unused == {
        "Hires checkpoint": "other.safetensors",
        "Hires seed": "8",
        "Hires RescaleCFG": "0.7",
        "Hires without a negative prompt": "on",
    }
    assert reading.fields["model"] == "wai"


def test_a_second_pass_at_the_same_size_is_one() -> None:
    reading = read_graph({}, {"latent_image": [FIRST, 0]})
    assert reading.fields["hires"] == {**BASE_HIRES, "factor": 1.0}


@pytest.mark.parametrize(
    ("changes", "second"),
    [
        ({"20": build_node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")}, {"model": ["20", 0]}),
        ({}, {"add_noise": "disable", "start_at_step": 16, "steps": 20}),
    ],
    ids=["refiner", "goes on"],
)
def test_a_refiner_is_named_and_no_hires(changes: dict[str, Any], second: dict[str, Any]) -> None:
    reading = read_graph(changes, {"latent_image": [FIRST, 0], **second})
    assert ("hires" in reading.fields, reading.unused) == (False, {"KSampler": "on"})


def test_a_second_pass_that_starts_at_a_step_takes_the_rest() -> None:
    reading = read_graph({}, {"start_at_step": 12, "steps": 20, "end_at_step": 10000})
    assert reading.fields["hires"] == {**BASE_HIRES, "denoise": 0.4, "steps": 8}


@pytest.mark.parametrize(
    "split", [{"kind": "SplitSigmas", "step": 12}, {"kind": "SplitSigmasDenoise", "denoise": 0.4}]
)
def test_levels_that_were_split_give_the_second_passs_share(split: dict[str, Any]) -> None:
    nodes = {
        "20": build_node("BasicScheduler", scheduler="karras", steps=20, denoise=1.0, model=["2", 0]),
        "21": build_node(**split, sigmas=["20", 0]),
        "22": build_node("KSamplerSelect", sampler_name="euler_ancestral"),
        SECOND: build_node(
            "SamplerCustom",
            add_noise=True,
            noise_seed=7,
            cfg=5.0,
            model=["2", 0],
            positive=["4", 0],
            negative=["5", 0],
            sampler=["22", 0],
            sigmas=["21", 1],
            latent_image=["8", 0],
        ),
    }
    assert read_graph(nodes).fields["hires"] == {**BASE_HIRES, "denoise": 0.4, "steps": 8}


def test_an_upscaler_that_a_node_names_itself_is_read() -> None:
    upscale = build_node(
        "CR Upscale Image", upscale_model="4x-UltraSharp.pth", rescale_factor=2, image=["20", 0]
    )
    nodes = {
        "20": build_node("VAEDecode", samples=[FIRST, 0]),
        "21": upscale,
        "8": build_node("VAEEncode", pixels=["21", 0]),
    }
    assert read_graph(nodes).fields["hires"] == {**BASE_HIRES, "upscaler": "4x-UltraSharp", "factor": 2.0}


@pytest.mark.parametrize(
    "resize",
    [
        {"kind": "ImageScale", "width": 0, "height": 1824},
        {"kind": "Image Resize", "mode": "resize", "rescale_factor": 4, "resize_width": 1248},
    ],
)
def test_a_size_after_an_upscaler_is_the_size(resize: dict[str, Any]) -> None:
    """Enlarged four times by its network and made smaller, a picture is not four times as large."""
    nodes = {
        "20": build_node("VAEDecode", samples=[FIRST, 0]),
        "21": build_node("ImageUpscaleWithModel", upscale_model=["22", 0], image=["20", 0]),
        "22": build_node("UpscaleModelLoader", model_name="4x-UltraSharp.pth"),
        "23": build_node(**resize, image=["21", 0]),
        "8": build_node("VAEEncode", pixels=["23", 0]),
    }
    assert read_graph(nodes).fields["hires"] == {**BASE_HIRES, "upscaler": "4x-UltraSharp", "factor": 1.5}


def test_efficiencys_script_is_the_second_pass() -> None:
    script = {
        "upscale_type": "pixel",
        "hires_ckpt_name": "(use same)",
        "latent_upscaler": "nearest-exact",
        "pixel_upscaler": "4x-UltraSharp.pth",
        "upscale_by": 1.5,
        "use_same_seed": False,
        "seed": 9,
        "hires_steps": 12,
        "denoise": 0.5,
        "iterations": 1,
        "script": ["21", 0],
    }
    nodes = {
        "20": build_node("HighRes-Fix Script", **script),
        "21": build_node("Noise Control Script", seed=1),
        FIRST: build_node("KSampler (Efficient)", **COMFYUI_GRAPH[FIRST]["inputs"], script=["20", 0]),
        "10": build_node("SaveImage", images=[FIRST, 5]),
        "11": build_node("Note"),
    }
    reading = read_graph({**nodes, SECOND: build_node("Note")})
    assert reading.fields["hires"] == {**BASE_HIRES, "upscaler": "4x-UltraSharp"}
    assert reading.unused == {"Hires seed": "9", "Noise Control Script": "on"}
