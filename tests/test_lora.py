"""LoRAs: files of every format, refused files, and models that are changed exactly and left bit for bit."""

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from core import asking, lora, lorafile, models, shelf
from core.blocks import BLOCKS, block_of, from_sai, to_sai, weights
from core.generate import generate
from core.types import Cell, Detail, LoraUse, Picture, Request, UserError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"]
RANK, ALPHA = 4, 2.0
REQUEST = Request(model="nano", prompt="1girl", negative="", width=64, height=64, steps=2, cfg=5.0, sampler="Euler", seed=7)


@pytest.fixture(scope="module")
def peft() -> StableDiffusionXLPipeline:
    """nano with a random LoRA of alpha 2 at rank 4, put on by diffusers and PEFT: the reference."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(models.ROOT / models.find("nano").source)
    torch.manual_seed(0)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=TARGETS), "it")
    pipeline.text_encoder_2.add_adapter(LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["q_proj", "fc1"]), "it")
    for name, parameter in [*pipeline.unet.named_parameters(), *pipeline.text_encoder_2.named_parameters()]:
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return pipeline


@pytest.fixture(scope="module")
def folder(peft: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same LoRA in every format that is read."""
    where = tmp_path_factory.mktemp("loras")
    unet = get_peft_model_state_dict(peft.unet, adapter_name="it")
    text = get_peft_model_state_dict(peft.text_encoder_2, adapter_name="it")
    dotted = {f"unet.{k}": v for k, v in convert_state_dict_to_diffusers(unet).items()}
    dotted |= {f"text_encoder_2.{k}": v for k, v in text.items()}
    metadata = {
        "lora_adapter_metadata": json.dumps(
            {f"{part}.{key}": value for part in ("unet", "text_encoder_2") for key, value in (("r", RANK), ("lora_alpha", ALPHA))}
        )
    }
    save_file(
        {k.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): v.contiguous() for k, v in dotted.items()}, where / "diffusers.safetensors", metadata
    )
    only = {f"base_model.model.{k}": v.contiguous() for k, v in unet.items()}
    save_file(only, where / "peft.safetensors", {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})})
    for kind, rename in (("kohya", to_sai), ("kohya-diffusers", str)):
        flat: dict[str, torch.Tensor] = {}
        for prefix, state, name in (("lora_unet_", unet, rename), ("lora_te2_", text, str)):
            for key, value in state.items():
                stem = key.removesuffix(".weight").rsplit(".", 1)
                module = f"{prefix}{name(stem[0].replace('.', '_'))}"
                flat[f"{module}.{'lora_down' if stem[1] == 'lora_A' else 'lora_up'}.weight"] = value.contiguous()
                flat[f"{module}.alpha"] = torch.tensor(ALPHA)
        save_file(
            flat, where / f"{kind}.safetensors", {"ss_tag_frequency": json.dumps({"10_style": {"1girl": 9, "smile": 3}}), "modelspec.trigger_phrase": "mystyle"}
        )
    return where


def noise_of(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]])
    draws = [torch.randn(size, generator=rng) for size in ((1, 4, 16, 16), (1, 77, 160), (1, 96))]
    with torch.no_grad():
        return pipeline.unet(draws[0], 500, draws[1], added_cond_kwargs={"text_embeds": draws[2], "time_ids": ids}).sample


