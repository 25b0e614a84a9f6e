"""Nodes of ComfyUI's popular packs say what they do, whatever inputs they have for it."""

import json
from typing import Any

import pytest

from core.prompts.infotext import Reading
from core.prompts.png_metadata import _read_settings
from tests.prompts.tool_pictures import COMFYUI_GRAPH, build_node

SAMPLER = COMFYUI_GRAPH["7"]["inputs"]


def read_graph(changes: dict[str, Any]) -> Reading:
    reading = _read_settings({"prompt": json.dumps({**COMFYUI_GRAPH, **changes})})
    assert isinstance(reading, Reading)
    return reading


def test_names_that_come_by_a_link_are_followed() -> None:
    """Without it, a picture made with a context or a configuration node names no sampler."""
    changes = {
        "1": build_node("CheckpointLoaderSimple", ckpt_name=["31", 0]),
        "7": build_node("KSampler", **{**SAMPLER, "sampler_name": ["30", 3], "scheduler": ["30", 4]}),
        "30": build_node(
            "KSampler Config (rgthree)", steps_total=20, sampler_name="dpmpp_2m", scheduler="beta"
        ),
        "31": build_node("Checkpoint Selector", ckpt_name="SDXL/other.safetensors"),
    }
    fields = read_graph(changes).fields
    assert [fields[name] for name in ("sampler", "schedule", "model")] == ["DPM++ 2M", "Beta", "other"]


def test_loaders_with_previews_name_their_files() -> None:
    def preview(name: str) -> dict[str, Any]:
        return {"content": name, "image": None}

    lora = {"lora_name": preview("ink.safetensors"), "strength_model": 0.7, "strength_clip": 0.7}
    changes = {
        "1": build_node("CheckpointLoader|pysssss", ckpt_name=preview("other.safetensors")),
        "2": build_node("LoraLoader|pysssss", **lora, model=["1", 0]),
    }
    reading = read_graph(changes)
    assert (reading.fields["model"], reading.loras) == ("other", ({"lora": "ink", "strength": 0.7},))


@pytest.mark.parametrize(
    ("inputs", "strengths"),
    [
        ({"input_mode": "simple"}, {"strength": 0.6}),
        ({"input_mode": "advanced"}, {"strength": 0.9, "text_strength": 0.8}),
        ({"toggle": True, "mode": "simple"}, {"strength": 0.6}),
        ({"toggle": True, "mode": "advanced"}, {"strength": 0.9, "text_strength": 0.8}),
        ({"toggle": False, "mode": "simple"}, None),
    ],
    ids=str,
)
def test_a_stack_of_loras_has_its_modes_strengths_and_its_count(
    inputs: dict[str, Any], strengths: dict[str, float] | None
) -> None:
    """A stack keeps names beyond its count, and the strengths of the other mode, which it does not use."""
    stack = dict(inputs, model=["1", 0])
    for number, name in enumerate(("ink.safetensors", "unused.safetensors"), 1):
        if "toggle" in inputs:  # Easy-Use
            stack |= {
                "num_loras": 1,
                f"lora_{number}_name": name,
                f"lora_{number}_strength": 0.6,
                f"lora_{number}_model_strength": 0.9,
                f"lora_{number}_clip_strength": 0.8,
            }
        else:  # Efficiency
            stack |= {
                "lora_count": 1,
                f"lora_name_{number}": name,
                f"lora_wt_{number}": 0.6,
                f"model_str_{number}": 0.9,
                f"clip_str_{number}": 0.8,
            }
    found = read_graph({"2": build_node("a stack", **stack)}).loras
    assert found == (({"lora": "ink", **strengths},) if strengths else ())


def test_a_styler_gives_each_side_its_own_text() -> None:
    """Else the negative's words stand in the prompt."""
    changes = {
        "4": build_node("CLIPTextEncode", text=["30", 0]),
        "5": build_node("CLIPTextEncode", text=["30", 1]),
        "30": build_node("SDXLPromptStyler", text_positive="a fox", text_negative="fog", style="base"),
    }
    fields = read_graph(changes).fields
    assert (fields["prompt"], fields["negative"]) == ("a fox", "fog")


