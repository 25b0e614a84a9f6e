"""A picture of each tool gives back its settings; what cannot be read is refused in one sentence."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.prompts.infotext import Reading
from core.prompts.png_metadata import READERS, _read_settings, read_infotext
from core.prompts.readers import invokeai, novelai
from core.schema.errors import UserError
from tests.prompts import tool_pictures as tools

COMMON = {
    "prompt": "a cat 笑顔",
    "negative": "a dog",
    "width": 832,
    "height": 1216,
    "steps": 20,
    "cfg": 5.0,
    "seed": 7,
    "sampler": "Euler a",
    "schedule": "Karras",
    "model": "wai",
}
STYLE = ({"lora": "a style", "strength": 0.8},)


def check_common(reading: Reading, **changes: Any) -> None:
    expected = COMMON | changes
    assert {name: reading.fields.get(name) for name in expected} == expected
    assert reading.lost == ()


def test_comfyuis_graph_is_followed_to_prompts_lora_size_and_hires(tmp_path: Path) -> None:
    texts = {"prompt": json.dumps(tools.COMFYUI_GRAPH), "workflow": json.dumps({"nodes": [], "links": []})}
    reading = read_infotext(tools.save_texts(tmp_path / "a.png", texts))
    hires = {"upscaler": "Latent", "factor": 1.5, "denoise": 0.5, "steps": 12}
    check_common(reading, hires=hires)
    assert (reading.tool, reading.unused) == ("ComfyUI", {"Hires seed": "8"})
    assert reading.loras == ({"lora": "a style", "strength": 0.8, "text_strength": 0.5},)


def test_comfyuis_custom_sampler_is_followed_through_guider_noise_and_sigmas(tmp_path: Path) -> None:
    texts = {"prompt": json.dumps(tools.COMFYUI_CUSTOM_GRAPH)}
    reading = read_infotext(tools.save_texts(tmp_path / "a.png", texts))
    check_common(
        reading,
        prompt="a cat",
        sampler="DPM++ 2M",
        seed=2**64 - 1,
        cfg_rescale=0.7,
        hires={"upscaler": "4x-UltraSharp", "factor": 2.0, "denoise": 0.0},
    )
    assert reading.loras == STYLE
    assert reading.unused == {
        "VAE": "sdxl_vae.safetensors",
        "FaceDetailer": "on",
        "ControlNetApplyAdvanced": "on",
    }


def test_comfyuis_webp_and_a_graph_in_exif_are_read(tmp_path: Path) -> None:
    fields = {"Model": f"prompt:{json.dumps(tools.COMFYUI_GRAPH)}", "Make": "workflow:{}"}
    check_common(read_infotext(tools.save_comment(tmp_path / "a.webp", "WEBP", b"", **fields)))
    comment = b"UNICODE\0" + json.dumps({**tools.COMFYUI_GRAPH, "extra": {}}).encode("utf-16-be")
    check_common(read_infotext(tools.save_comment(tmp_path / "a.jpg", "JPEG", comment)))


def test_an_a1111_text_is_believed_before_the_graph(tmp_path: Path) -> None:
    texts = {
        "prompt": json.dumps(tools.COMFYUI_GRAPH),
        "parameters": f"a bird\n{tools.SETTINGS}, Version: ComfyUI",
    }
    reading = read_infotext(tools.save_texts(tmp_path / "a.png", texts))
    assert (reading.tool, reading.fields["prompt"]) == ("ComfyUI", "a bird")
    texts["parameters"] = "no settings"
    check_common(read_infotext(tools.save_texts(tmp_path / "b.png", texts)))


def test_civitais_graph_is_read_with_its_resources(tmp_path: Path) -> None:
    urn = "urn:air:sdxl:{}:civitai:1@2"
    graph = {
        "resource-stack": tools.build_node("CheckpointLoaderSimple", ckpt_name=urn.format("checkpoint")),
        "resource-stack-1": tools.build_node(
            "LoraLoader", lora_name=urn.format("lora"), strength_model=0.7, model=["resource-stack", 0]
        ),
        "4": tools.build_node("smZ CLIPTextEncode", text="a cat 笑顔", parser="A1111"),
        "5": tools.build_node("smZ CLIPTextEncode", text="a dog", parser="A1111"),
        "6": tools.COMFYUI_GRAPH["6"],
        "7": tools.build_node(
            "KSampler", **tools.COMFYUI_GRAPH["7"]["inputs"] | {"model": ["resource-stack-1", 0]}
        ),
        "8": tools.build_node("VAEDecode", samples=["7", 0]),
        "9": tools.build_node("SaveImage", images=["8", 0]),
        "extra": {"airs": [urn.format("checkpoint")]},
        "extraMetadata": '{"prompt": "a cat"}',
    }
    comment = b"UNICODE\0" + json.dumps(graph).encode("utf-16-be")
    reading = read_infotext(tools.save_comment(tmp_path / "a.jpg", "JPEG", comment))
    check_common(reading, model=urn.format("checkpoint"))
    assert (reading.tool, reading.loras) == ("Civitai", ({"lora": urn.format("lora"), "strength": 0.7},))


def test_stability_matrix_is_read(tmp_path: Path) -> None:
    text = tools.INFOTEXT.replace("Euler a", "Euler Ancestral Karras")
    reading = read_infotext(
        tools.save_texts(tmp_path / "a.png", {"parameters": text, "parameters-json": "{}"})
    )
    check_common(reading)
    assert reading.tool == "Stability Matrix"


def test_a_detour_through_reroutes_switches_and_joined_texts_is_followed() -> None:
    """People's graphs are full of them."""
    graph = {
        **tools.COMFYUI_GRAPH,
        "4": tools.build_node("CLIPTextEncode", text=["20", 0]),
        "5": tools.build_node("ConditioningCombine", conditioning_1=["24", 0], conditioning_2=["25", 0]),
        "6": tools.build_node("SDXL Empty Latent Image (rgthree)", dimensions="832 x 1216 (portrait)"),
        "7": tools.build_node(
            "KSamplerAdvanced",
            **{k: v for k, v in tools.COMFYUI_GRAPH["7"]["inputs"].items() if k not in ("seed", "denoise")},
            noise_seed=["23", 0],
        ),
        "10": tools.build_node("VAEDecode", samples=["26", 0]),
        "20": tools.build_node("Text Concatenate", text_a=["21", 0], text_b=["22", 0], delimiter=" "),
        "21": tools.build_node("Switch any", any_1=["27", 0]),
        "22": tools.build_node("String Literal", string="笑顔"),
        "23": tools.build_node("Seed (rgthree)", seed=7),
        "24": tools.build_node("CLIPTextEncode", text="a dog"),
        "25": tools.build_node("CLIPTextEncode", text="rain"),
        "26": tools.build_node("Reroute", **{"": ["9", 0]}),
        "27": tools.build_node("ImpactWildcardProcessor", wildcard_text="{a|b} cat", populated_text="a cat"),
    }
    reading = _read_settings({"prompt": json.dumps(graph)})
    assert isinstance(reading, Reading)
    check_common(reading, negative="a dog AND rain")