def text_of(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt("1girl, smile", do_classifier_free_guidance=False)[2]


def fingerprint() -> str:
    pipeline = models.load("nano")
    parts = [value.numpy().tobytes() for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2) for value in part.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("kind", ["diffusers", "peft", "kohya", "kohya-diffusers"])
def test_every_format_is_peft_at_every_strength(peft: StableDiffusionXLPipeline, folder: Path, kind: str) -> None:
    ours, before = models.load("nano"), fingerprint()
    for strength in (0.5, 1.0, 2.5, -1.0, 5.0):
        peft.unet.set_adapters("it", [strength])
        with lora.loaded(ours, [LoraUse(path=str(folder / f"{kind}.safetensors"), strength=strength)]):
            assert (noise_of(ours) - noise_of(peft)).abs().max() <= 1e-4, strength
    assert fingerprint() == before


def test_text_encoders_have_a_strength_of_their_own(peft: StableDiffusionXLPipeline, folder: Path) -> None:
    ours, plain = models.load("nano"), text_of(models.load("nano"))
    use = LoraUse(path=str(folder / "kohya.safetensors"), strength=0.0, text_strength=1.0)
    with lora.loaded(ours, [use]):
        assert (text_of(ours) - text_of(peft)).abs().max() <= 1e-4
    with lora.loaded(ours, [replace(use, strength=1.0, text_strength=0.0)]):
        assert torch.equal(text_of(ours), plain)


def test_several_add_up(folder: Path) -> None:
    ours, path = models.load("nano"), str(folder / "kohya.safetensors")
    with lora.loaded(ours, [LoraUse(path=path, strength=2.0)]):
        whole = noise_of(ours)
    with lora.loaded(ours, [LoraUse(path=path, strength=0.5), LoraUse(path=str(folder / "diffusers.safetensors"), strength=1.5)]):
        assert (noise_of(ours) - whole).abs().max() <= 1e-4


def test_changing_the_strength_does_not_drift(folder: Path) -> None:
    ours, before = models.load("nano"), fingerprint()
    use = LoraUse(path=str(folder / "kohya.safetensors"))
    with lora.loaded(ours, [use]) as worn:
        first = noise_of(ours)
        for i in range(50):
            worn.set([replace(use, strength=i / 10)])
        worn.set([use])
        assert torch.equal(noise_of(ours), first)
        worn.set([replace(use, strength=0.0)])
        assert fingerprint() == before, "strength 0 is the base"


def test_a_failure_in_the_middle_leaves_the_model_as_it_was(folder: Path) -> None:
    ours, before = models.load("nano"), fingerprint()

    def interrupted() -> None:
        with lora.loaded(ours, [LoraUse(path=str(folder / "kohya.safetensors"), strength=3)]):
            assert fingerprint() != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fingerprint() == before


def test_block_weights_choose_blocks(folder: Path) -> None:
    ours, path = models.load("nano"), str(folder / "kohya.safetensors")
    start = {name: value.clone() for name, value in ours.unet.state_dict().items()}
    for text, blocks in (("STYLE", {"OUT01"}), ("0,0,0,0,0,0,1,0,0,0,0,0", {"OUT00"}), ("0,1,0,0,0,0.5,0,0,0,0,0,0", {"IN04", "M00"})):
        with lora.loaded(ours, [LoraUse(path=path, blocks=text)]):
            changed = {name for name, value in ours.unet.state_dict().items() if not torch.equal(value, start[name])}
        assert {block_of(name.replace(".", "_")) for name in changed} == blocks, text
    assert [block_of(name) for name in ("mid_block_resnets_1_conv1", "up_blocks_0_upsamplers_0_conv", "down_blocks_1_resnets_0_conv2", "conv_in")] == [
        "M00",
        "OUT02",
        "IN04",
        None,
    ]


def test_a_picture_with_a_lora_leaves_the_next_one_alone(folder: Path) -> None:
    use = LoraUse(path=str(folder / "kohya.safetensors"), strength=2)

    def made(*requests: Request) -> list[bytes]:
        events = generate([Cell(label="", request=request) for request in requests])
        return [e.image.tobytes() for e in sorted((e for e in events if isinstance(e, Picture)), key=lambda e: e.index)]

    (plain,) = made(REQUEST)
    worn, other, base = made(replace(REQUEST, loras=(use,)), replace(REQUEST, loras=(replace(use, strength=4),)), REQUEST)
    assert len({plain, worn, other}) == 3
    assert base == plain
    stopped = generate([Cell(label="", request=replace(REQUEST, loras=(use,)))])
    next(stopped)
    stopped.close()
    assert made(REQUEST) == [plain], "a job that was stopped left its LoRA on the model"


def test_a_file_tells_what_it_is(folder: Path) -> None:
    found = lorafile.read(folder / "kohya.safetensors")
    assert (found.format, found.family, found.rank, found.scale) == ("kohya", "nano", RANK, ALPHA / RANK)
    assert found.components == ("unet", "text_encoder_2")
    assert (found.trigger, found.tags) == ("mystyle", {"1girl": 9, "smile": 3})
    assert [lorafile.read(folder / f"{kind}.safetensors").format for kind in ("diffusers", "peft", "kohya-diffusers")] == ["diffusers", "PEFT", "kohya"]


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({"lora_alpha": 8.0}, 2.0),
        ({"lora_alpha": 4.0, "use_rslora": True}, 2.0),
        ({"lora_alpha": 8.0, "alpha_pattern": {"to_q": 1.0}}, 2.0),
        ({}, 1.0),
    ],
)
def test_alpha_is_read_from_adapter_metadata(folder: Path, tmp_path: Path, said: dict, scale: float) -> None:
    save_file(load_file(folder / "peft.safetensors"), tmp_path / "peft.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    found = lorafile.read(tmp_path / "peft.safetensors")
    assert found.scale == scale
    if "alpha_pattern" in said:
        assert {module.scale for module in found.modules if module.name.endswith("to_q")} == {0.25}


@pytest.mark.parametrize("alpha", [float("nan"), 10**400, 1e300])
def test_an_alpha_that_is_no_number_is_refused(folder: Path, tmp_path: Path, alpha: float) -> None:
    save_file(load_file(folder / "peft.safetensors"), tmp_path / "peft.safetensors", {"lora_adapter_metadata": json.dumps({"lora_alpha": alpha})})
    with pytest.raises(UserError, match="is not a number that alpha can be"):
        lorafile.read(tmp_path / "peft.safetensors")


def test_norms_are_those_of_the_whole_matrices(folder: Path) -> None:
    found = lorafile.read(folder / "kohya.safetensors")
    tensors = found.tensors()
    for module in found.modules[::40]:
        down, up = tensors[module.down], tensors[module.up]
        whole = module.scale * up.flatten(1) @ down.flatten(1)
        assert lorafile.norm(module, down, up) == pytest.approx(float(whole.norm()), rel=1e-4)
    told = lora.norms(models.load("nano"), found)
    assert set(told) == {*BLOCKS, "other"}
    assert all(0 < value < 1 for value in told.values())


def test_names_of_the_original_are_diffusers_own(folder: Path) -> None:
    unet = models.load("nano").unet
    names = [name.replace(".", "_") for name, layer in unet.named_modules() if hasattr(layer, "weight")]
    assert all(from_sai(to_sai(name)) == name for name in names)
    attentions = {k: v for k, v in load_file(folder / "kohya.safetensors").items() if "lora_unet" in k and "_resnets_" not in k and "_0_in_layers" not in k}
    save_file(attentions, folder / "attentions.safetensors")
    theirs = StableDiffusionXLPipeline.lora_state_dict(str(folder / "attentions.safetensors"), unet_config=unet.config)[0]
    theirs = {re.sub(r"\.processor\.(\w+)_lora\.", r".\1.lora.", key).replace("to_out.lora", "to_out.0.lora") for key in theirs}  # its older spelling
    flat = {
        key.removeprefix("unet.").partition(".lora_A")[0].partition(".lora.down")[0].replace(".", "_")
        for key in theirs
        if "lora_A" in key or "lora.down" in key
    }
    assert flat == {module.name for module in lorafile.read(folder / "attentions.safetensors").modules}


@pytest.mark.parametrize("text", ["1,2", "a" * 9, "1," * 11, ",".join(["nan"] * 12), ",".join(["1e9"] * 12)])
def test_bad_block_weights_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"block weight|convert"):
        weights(text)


