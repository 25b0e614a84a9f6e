"""LoRAs give PEFT's outputs at every strength and leave the weights bit for bit as they were."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from core.generate import request as picture_request
from core.generate.pipeline import generate
from core.lora import apply as lora
from core.lora.blocks import find_block
from core.models import bases, lora_library
from core.schema.errors import UserError
from core.schema.events import Picture
from core.schema.records import read_form
from core.schema.types import Cell, Detail, LoraUse, Request
from tests.lora.parts import REQUEST, encode_text, predict_noise
from tests.model import fingerprint


@pytest.mark.parametrize("kind", ["diffusers", "peft", "kohya", "kohya-diffusers"])
def test_every_format_is_peft_at_every_strength(
    peft: StableDiffusionXLPipeline, folder: Path, kind: str
) -> None:
    ours, before = bases.load_model("nano"), fingerprint()
    for strength in (0.5, 1.0, 2.5, -1.0, 5.0):
        peft.unet.set_adapters("it", [strength])
        with lora.apply_loras(ours, [LoraUse(path=str(folder / f"{kind}.safetensors"), strength=strength)]):
            assert (predict_noise(ours) - predict_noise(peft)).abs().max() <= 1e-4, strength
    assert fingerprint() == before


def test_text_encoders_have_a_strength_of_their_own(peft: StableDiffusionXLPipeline, folder: Path) -> None:
    ours, plain = bases.load_model("nano"), encode_text(bases.load_model("nano"))
    use = LoraUse(path=str(folder / "kohya.safetensors"), strength=0.0, text_strength=1.0)
    with lora.apply_loras(ours, [use]):
        assert (encode_text(ours) - encode_text(peft)).abs().max() <= 1e-4
    with lora.apply_loras(ours, [replace(use, strength=1.0, text_strength=0.0)]):
        assert torch.equal(encode_text(ours), plain)


def test_several_add_up(folder: Path) -> None:
    ours, path = bases.load_model("nano"), str(folder / "kohya.safetensors")
    with lora.apply_loras(ours, [LoraUse(path=path, strength=2.0)]):
        whole = predict_noise(ours)
    with lora.apply_loras(
        ours,
        [LoraUse(path=path, strength=0.5), LoraUse(path=str(folder / "diffusers.safetensors"), strength=1.5)],
    ):
        assert (predict_noise(ours) - whole).abs().max() <= 1e-4


def test_changing_the_strength_does_not_drift(folder: Path) -> None:
    ours, before = bases.load_model("nano"), fingerprint()
    use = LoraUse(path=str(folder / "kohya.safetensors"))
    with lora.apply_loras(ours, [use]) as worn:
        first = predict_noise(ours)
        for i in range(50):
            worn.set_strengths([[replace(use, strength=i / 10)]])
        worn.set_strengths([[use]])
        assert torch.equal(predict_noise(ours), first)
        worn.set_strengths([[replace(use, strength=0.0)]])
        assert fingerprint() == before, "strength 0 is the base"


def test_a_failure_in_the_middle_leaves_the_model_as_it_was(folder: Path) -> None:
    ours, before = bases.load_model("nano"), fingerprint()

    def interrupt() -> None:
        with lora.apply_loras(ours, [LoraUse(path=str(folder / "kohya.safetensors"), strength=3)]):
            assert fingerprint() != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert fingerprint() == before


def test_block_weights_choose_blocks(folder: Path) -> None:
    ours, path = bases.load_model("nano"), str(folder / "kohya.safetensors")
    start = {name: value.clone() for name, value in ours.unet.state_dict().items()}
    for text, blocks in (
        ("STYLE", {"OUT01"}),
        ("0,0,0,0,0,0,1,0,0,0,0,0", {"OUT00"}),
        ("0,1,0,0,0,0.5,0,0,0,0,0,0", {"IN04", "M00"}),
    ):
        with lora.apply_loras(ours, [LoraUse(path=path, blocks=text)]):
            changed = {
                name for name, value in ours.unet.state_dict().items() if not torch.equal(value, start[name])
            }
        assert {find_block(name.replace(".", "_")) for name in changed} == blocks, text
    assert [
        find_block(name)
        for name in (
            "mid_block_resnets_1_conv1",
            "up_blocks_0_upsamplers_0_conv",
            "down_blocks_1_resnets_0_conv2",
            "conv_in",
        )
    ] == [
        "M00",
        "OUT02",
        "IN04",
        None,
    ]


def test_a_picture_with_a_lora_leaves_the_next_one_alone(folder: Path) -> None:
    use = LoraUse(path=str(folder / "kohya.safetensors"), strength=2)

    def generate_pictures(*requests: Request) -> list[bytes]:
        events = generate([Cell(label="", request=request) for request in requests])
        return [
            e.image.tobytes()
            for e in sorted((e for e in events if isinstance(e, Picture)), key=lambda e: e.index)
        ]

    (plain,) = generate_pictures(REQUEST)
    worn, other, base = generate_pictures(
        replace(REQUEST, loras=(use,)), replace(REQUEST, loras=(replace(use, strength=4),)), REQUEST
    )
    assert len({plain, worn, other}) == 3
    assert base == plain
    stopped = generate([Cell(label="", request=replace(REQUEST, loras=(use,)))])
    next(stopped)
    stopped.close()
    assert generate_pictures(REQUEST) == [plain], "a job that was stopped left its LoRA on the model"


def test_a_lora_of_another_size_does_not_fit(tmp_path: Path) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(2, 2048), f"{key}.lora_up.weight": torch.ones(640, 2)},
        tmp_path / "sdxl.safetensors",
    )
    before = fingerprint()
    with (
        pytest.raises(
            UserError,
            match=(
                r"does not fit this model: .* is \(64, 160\) here and \(640, 2048\) there; "
                r"it is made for SDXL"
            ),
        ),
        lora.apply_loras(bases.load_model("nano"), [LoraUse(path=str(tmp_path / "sdxl.safetensors"))]),
    ):
        pass
    assert fingerprint() == before


def test_faces_may_have_a_strength_of_their_own(folder: Path) -> None:
    """The face is drawn with the LoRA; outside of it the picture is that without the LoRA."""
    use = LoraUse(path=str(folder / "kohya.safetensors"), strength=0.0)
    asked = replace(
        REQUEST,
        prompt="1girl, blue hair, portrait, white background",
        width=128,
        height=128,
        steps=8,
        cfg=5.0,
        loras=(use,),
    )
    made, before = {}, fingerprint()
    for strength in (None, 3.0):
        detail = Detail(detector="nano face", padding=8, lora_strength=strength)
        *_, picture = generate([Cell(label="", request=replace(asked, detail=detail))])
        assert isinstance(picture, Picture)
        made[strength] = picture
    assert made[None].image.tobytes() != made[3.0].image.tobytes()
    assert made[None].before is not None
    assert made[3.0].before is not None
    assert made[None].before.tobytes() == made[3.0].before.tobytes()
    assert fingerprint() == before


@pytest.mark.parametrize("choice", ["lock", "ban"])
def test_a_loras_tags_are_not_added_to_the_prompt(folder: Path, tmp_path: Path, choice: str) -> None:
    told = {
        "modelspec.trigger_phrase": "maid, red eyes",
        "ss_tag_frequency": json.dumps({"1_x": {"smile": 9, "upper_body": 8, "portrait": 1}}),
    }
    save_file(load_file(folder / "kohya.safetensors"), tmp_path / "maid.safetensors", told)
    use = LoraUse(path=str(tmp_path / "maid.safetensors"))
    assert lora_library.collect_lora_tags([use]) == ("maid", "red eyes", "smile", "upper body")
    for seed in range(3):
        values = {"prompt": "1girl", "seed": seed, "lora_file": use.path, "expand": {"lora_tags": choice}}
        assert not picture_request.find_form_problems(values)
        found = picture_request.expand_request(read_form(picture_request.PictureForm, values))
        assert found is not None
        assert not set(lora_library.collect_lora_tags([use])) & set(found.added)


def test_each_sample_has_its_own_strength(peft: StableDiffusionXLPipeline, folder: Path) -> None:
    """One pass over a batch of strengths is PEFT, strength by strength, without new weights."""
    ours, before = bases.load_model("nano"), fingerprint()
    unet_only, strengths = LoraUse(path=str(folder / "peft.safetensors")), (0.0, 0.5, 2.5, -1.0)
    rng = torch.Generator().manual_seed(1)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]])
    draws = [torch.randn(size, generator=rng) for size in ((1, 4, 16, 16), (1, 77, 160), (1, 96))]
    many = 2 * len(strengths)  # guidance doubles the batch
    with lora.apply_loras(ours, [unet_only]) as worn, torch.no_grad():
        worn.set_strengths([[replace(unet_only, strength=strength)] for strength in strengths])
        assert fingerprint() == before
        x, states, pooled = (draw.repeat(many, *[1] * (draw.ndim - 1)) for draw in draws)
        together = ours.unet(
            x, 500, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids.repeat(many, 1)}
        ).sample
    for i, strength in enumerate(strengths * 2):
        peft.unet.set_adapters("it", [strength])
        assert (together[i] - predict_noise(peft)[0]).abs().max() <= 1e-4, strength
    assert fingerprint() == before
    assert not any(layer._forward_hooks for layer in ours.unet.modules())


def test_text_has_one_strength_for_all_samples(folder: Path) -> None:
    use = LoraUse(path=str(folder / "kohya.safetensors"))
    with (
        lora.apply_loras(bases.load_model("nano"), [use]) as worn,
        pytest.raises(ValueError, match="text encoder"),
    ):
        worn.set_strengths([[use], [replace(use, strength=2.0)]])
