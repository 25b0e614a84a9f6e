"""The embedded family: its files, what it knows, and the world it was drawn from."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from core.generate.features import VAE
from core.models.tagger import Tagger
from core.nano.draw import draw_scene
from core.nano.pictures import FIRST_HELD_OUT, make_scene
from core.nano.world import GROUPS, SIZES, TAGS, list_tags, write_caption
from core.runtime import gpu
from core.schema.events import Picture
from core.schema.types import Cell, Request
from core.sweep import measure
from core.system import paths
from tests.bench import nano as bench

WEIGHTS = paths.CODE / "core" / "nano" / "weights"
MIB = 2**20


def test_the_files_keep_their_budgets() -> None:
    sizes = {file.relative_to(WEIGHTS): file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()}
    assert max(sizes.values()) <= 10 * MIB
    assert sum(sizes.values()) <= 32 * MIB
    assert not [file for file in WEIGHTS.rglob("*.json") if "_name_or_path" in file.read_text()], (
        "a config says where it was made"
    )
    assert not [name for name in sizes if name.suffix in (".bin", ".pt", ".pkl", ".ckpt")], (
        "safetensors and ONNX only"
    )


def test_diffusers_opens_nano_with_no_help() -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "nano")
    assert [type(part).__name__ for part in pipeline.unet.down_blocks] == [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
    ]
    assert pipeline.vae_scale_factor == 8
    assert sum(p.numel() for p in pipeline.vae.parameters()) <= 2e6
    assert all(
        torch.isfinite(p).all()
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
        for p in part.parameters()
    )


@pytest.mark.parametrize(
    "text", ["blue hair, closed eyes", "日本語 🎯 \\(series\\)", "Zażółć (gęślą:1.3) jaźń", ""]
)
def test_the_tokenizer_covers_any_text(text: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "nano" / "tokenizer")
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1], "a part of the text is unknown"
    assert "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(text.lower().split())


def test_each_word_of_the_world_is_one_token() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "nano" / "tokenizer")
    words = {word for tag in TAGS for word in tag.split()} - {"1girl"}  # CLIP splits it after the digit
    assert {word for word in words if len(tokenizer(word).input_ids) != 3} == set()


def test_the_tagger_reads_drawings_it_never_saw() -> None:
    """A short form of tests/bench/nano.py, whose bar is 0.99 for both."""
    found = bench.score_tagger(Tagger(), 150)
    assert found["decisions_right"] >= 0.99, found
    assert found["present_tags_found"] >= 0.985, found


def test_pictures_show_what_the_prompt_says() -> None:
    """A short form of tests/bench/nano.py, whose bar is 0.95 of 200 prompts, at three sizes."""
    asked, _ = bench.draw_prompts(24)
    missing = bench.find_missing_tags(Tagger(), asked, bench.generate_pictures(asked, seed=1))
    share = 1 - sum(map(len, missing)) / sum(len(words) for words, _ in asked)
    assert share >= 0.92, f"{share:.3f} of the tags asked for are read; missing {missing}"


@pytest.mark.soak
def test_the_descendants_know_the_words_and_paint_each_in_its_own_way() -> None:
    """Prompts are read from their pictures as from nano's, and each has a style of its own.

    The styles differ by more than another seed does.
    """
    prompts = [", ".join(words) for words, size in bench.draw_prompts(40)[0] if size == (128, 128)][:6]
    told: dict[str, Any] = {
        "negative": "low quality",
        "width": 128,
        "height": 128,
        "steps": 25,
        "cfg": 5.0,
        "sampler": "Euler a",
    }
    family = ("nano", "nano-cel", "nano-paint", "nano-merge")
    cells = {
        name: [
            Cell(label=prompt, request=Request(model=name, prompt=prompt, seed=seed, **told))
            for prompt in prompts
            for seed in (1, 2)
        ]
        for name in family
    }
    found = {
        name: [
            event for event in gpu.generate_on_gpu(own, feature_extractor=VAE) if isinstance(event, Picture)
        ]
        for name, own in cells.items()
    }
    tagger = Tagger()
    for name, events in found.items():
        read = tagger.read_tags([event.image for event in events])
        shown = [
            tags[word] >= 0.5
            for event, tags in zip(events, read, strict=True)
            for word in event.cell.label.split(", ")
        ]
        assert np.mean(shown) >= 0.85, f"{name}: {np.mean(shown):.3f} of the tags asked for are read"
    looks = {
        name: {
            (event.cell.label, event.cell.request.seed): event.features for event in events if event.features
        }
        for name, events in found.items()
    }
    yard = measure.build_yardstick(looks["nano"])
    for one, other in combinations(("nano", "nano-cel", "nano-paint"), 2):
        apart = [
            measure.style_distance(looks[one][item].levels, looks[other][item].levels, yard.scales)
            / yard.style_unit
            for item in looks[one]
        ]
        assert np.median(apart) > 1, f"{one} and {other} are {np.median(apart):.2f} seed units apart in style"


def test_the_same_scene_is_the_same_drawing() -> None:
    for i, size in enumerate(SIZES):
        picture = draw_scene(make_scene(i, size))
        assert picture.size == size
        assert picture.tobytes() == draw_scene(make_scene(i, size)).tobytes()


def test_tags_name_one_of_each_group_and_only_what_is_there() -> None:
    for i in range(300):
        drawn = make_scene(FIRST_HELD_OUT + i, (128, 128))
        found = list_tags(drawn)
        assert set(found) <= set(TAGS)
        assert len(found) == len(set(found))
        for group in GROUPS:
            assert len(set(found) & set(group)) <= 1, (found, group)
        assert not (drawn.framing == "portrait" and drawn.outfit), "a portrait does not show the outfit"
        assert found[0] == write_caption(drawn, np.random.default_rng(i)).split(", ")[0]