def broken(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path, Path], None]:
    return lambda good, bad: save_file(change(load_file(good)), bad)


def first(state: dict[str, torch.Tensor], end: str) -> str:
    return next(key for key in state if key.endswith(end))


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "text": (lambda good, bad: bad.write_text("not a lora at all"), "is not a whole safetensors file"),
    "empty": (lambda good, bad: bad.write_bytes(b""), "is not a whole safetensors file"),
    "cut": (lambda good, bad: bad.write_bytes(good.read_bytes()[:-1000]), "is not a whole safetensors file"),
    "header": (lambda good, bad: bad.write_bytes(struct.pack("<Q", 10**12) + b"{}"), "its header would be 1,000,000,000,000 bytes long"),
    "pickle": (lambda good, bad: bad.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "is a pickle"),
    "nan": (broken(lambda s: {**s, first(s, "lora_up.weight"): s[first(s, "lora_up.weight")] * float("nan")}), "holds NaN or infinite"),
    "zero": (broken(lambda s: {k: v * 0 if "lora_up" in k else v for k, v in s.items()}), "changes nothing"),
    "half": (broken(lambda s: {k: v for k, v in s.items() if k != first(s, "lora_up.weight")}), "has one matrix of two"),
    "rank": (broken(lambda s: {**s, first(s, "lora_down.weight"): torch.zeros(0, 48)}), "rank must be from 1"),
    "alpha": (broken(lambda s: {**s, first(s, ".alpha"): torch.tensor(float("inf"))}), "is not a number that alpha can be"),
    "loha": (broken(lambda s: {"lora_unet_a.hada_w1_a": torch.ones(2, 2)}), "is LoHa"),
    "lokr": (broken(lambda s: {"lora_unet_a.lokr_w1": torch.ones(2, 2)}), "is LoKr"),
    "flux": (broken(lambda s: {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)}), "is made for Flux"),
    "sd15": (
        broken(
            lambda s: {
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, 768),
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(320, 2),
            }
        ),
        r"is made for SD 1\.5",
    ),
    "magnitude": (broken(lambda s: {**s, "lora_unet_a.lora_magnitude_vector": torch.ones(2)}), "is DoRA"),
    "more": (broken(lambda s: {**s, "lora_unet_a.scalar": torch.ones(1)}), r"holds 'lora_unet_a\.scalar', which is not known here"),
    "none": (broken(lambda s: {"weight": torch.ones(2, 2)}), "holds no LoRA that is known"),
    "elsewhere": (broken(lambda s: {"other.x.lora_down.weight": torch.ones(2, 2), "other.x.lora_up.weight": torch.ones(2, 2)}), "belongs to no part of SDXL"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_with_its_reason(folder: Path, tmp_path: Path, name: str) -> None:
    make, says = REFUSED[name]
    make(folder / "kohya.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=says):
        lorafile.read(tmp_path / f"{name}.safetensors")


def test_a_lora_of_another_size_does_not_fit(tmp_path: Path) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 2048), f"{key}.lora_up.weight": torch.ones(640, 2)}, tmp_path / "sdxl.safetensors")
    before = fingerprint()
    with (
        pytest.raises(UserError, match=r"does not fit this model: .* is \(64, 160\) here and \(640, 2048\) there; it is made for SDXL"),
        lora.loaded(models.load("nano"), [LoraUse(path=str(tmp_path / "sdxl.safetensors"))]),
    ):
        pass
    assert fingerprint() == before


def test_faces_may_have_a_strength_of_their_own(folder: Path) -> None:
    """The picture without the LoRA, its face with it; outside of the face nothing changes."""
    use = LoraUse(path=str(folder / "kohya.safetensors"), strength=0.0)
    asked = replace(REQUEST, prompt="1girl, blue hair, portrait, white background", width=128, height=128, steps=8, cfg=5.0, loras=(use,))
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
    told = {"modelspec.trigger_phrase": "maid, red eyes", "ss_tag_frequency": json.dumps({"1_x": {"smile": 9, "upper_body": 8, "portrait": 1}})}
    save_file(load_file(folder / "kohya.safetensors"), tmp_path / "maid.safetensors", told)
    use = LoraUse(path=str(tmp_path / "maid.safetensors"))
    assert shelf.tags([use]) == ("maid", "red eyes", "smile", "upper body")
    for seed in range(3):
        values = {"prompt": "1girl", "seed": seed, "lora_file": use.path, "expand": {"lora_tags": choice}}
        assert not asking.problems(values)
        found = asking.expanded(values)
        assert found is not None
        assert not set(shelf.tags([use])) & set(found.added)