def test_a_pipe_of_an_efficient_loader_is_followed() -> None:
    loader = {"ckpt_name": "wai.safetensors", "positive": "a cat 笑顔", "negative": "a dog", "clip_skip": -2}
    stack = {
        "switch_1": "On",
        "lora_name_1": "a style.safetensors",
        "model_weight_1": 0.8,
        "clip_weight_1": 0.8,
    }
    stack |= {"switch_2": "Off", "lora_name_2": "off.safetensors", "model_weight_2": 1, "lora_name_3": "None"}
    sampler = {
        "noise_seed": 7,
        "steps": 20,
        "cfg": 5.0,
        "sampler_name": "euler_ancestral",
        "scheduler": "karras",
    }
    graph = {
        "1": tools.build_node("CR LoRA Stack", **stack),
        "2": tools.build_node("Efficient Loader", **loader, lora_name="None", lora_stack=["1", 0]),
        "3": tools.COMFYUI_GRAPH["6"],
        "4": tools.build_node("KSampler SDXL (Eff.)", **sampler, sdxl_tuple=["2", 0], latent_image=["3", 0]),
        "5": tools.build_node("PreviewImage", images=["4", 5]),
    }
    reading = _read_settings({"prompt": json.dumps(graph)})
    assert isinstance(reading, Reading)
    check_common(reading)
    assert reading.loras == STYLE


