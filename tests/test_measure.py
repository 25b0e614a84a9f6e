"""Each measure on pictures whose answer is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from core import gpu, measure, models, tools
from core.events import Look
from core.features import PARTS, looks, opened
from core.nano.draw import draw
from core.nano.pictures import HELD_OUT, scene
from core.types import UserError


def looked(pictures: list[Image.Image], echo: bool = False) -> list[Look]:
    found = gpu.lane(lambda: looks(models.load("nano"), pictures, echo=echo))
    rng = np.random.default_rng(0)
    return [replace(look, latents=rng.normal(size=(4, 16, 16))) for look in found]


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [draw(scene(HELD_OUT + i, (128, 128))) for i in range(4)]


@pytest.fixture(scope="module")
def base(drawn: list[Image.Image]) -> list[Look]:
    return looked(drawn, echo=True)


@pytest.fixture(scope="module")
def yard(base: list[Look]) -> measure.Yardstick:
    return measure.yardstick({("a", 0): base[0], ("a", 1): base[1], ("b", 0): base[2], ("b", 1): base[3]})


def test_a_picture_is_itself(base: list[Look], yard: measure.Yardstick, drawn: list[Image.Image]) -> None:
    assert measure.effect(base[0], base[0], yard) == 0
    assert measure.composition(base[0], base[0]) == pytest.approx(1, abs=1e-5)
    assert measure.detail(drawn[0], drawn[0]) == pytest.approx(1, abs=1e-3)
    assert measure.style(base[0], [base[0]], yard) == 1


def test_distances_are_in_units_of_two_seeds(base: list[Look], yard: measure.Yardstick) -> None:
    pairs = [measure.effect(base[a], base[b], yard) for a, b in ((0, 1), (2, 3))]
    assert 0.5 < np.mean(pairs) < 2, pairs
    assert 0 < yard.floor < 1, "what the VAE itself changes is less than another seed does"


def test_a_change_of_style_is_none_of_composition(drawn: list[Image.Image], base: list[Look], yard: measure.Yardstick) -> None:
    """Soft gradients: farther than the floor, while things stay where they are; another picture does not."""
    soft = looked([picture.filter(ImageFilter.GaussianBlur(2.5)) for picture in drawn])
    assert np.mean([measure.effect(a, b, yard) for a, b in zip(soft, base, strict=True)]) > 2 * yard.floor
    kept = np.mean([measure.composition(a, b) for a, b in zip(soft, base, strict=True)])
    elsewhere = np.mean([measure.composition(base[i], base[i - 1]) for i in range(4)])
    assert kept > 0.6 > 0.5 > elsewhere, (kept, elsewhere)


def test_distances_are_bounded(base: list[Look], yard: measure.Yardstick) -> None:
    noise = looked([Image.effect_noise((128, 128), 200).convert("RGB")])[0]
    assert measure.effect(noise, base[0], yard) <= measure.FARTHEST
    assert 0 <= measure.composition(noise, base[0]) < 0.35
    assert 0 < measure.style(noise, base, yard) < 1


def test_style_is_nearer_where_pictures_are_painted_alike(drawn: list[Image.Image], yard: measure.Yardstick) -> None:
    soft = looked([picture.filter(ImageFilter.GaussianBlur(2.5)) for picture in drawn])
    hard = looked([ImageEnhance.Contrast(picture).enhance(1.6) for picture in drawn])
    assert measure.style(soft[0], soft[1:], yard) > measure.style(hard[0], soft[1:], yard)


def test_detail_falls_with_blur_and_rises_with_noise(drawn: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(np.clip(np.asarray(drawn[0], float) + rng.normal(0, 40, (128, 128, 3)), 0, 255).astype(np.uint8))
    assert measure.detail(drawn[0].filter(ImageFilter.GaussianBlur(2)), drawn[0]) < 0.5
    assert measure.detail(noisy, drawn[0]) > 2


def test_saturation_is_what_leaves_the_range(base: list[Look], yard: measure.Yardstick) -> None:
    latents = base[0].latents
    assert latents is not None
    assert measure.saturation(base[0], yard) == pytest.approx(0.01, abs=0.01)
    assert measure.saturation(replace(base[0], latents=10 * latents), yard) > 0.5


def test_prompt_is_the_share_of_tags_that_stayed() -> None:
    zero = {"smile": 0.9, "halo": 0.8, "hat": 0.1}
    assert measure.prompt({"smile": 0.9, "halo": 0.2, "hat": 0.9}, zero, ["smile", "halo", "hat", "unknown"]) == 0.5
    assert measure.prompt({}, zero, ["hat", "unknown"]) is None, "nothing was read at strength 0"


def test_inside_a_box() -> None:
    found = measure.inside([(0, 0, 5, 10)], (10, 10), 2)
    assert found.tolist() == [[1, 0], [1, 0]]
    half = measure.inside([(0, 0, 20, 5)], (20, 20), 2)
    assert half.tolist() == [[0.5, 0.5], [0, 0]]


def test_face_and_background_are_told_apart(base: list[Look], yard: measure.Yardstick, drawn: list[Image.Image]) -> None:
    """Only the right half changes: seen there, and hardly in the left."""
    other = drawn[0].copy()
    other.paste(drawn[0].crop((64, 0, 128, 128)).filter(ImageFilter.GaussianBlur(3)), (64, 0))
    right = measure.inside([(64, 0, 128, 128)], (128, 128), PARTS)
    changed = looked([other])[0]
    assert measure.effect(changed, base[0], yard, right) > 3 * measure.effect(changed, base[0], yard, 1 - right)


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_another_eye_can_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Image.Image], kind: str) -> None:
    """Tiny models in the layout that the Hub's have: the same measures, on the levels of a vision transformer."""
    sides: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14, "image_size": 224}
    if kind == "dinov2":
        Dinov2Model(Dinov2Config(**sides)).save_pretrained(tmp_path)
    else:
        CLIPModel(CLIPConfig(vision_config={**sides, "intermediate_size": 64}, projection_dim=16)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}')
    monkeypatch.setattr(tools, "file", lambda *_: tmp_path)
    opened.cache_clear()
    try:
        seen = gpu.lane(lambda: looks(models.load("nano"), drawn, eye="DINOv2 small", echo=True))
    finally:
        opened.cache_clear()
    assert [mean.shape for mean, _ in seen[0].levels] == [(32, 16, 16)] * 4
    seen = [replace(look, latents=np.zeros((4, 16, 16))) for look in seen]
    yard = measure.yardstick({("a", i): look for i, look in enumerate(seen)})
    assert measure.effect(seen[0], seen[0], yard) == 0
    assert 0 < measure.effect(seen[1], seen[0], yard) <= measure.FARTHEST
    assert 0 <= measure.composition(seen[1], seen[0]) < 1


def test_an_eye_that_is_not_here_is_a_sentence() -> None:
    with pytest.raises(UserError, match="eye: facebook/dinov2-small is not to be had: the Hub cannot be reached"):
        opened("DINOv2 small")