def test_a_text_that_a_node_shows_is_read_once() -> None:
    changes = {
        "4": build_node("CLIPTextEncode", text=["30", 0]),
        "30": build_node("ShowText|pysssss", text=["31", 0], text_0="a fox"),
        "31": build_node("easy positive", positive="a fox"),
    }
    assert read_graph(changes).fields["prompt"] == "a fox"


def test_a_picture_that_guided_it_or_was_changed_is_named() -> None:
    """No settings make such a picture again; a person should hear why."""
    changes = {
        "7": build_node(
            "KSampler", **{**SAMPLER, "positive": ["30", 0], "negative": ["30", 1], "denoise": 0.6}
        ),
        "30": build_node("ControlNetApplyAdvanced", positive=["4", 0], negative=["5", 0], image=["32", 0]),
        "6": build_node("VAEEncode", pixels=["31", 0]),
        **{key: build_node("LoadImage", image="x.png") for key in ("31", "32")},
    }
    reading = read_graph(changes)
    expected = {"ControlNetApplyAdvanced": "on", "LoadImage": "on", "Denoise": "0.6"}
    assert expected.items() <= reading.unused.items()
    assert (reading.fields["prompt"], reading.fields["negative"]) == ("a cat 笑顔", "a dog")


def test_a_strangers_graph_neither_breaks_nor_holds_the_reader() -> None:
    """One image of a megabyte would keep a worker busy until this test is stopped, or end in a TypeError."""
    cycle = {f"x{i}": None for i in range(198)}
    names = {f"lora_{i:02}": "a" for i in range(97)} | {f"lora{i:02}": "a" for i in range(97)}
    changes: dict[str, Any] = {
        "c0": build_node("Any", **cycle, link=["c1", 0]),
        "c1": build_node("Any", **cycle, link=["c0", 0]),
        "4": build_node("CLIPTextEncode", text=["12", 1.0], clip=["2", 1]),
        "12": build_node("Styler", text_positive="a", text_negative="b"),
        "m0": build_node("Seed", model=["1", 0]),
    }
    for i in range(1, 400):
        changes[f"m{i}"] = build_node("Stack", **names, lora_count=["c0", 0], model=[f"m{i - 1}", 0])
    changes["7"] = build_node("KSampler", **{**SAMPLER, "model": ["m399", 0]})
    reading = read_graph(changes)
    assert reading.fields["seed"] == SAMPLER["seed"], "a node called as a setting is does not take its place"


def test_glue_between_texts_is_short() -> None:
    """9 kB would become a prompt of a megabyte."""
    many = {f"text_{i}": f"word {i}" for i in range(198)}
    changes = {
        "4": build_node("CLIPTextEncode", text=["12", 0], clip=["2", 1]),
        "12": build_node("Join", delimiter="-" * 5000, **many),
    }
    assert len(read_graph(changes).fields["prompt"]) < 10_000


def test_what_a_graph_does_besides_is_named() -> None:
    """A style, another layer of CLIP and an enlargement at the end are not done here: a person is told."""
    changes = {
        "2": build_node("LoraLoader", **{**COMFYUI_GRAPH["2"]["inputs"], "lora_name": ["30", 0]}),
        "30": build_node("PrimitiveString", value="linked.safetensors"),
        "31": build_node("SDXLPromptStyler", text_positive="a cat", text_negative="", style="sai-anime"),
        "32": build_node("ImageUpscaleWithModel", image=["10", 0]),
        "11": build_node("SaveImage", images=["32", 0]),
        "3": build_node("CLIPSetLastLayer", stop_at_clip_layer=-3, clip=["2", 1]),
    }
    reading = read_graph(changes)
    assert [lora["lora"] for lora in reading.loras] == ["linked"]
    named = {"SDXLPromptStyler": "sai-anime", "ImageUpscaleWithModel": "on", "CLIPSetLastLayer": "-3"}
    assert named.items() <= reading.unused.items()
