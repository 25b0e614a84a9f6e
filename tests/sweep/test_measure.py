"""Each measure on pictures with a known answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from core.generate.features import PARTS_PER_SIDE, extract_features, load_feature_extractor
from core.models import bases, tools
from core.nano.draw import draw_scene
from core.nano.pictures import FIRST_HELD_OUT, make_scene
from core.runtime import torch_thread
from core.schema.errors import UserError
from core.schema.events import Features
from core.sweep import measure


def read_features(pictures: list[Image.Image], vae_roundtrip: bool = False) -> list[Features]:
    found = torch_thread.run_on_torch_thread(
        lambda: extract_features(bases.load_model("nano"), pictures, vae_roundtrip=vae_roundtrip)
    )
    rng = np.random.default_rng(0)
    return [replace(look, latents=rng.normal(size=(4, 16, 16))) for look in found]


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    return [draw_scene(make_scene(FIRST_HELD_OUT + i, (128, 128))) for i in range(4)]


@pytest.fixture(scope="module")
def base_features(drawings: list[Image.Image]) -> list[Features]:
    return read_features(drawings, vae_roundtrip=True)


@pytest.fixture(scope="module")
def yardstick(base_features: list[Features]) -> measure.Yardstick:
    return measure.build_yardstick(
        {
            ("a", 0): base_features[0],
            ("a", 1): base_features[1],
            ("b", 0): base_features[2],
            ("b", 1): base_features[3],
        }
    )


def test_a_picture_is_itself(
    base_features: list[Features], yardstick: measure.Yardstick, drawings: list[Image.Image]
) -> None:
    assert measure.effect(base_features[0], base_features[0], yardstick) == 0
    assert measure.composition(base_features[0], base_features[0]) == pytest.approx(1, abs=1e-5)
    assert measure.detail(drawings[0], drawings[0]) == pytest.approx(1, abs=1e-3)
    assert measure.style(base_features[0], [base_features[0]], yardstick) == 1


def test_distances_are_in_units_of_two_seeds(
    base_features: list[Features], yardstick: measure.Yardstick
) -> None:
    pairs = [measure.effect(base_features[a], base_features[b], yardstick) for a, b in ((0, 1), (2, 3))]
    assert 0.5 < np.mean(pairs) < 2, pairs
    assert all(0 < floor < 1 for floor in yardstick.noise_floors.values()), (
        "what the VAE itself changes is less than another seed does"
    )


def test_a_change_of_style_is_none_of_composition(
    drawings: list[Image.Image], base_features: list[Features], yardstick: measure.Yardstick
) -> None:
    """Soft gradients go beyond the floor but keep the composition; another picture does not."""
    soft = read_features([picture.filter(ImageFilter.GaussianBlur(2.5)) for picture in drawings])
    assert np.mean(
        [measure.effect(a, b, yardstick) for a, b in zip(soft, base_features, strict=True)]
    ) > 2 * max(yardstick.noise_floors.values())
    kept = np.mean([measure.composition(a, b) for a, b in zip(soft, base_features, strict=True)])
    elsewhere = np.mean([measure.composition(base_features[i], base_features[i - 1]) for i in range(4)])
    assert kept > 0.6 > 0.5 > elsewhere, (kept, elsewhere)


def test_seeds_that_are_nearly_alike_do_not_lift_the_noise_floor_above_every_change(
    drawings: list[Image.Image],
) -> None:
    """On a base whose seeds give one picture, the VAE changes more than another seed does."""
    first = drawings[0]
    alike = [first, ImageEnhance.Brightness(first).enhance(1.002)]
    base = dict(zip((("a", 0), ("a", 1)), read_features(alike, vae_roundtrip=True), strict=True))
    found = measure.build_yardstick(base)
    assert max(found.noise_floors.values()) < 1.1, found.noise_floors
    soft = read_features([first.filter(ImageFilter.GaussianBlur(2.5))])[0]
    assert measure.effect(soft, base["a", 0], found) > 2 * max(found.noise_floors.values())


def test_distances_are_bounded(base_features: list[Features], yardstick: measure.Yardstick) -> None:
    noise = read_features([Image.effect_noise((128, 128), 200).convert("RGB")])[0]
    assert measure.effect(noise, base_features[0], yardstick) <= measure.MAX_DISTANCE
    assert 0 <= measure.composition(noise, base_features[0]) < 0.35
    assert 0 < measure.style(noise, base_features, yardstick) < 1


def test_style_is_nearer_where_pictures_are_painted_alike(
    drawings: list[Image.Image], yardstick: measure.Yardstick
) -> None:
    soft = read_features([picture.filter(ImageFilter.GaussianBlur(2.5)) for picture in drawings])
    hard = read_features([ImageEnhance.Contrast(picture).enhance(1.6) for picture in drawings])
    assert measure.style(soft[0], soft[1:], yardstick) > measure.style(hard[0], soft[1:], yardstick)


def test_detail_falls_with_blur_and_rises_with_noise(drawings: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(
        np.clip(np.asarray(drawings[0], float) + rng.normal(0, 40, (128, 128, 3)), 0, 255).astype(np.uint8)
    )
    assert measure.detail(drawings[0].filter(ImageFilter.GaussianBlur(2)), drawings[0]) < 0.5
    assert measure.detail(noisy, drawings[0]) > 2


def test_saturation_is_what_leaves_the_range(
    base_features: list[Features], yardstick: measure.Yardstick
) -> None:
    latents = base_features[0].latents
    assert latents is not None
    assert measure.saturation(base_features[0], yardstick) == pytest.approx(0.01, abs=0.01)
    assert measure.saturation(replace(base_features[0], latents=10 * latents), yardstick) > 0.5


def test_prompt_is_the_share_of_tags_that_stayed() -> None:
    zero = {"smile": 0.9, "halo": 0.8, "hat": 0.1}
    assert (
        measure.prompt({"smile": 0.9, "halo": 0.2, "hat": 0.9}, zero, ["smile", "halo", "hat", "unknown"])
        == 0.5
    )
    assert measure.prompt({}, zero, ["hat", "unknown"]) is None, "nothing was read at strength 0"


def test_inside_a_box() -> None:
    found = measure.box_coverage([(0, 0, 5, 10)], (10, 10), 2)
    assert found.tolist() == [[1, 0], [1, 0]]
    half = measure.box_coverage([(0, 0, 20, 5)], (20, 20), 2)
    assert half.tolist() == [[0.5, 0.5], [0, 0]]


def test_face_and_background_are_told_apart(
    base_features: list[Features], yardstick: measure.Yardstick, drawings: list[Image.Image]
) -> None:
    """If only the right half changes, the change is measured there and hardly in the left half."""
    other = drawings[0].copy()
    other.paste(drawings[0].crop((64, 0, 128, 128)).filter(ImageFilter.GaussianBlur(3)), (64, 0))
    right = measure.box_coverage([(64, 0, 128, 128)], (128, 128), PARTS_PER_SIDE)
    changed = read_features([other])[0]
    assert measure.effect(changed, base_features[0], yardstick, right) > 3 * measure.effect(
        changed, base_features[0], yardstick, 1 - right
    )


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_another_eye_can_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawings: list[Image.Image], kind: str
) -> None:
    """Tiny models in the layout of the Hub's models give the same measures.

    They work on the levels of a vision transformer.
    """
    sides: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": 224,
    }
    if kind == "dinov2":
        Dinov2Model(Dinov2Config(**sides)).save_pretrained(tmp_path)
    else:
        CLIPModel(
            CLIPConfig(vision_config={**sides, "intermediate_size": 64}, projection_dim=16)
        ).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}'
    )
    monkeypatch.setattr(tools, "fetch_tool", lambda *_: tmp_path)
    load_feature_extractor.cache_clear()
    try:
        seen = torch_thread.run_on_torch_thread(
            lambda: extract_features(
                bases.load_model("nano"), drawings, feature_extractor="DINOv2 small", vae_roundtrip=True
            )
        )
    finally:
        load_feature_extractor.cache_clear()
    assert [mean.shape for mean, _ in seen[0].levels] == [(32, 16, 16)] * 4
    seen = [replace(look, latents=np.zeros((4, 16, 16))) for look in seen]
    yard = measure.build_yardstick({("a", i): look for i, look in enumerate(seen)})
    assert measure.effect(seen[0], seen[0], yard) == 0
    assert 0 < measure.effect(seen[1], seen[0], yard) <= measure.MAX_DISTANCE
    assert 0 <= measure.composition(seen[1], seen[0]) < 1


def test_an_eye_that_is_not_here_is_a_sentence() -> None:
    with pytest.raises(
        UserError, match="eye: facebook/dinov2-small cannot be downloaded: Hugging Face is unreachable"
    ):
        load_feature_extractor("DINOv2 small")