def test_swarmui_is_read_from_png_and_jpeg(tmp_path: Path) -> None:
    text = json.dumps(tools.SWARMUI, ensure_ascii=False)
    comment = b"UNICODE\0" + text.encode("utf-16-le")
    for file in (
        tools.save_texts(tmp_path / "a.png", {"parameters": text}),
        tools.save_comment(tmp_path / "a.jpg", "JPEG", comment),
    ):
        reading = read_infotext(file)
        check_common(reading, hires={"upscaler": "4x-UltraSharp", "factor": 1.5, "denoise": 0.4})
        assert (reading.tool, reading.loras) == ("SwarmUI", STYLE)
        assert reading.unused == {"aspectratio": "Custom", "automaticvae": "True", "swarm_version": "0.9.6.2"}


def test_invokeai_is_read(tmp_path: Path) -> None:
    texts = {"invokeai_metadata": json.dumps(tools.INVOKEAI), "invokeai_graph": "{}"}
    reading = read_infotext(tools.save_texts(tmp_path / "a.png", texts))
    check_common(reading, sampler="Euler a", schedule="Automatic")
    assert (reading.tool, reading.loras) == ("InvokeAI", STYLE)


def test_invokeai_2_is_read(tmp_path: Path) -> None:
    image = {"prompt": [{"prompt": "a cat 笑顔 [a dog]", "weight": 1}], "sampler": "k_euler_a", "steps": 20}
    image |= {"cfg_scale": 5.0, "width": 832, "height": 1216, "seed": 7}
    text = json.dumps({"model_weights": "wai", "app_version": "2.3.5", "image": image})
    reading = read_infotext(tools.save_texts(tmp_path / "a.png", {"sd-metadata": text}))
    check_common(reading, sampler="Euler a", schedule="Automatic")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("(a cat)1.3, b", "(a cat:1.3), b"),
        ("(a cat)++", "(a cat:1.21)"),
        ("(a cat)-, b", "(a cat:0.9), b"),
        ("a cat+ and more", "a (cat:1.1) and more"),
        ("(plain) 1.3, c++ish, t-shirt-", "(plain) 1.3, c++ish, t-shirt-"),
        (r"name \(series\)2", r"name \(series\)2"),
    ],
)
def test_invokeais_emphasis_is_written_as_a1111s(theirs: str, ours: str) -> None:
    assert invokeai.convert_emphasis(theirs) == ours


@pytest.mark.parametrize("hidden", [False, True], ids=["texts", "alpha"])
def test_novelai_is_read(tmp_path: Path, hidden: bool) -> None:
    file = tmp_path / "a.png"
    if hidden:
        tools.save_alpha_text(file, json.dumps(tools.NOVELAI), packed=True)
    else:
        tools.save_texts(file, tools.NOVELAI)
    reading = read_infotext(file)
    check_common(
        reading, prompt="(a cat:1.05) 笑顔\nBREAK\n(a girl:1.5)", model="NovelAI Diffusion V4 37442FCA"
    )
    assert reading.tool == "NovelAI"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("{{a}}, b", "(a:1.1), b"),
        ("[a], b", "(a:0.952), b"),
        ("1.2::a, b::, c", "(a, b:1.2), c"),
        ("-1::a::", "(a:-1)"),
        ("a (b)", r"a \(b\)"),
        (r"a \(b\)", r"a \(b\)"),
        ("{a, [b]", "(a:1.05), b"),
        ("}a", "(a:0.952)"),
    ],
)
def test_novelais_emphasis_is_written_as_a1111s(theirs: str, ours: str) -> None:
    assert novelai.convert_emphasis(theirs) == ours


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_fooocus_json_is_read(tmp_path: Path, kind: str) -> None:
    text = json.dumps(tools.FOOOCUS)
    if kind == "PNG":
        file = tools.save_texts(tmp_path / "a.png", {"parameters": text, "fooocus_scheme": "fooocus"})
    else:
        file = tools.save_comment(
            tmp_path / "a", kind, text.encode(), Software="Fooocus v2.5.5", MakerNote="fooocus"
        )
    reading = read_infotext(file)
    check_common(reading)
    assert (reading.tool, reading.loras, reading.unused["styles"]) == ("Fooocus", STYLE, "['Fooocus V2']")


FOOOCUS_KIN = {
    "before 2.2": {
        **{"Prompt": "a cat 笑顔", "Negative Prompt": "a dog", "Resolution": "(832, 1216)", "Steps": 20},
        **{"Guidance Scale": 5.0, "Base Model": "wai.safetensors", "Sampler": "euler_ancestral"},
        **{"Scheduler": "karras", "Seed": 7, "LoRA 1": "a style.safetensors : 0.8", "Version": "v2.1.8"},
    },
    "RuinedFooocus": {
        **{"Prompt": "a cat 笑顔", "Negative": "a dog", "steps": 20, "cfg": 5, "width": 832, "height": 1216},
        **{"seed": 7, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": None},
        **{"base_model_name": "wai.safetensors", "loras": [["ab", "0.8 - a style.safetensors"]]},
    },
}


@pytest.mark.parametrize("table", FOOOCUS_KIN.values(), ids=FOOOCUS_KIN)
def test_fooocus_kin_is_read(table: dict[str, Any]) -> None:
    reading = _read_settings({"parameters": json.dumps(table)})
    assert isinstance(reading, Reading)
    check_common(reading)
    assert (reading.tool, reading.loras) == ("Fooocus", STYLE)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + tools.INFOTEXT.encode("utf-16-be"),
        b"UNICODE\0" + tools.INFOTEXT.encode("utf-16-le"),
        b"UNICODE\0" + tools.INFOTEXT.encode(),
        b"ASCII\0\0\0" + tools.INFOTEXT.encode(),
        bytes(8) + tools.INFOTEXT.encode(),
        tools.INFOTEXT.encode(),
    ],
    ids=["big-endian", "little-endian", "UTF-8 as Unicode", "ASCII", "undefined", "no prefix"],
)
def test_exif_comments_are_read(tmp_path: Path, kind: str, comment: bytes) -> None:
    check_common(
        read_infotext(tools.save_comment(tmp_path / "a", kind, comment)),
        sampler="Euler a",
        schedule="Automatic",
    )


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_text_after_the_pixels_is_read(tmp_path: Path, kind: bytes) -> None:
    text = tools.INFOTEXT.replace("笑顔", "café")
    reading = read_infotext(tools.save_text_after_pixels(tmp_path / "a.png", text, kind))
    check_common(reading, prompt="a cat café", sampler="Euler a", schedule="Automatic")


@pytest.mark.parametrize("packed", [False, True], ids=["info", "comp"])
@pytest.mark.parametrize("save", [tools.save_alpha_text, tools.save_colour_text], ids=["alpha", "colours"])
def test_a_text_in_the_lowest_bits_is_read(tmp_path: Path, save: Any, packed: bool) -> None:
    file = save(tmp_path / "a.png", tools.INFOTEXT, packed)
    check_common(read_infotext(file), sampler="Euler a", schedule="Automatic")


def nest(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


LOOP = {
    "1": tools.build_node("KSampler", cfg=1, steps=["2", 0], sampler_name="euler", latent_image=["2", 0]),
    "2": tools.build_node("Reroute", samples=["1", 0], value=["1", 0], model=["2", 0]),
}
REFUSED = {
    "ComfyUI's workflow alone": ({"workflow": '{"nodes": []}'}, "has ComfyUI's workflow, but not the prompt"),
    "a graph without a sampler": (
        {"prompt": json.dumps({"1": tools.build_node("LoadImage", image="x")})},
        "no sampler is known in ComfyUI's graph",
    ),
    "a graph of 6,000 nodes": (
        {"prompt": json.dumps({str(n): tools.build_node("x") for n in range(6000)})},
        "6,000 nodes are too many",
    ),
    "a graph that is a circle": ({"prompt": json.dumps(LOOP)}, "no sampler is known"),
    "InvokeAI without settings": (
        {"invokeai_metadata": "{}"},
        "InvokeAI wrote no steps, sampler, seed or size",
    ),
    "NovelAI without settings": ({"Comment": '{"uc": "x", "prompt": "a"}'}, "NovelAI wrote no steps"),
    "JSON that is too deep": ({"parameters": nest(100_000)}, "characters are too many"),
    "a graph that is too deep": ({"prompt": nest(100_000)}, "contains no settings"),
    "JSON with NovelAI's negative alone": (
        {"Comment": '{"c": "a cat", "uc": "x", "steps": 20, "seed": 7}'},
        "the last line has none",
    ),
    "JSON of nobody": ({"parameters": '{"prompt": "a, b: c, d: e, f: g"}'}, "the last line has none"),
    "a prompt alone": ({"parameters": "a cat, with: colons, and: more, here: too"}, "the last line has none"),
}


@pytest.mark.parametrize(("texts", "why"), REFUSED.values(), ids=REFUSED)
def test_case_08_what_holds_no_settings_is_refused_in_one_sentence(
    tmp_path: Path, texts: dict[str, str], why: str
) -> None:
    file = tools.save_texts(tmp_path / "a.png", texts)
    with pytest.raises(UserError, match=why) as refused:
        read_infotext(file)
    assert len(str(refused.value)) < 200


def test_case_08_hostile_alpha_is_refused(tmp_path: Path) -> None:
    file = tools.save_alpha_text(tmp_path / "a.png", "x", packed=False, length=2**31)
    with pytest.raises(UserError, match="cannot be read"):
        read_infotext(file)
    tools.save_alpha_text(file, "a" * 5_000_000, packed=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_infotext(file)
    Image.new("RGBA", (5000, 4000)).save(file)  # too large to be decoded for this
    with pytest.raises(UserError, match="contains no settings"):
        read_infotext(file)


def test_case_08_a_hostile_text_after_the_pixels_is_refused(tmp_path: Path) -> None:
    file = tools.save_text_after_pixels(tmp_path / "a.png", "a" * 5_000_000, b"iTXt")
    with pytest.raises(UserError, match="cannot be read"):
        read_infotext(file)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([["1", 0], ["2", 1], ["3", 0], 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
INPUT_NAMES = sorted({name for node in tools.COMFYUI_CUSTOM_GRAPH.values() for name in node["inputs"]})
INPUT_NAMES += [
    "seed",
    "samples",
    "megapixels",
    "scale_by",
    "loras",
    "pipe",
    "conditioning_1",
    "populated_text",
    "script",
    "upscale_by",
    "start_at_step",
    "step",
]
KINDS = [
    "HighRes-Fix Script",
    "SplitSigmas",
    "KSampler",
    "SamplerCustom",
    "ImageScale",
    "CLIPSetLastLayer",
    "LoRA Stack",
    "ConditioningCombine",
]
NODES = st.builds(
    lambda kind, inputs: {"class_type": kind, "inputs": inputs},
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(INPUT_NAMES), VALUES, max_size=8),
)


def fuzz(table: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a tool's table with any of its values replaced."""
    return st.dictionaries(st.sampled_from(sorted(table)), VALUES).map(lambda changes: table | changes)


@settings(deadline=None, max_examples=200)
@given(
    texts=st.one_of(
        st.dictionaries(st.sampled_from("123"), NODES).map(lambda table: {"prompt": table}),
        fuzz(tools.SWARMUI["sui_image_params"]).map(
            lambda table: {"parameters": {"sui_image_params": table}}
        ),
        fuzz(tools.FOOOCUS).map(lambda table: {"parameters": table}),
        fuzz(tools.INVOKEAI).map(lambda table: {"invokeai_metadata": table}),
        fuzz(json.loads(tools.NOVELAI["Comment"])).map(lambda table: {"Comment": table}),
    )
)
def test_case_08_no_json_breaks_a_reader(texts: dict[str, Any]) -> None:
    found = _read_settings({name: json.dumps(table) for name, table in texts.items()})
    assert found is None or isinstance(found, Reading | UserError)


def test_case_08_a_large_hostile_graph_takes_little_time() -> None:
    inputs = {f"conditioning_{n}": [str(n), 0] for n in range(199)}
    nodes = {str(n): tools.build_node("ConditioningConcat", **inputs) for n in range(900)}
    nodes["x"] = tools.build_node(
        "KSampler", cfg=1, steps=1, sampler_name="euler", positive=["0", 0], latent_image=["1", 0]
    )
    text = json.dumps(nodes)[:4_000_000]
    start = time.process_time()
    _read_settings({"prompt": text})
    assert time.process_time() - start < 4, "1 s is usual; a graph is searched again and again"


def test_every_reader_leaves_what_is_not_its_own() -> None:
    assert [read({"Software": "gimp"}) for read in READERS] == [None] * len(READERS)
