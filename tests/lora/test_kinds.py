"""DoRA and LoKr on a model: PEFT's live adapter at strength 1, linear between, and off bit for bit.

Each sample of a batch has its own strength.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoKrConfig, LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.lora.blocks import STYLE_BLOCKS, find_block, to_sai
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import paths
from tests.lora.parts import TARGETS, compute_changes, copy_weights, encode_text, predict_noise
from tests.model import fingerprint

TARGET_LAYERS = [*TARGETS, "conv2", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj"]
TEXT_LAYERS = ["q_proj", "fc1"]
ADAPTERS: dict[str, Callable[[list[str]], LoraConfig | LoKrConfig]] = {
    "DoRA": lambda layers: LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=layers),
    "LoKr in factors": lambda layers: LoKrConfig(r=2, alpha=1, decompose_both=True, target_modules=layers),
    "LoKr with a whole w1": lambda layers: LoKrConfig(r=2, alpha=3, target_modules=layers),
    "LoKr without factors": lambda layers: LoKrConfig(r=64, alpha=16, target_modules=layers),
}
SCALES = {
    "DoRA": 2 / 4,
    "LoKr in factors": 1 / 2,
    "LoKr with a whole w1": 3 / 2,
    "LoKr without factors": 16 / 64,
}
FILE_PARTS = {
    "DoRA": {"down", "up", "magnitude"},
    "LoKr in factors": {"w1_a", "w1_b", "w2_a", "w2_b"},
    "LoKr with a whole w1": {"w1", "w2_a", "w2_b"},
    "LoKr without factors": {"w1", "w2"},
}
"""The parts of each kind in most layers; small layers have whole matrices."""
KEY_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


@pytest.fixture(scope="module", params=ADAPTERS)
def peft_adapter(request: pytest.FixtureRequest) -> tuple[str, StableDiffusionXLPipeline]:
    """A kind's name, and nano with a random adapter of it by diffusers and PEFT, the reference."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    torch.manual_seed(0)
    for part, layers in ((pipeline.unet, TARGET_LAYERS), (pipeline.text_encoder_2, TEXT_LAYERS)):
        part.add_adapter(ADAPTERS[request.param](layers), "it")
        for name, parameter in part.named_parameters():
            if "magnitude" in name:
                parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
            elif "lora_" in name or "lokr_" in name:
                torch.nn.init.normal_(
                    parameter,
                    std=0.35 if name.endswith(("_a.it", "_b.it")) else 0.15 if "lokr" in name else 0.05,
                )
    return request.param, pipeline


@pytest.fixture(scope="module")
def lycoris_file(
    peft_adapter: tuple[str, StableDiffusionXLPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The adapter as LyCORIS writes it.

    It has LyCORIS' names, alpha, magnitudes (out, 1, ...), and 1 for the scale of a LoKr without
    factors.
    """
    name, pipeline = peft_adapter
    tensors: dict[str, torch.Tensor] = {}
    for prefix, part, rename in (
        ("lora_unet_", pipeline.unet, to_sai),
        ("lora_te2_text_model_", pipeline.text_encoder_2, str),
    ):
        for key, value in get_peft_model_state_dict(part, adapter_name="it").items():
            end = next((end for end in KEY_SUFFIXES if key.endswith(end)), key.rpartition(".")[2])
            stem = prefix + rename(key.removesuffix(f".{end}").replace(".", "_").removeprefix("text_model_"))
            if "magnitude" in end:  # PEFT has (out,) and (1, out, 1, 1)
                value = value.view(-1, *[1] * (value.ndim - 1 or 1))
            tensors[f"{stem}.{KEY_SUFFIXES.get(end, end)}"] = value.contiguous()
            tensors[f"{stem}.alpha"] = torch.tensor(SCALES[name] * (4 if name == "DoRA" else 2))
    for key in [key for key in tensors if key.endswith("lokr_w1") and key.replace("w1", "w2") in tensors]:
        tensors[key] = tensors[key] * SCALES[name]
    file = tmp_path_factory.mktemp("kinds") / "it.safetensors"
    save_file(tensors, file)
    return file


def test_strength_one_is_pefts_live_adapter(
    peft_adapter: tuple[str, StableDiffusionXLPipeline], lycoris_file: Path
) -> None:
    name, peft = peft_adapter
    ours, before, plain = bases.load_model("nano"), fingerprint(), predict_noise(bases.load_model("nano"))
    found = lora_file.read_lora_file(lycoris_file)
    assert (found.format, found.kind, found.family) == ("kohya", name.partition(" ")[0], "nano")
    assert sum(module.keys.keys() == FILE_PARTS[name] for module in found.modules) > len(found.modules) / 2
    assert {
        layer.kernel_size for _, layer in lora.match_layers(ours, found) if isinstance(layer, torch.nn.Conv2d)
    } == {(1, 1), (3, 3)}
    for strength in (1.0,) if name == "DoRA" else (1.0, 0.5, -1.0, 2.5):
        peft.unet.set_adapters("it", [strength])
        with lora.apply_loras(ours, [LoraUse(path=str(lycoris_file), strength=strength)]):
            assert (predict_noise(peft) - plain).abs().max() > 0.02
            assert (predict_noise(ours) - predict_noise(peft)).abs().max() <= 1e-4, strength
            assert strength != 1 or (encode_text(ours) - encode_text(peft)).abs().max() <= 1e-4
    assert fingerprint() == before


def test_its_effect_on_the_weights_is_linear(lycoris_file: Path) -> None:
    use, before = LoraUse(path=str(lycoris_file)), fingerprint()
    whole = compute_changes([use])
    assert sum(bool(change.any()) for change in whole.values()) > 50
    for strength in (0.25, -1.0, 3.0):
        for name, change in compute_changes([replace(use, strength=strength)]).items():
            torch.testing.assert_close(change, whole[name] * strength, atol=1e-5, rtol=1e-4)
    assert not any(change.any() for change in compute_changes([replace(use, strength=0.0)]).values())
    assert fingerprint() == before


def test_block_weights_choose_blocks(lycoris_file: Path) -> None:
    changed = compute_changes([LoraUse(path=str(lycoris_file), blocks="STYLE")])
    assert {find_block(name.replace(".", "_")) for name, change in changed.items() if change.any()} == set(
        STYLE_BLOCKS
    )


def write_unet_only(file: Path, target: Path) -> LoraUse:
    save_file({key: value for key, value in load_file(file).items() if "lora_te2" not in key}, target)
    return LoraUse(path=str(target))


def test_samples_together_are_samples_one_by_one(lycoris_file: Path, folder: Path, tmp_path: Path) -> None:
    """A LoRA lies on the same layers; guidance doubles the batch."""
    ours, before = bases.load_model("nano"), fingerprint()
    use, other = (
        write_unet_only(lycoris_file, tmp_path / "unet.safetensors"),
        LoraUse(path=str(folder / "peft.safetensors")),
    )
    samples = [
        [replace(use, strength=s), replace(other, strength=t)]
        for s, t in ((1.0, 0.0), (0.0, 0.0), (-0.5, 1.0), (2.0, 0.5))
    ]
    samples[3][0] = replace(samples[3][0], blocks="1,0,0,1,0,0,1,1,0,0,0,0.5")
    rng, ids = torch.Generator().manual_seed(1), torch.tensor([[128, 128, 0, 0, 128, 128]])
    draws = [torch.randn(size, generator=rng) for size in ((1, 4, 16, 16), (1, 77, 160), (1, 96))]
    with lora.apply_loras(ours, [use, other]) as worn, torch.no_grad():
        worn.set_strengths(samples)
        assert fingerprint() == before
        x, states, pooled = (draw.repeat(8, *[1] * (draw.ndim - 1)) for draw in draws)
        together = ours.unet(
            x, 500, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids.repeat(8, 1)}
        ).sample
        for i, sample in enumerate(samples * 2):
            worn.set_strengths([sample])
            assert (together[i] - predict_noise(ours)[0]).abs().max() <= 1e-4, sample
    assert fingerprint() == before
    assert not any(layer._forward_hooks for layer in ours.unet.modules())


def test_kinds_on_one_layer_add_up_in_any_order(lycoris_file: Path, folder: Path) -> None:
    """Each kind's change is measured from the model's own weights."""
    one, other = (
        LoraUse(path=str(lycoris_file), strength=0.7),
        LoraUse(path=str(folder / "kohya.safetensors"), strength=1.5),
    )
    together, turned, mine, its = (
        compute_changes(uses) for uses in ([one, other], [other, one], [one], [other])
    )
    assert any(mine[name].any() and its[name].any() for name in mine)
    for name, change in together.items():
        torch.testing.assert_close(change, mine[name] + its[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(change, turned[name], atol=1e-5, rtol=1e-4)


def test_norms_are_those_of_the_whole_change(lycoris_file: Path) -> None:
    ours, found = bases.load_model("nano"), lora_file.read_lora_file(lycoris_file)
    base, change = copy_weights(ours), compute_changes([LoraUse(path=str(lycoris_file))])
    told = lora.describe_lora_file(found, ours)
    assert (told["kind"], told["why"]) == (found.kind, None)
    assert found.kind in told["expect"]
    inside = [name for name in change if change[name].any() and find_block(name.replace(".", "_")) == "OUT01"]
    share = (
        sum(change[name].square().sum() for name in inside)
        / sum(base[name].square().sum() for name in inside)
    ) ** 0.5
    assert told["effective_norm"]["OUT01"] == pytest.approx(float(share), rel=1e-3)


def test_a_file_written_anew(lycoris_file: Path, tmp_path: Path) -> None:
    found = lora_file.read_lora_file(lycoris_file)
    style = edit.rewrite_lora(found, tmp_path, keep="style")
    kept, whole = (
        compute_changes([LoraUse(path=str(style))]),
        compute_changes([LoraUse(path=str(lycoris_file), blocks="STYLE")]),
    )
    assert all(torch.equal(kept[name], whole[name]) for name in kept)
    if found.kind == "DoRA":
        with pytest.raises(
            UserError,
            match=r"^multiply: it\.safetensors has layers of DoRA, whose strength does not depend on alpha",
        ):
            edit.rewrite_lora(found, tmp_path, multiply=2)
        with pytest.raises(UserError, match=r"^blocks: it\.safetensors has layers of DoRA"):
            edit.rewrite_lora(found, tmp_path, blocks="1,1,1,1,1,1,1,0.5,1,1,1,1")
        return
    doubled = edit.rewrite_lora(found, tmp_path, multiply=2.75)
    now, wanted = (
        compute_changes([LoraUse(path=str(doubled))]),
        compute_changes([LoraUse(path=str(lycoris_file), strength=2.75)]),
    )
    for name in now:
        torch.testing.assert_close(now[name], wanted[name], atol=1e-6, rtol=1e-5)
    before, after = load_file(lycoris_file), load_file(doubled)
    touched = {key.rpartition(".")[2] for key, value in before.items() if not torch.equal(after[key], value)}
    assert touched <= {"alpha", "lokr_w1"}
    assert ("lokr_w1" in touched) == any(module.is_full_lokr for module in found.modules)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_channels_last(lycoris_file: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    """The change left after rounding is that of full precision, and off is bit for bit."""
    ours, use = (
        StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source), dtype=dtype),
        LoraUse(path=str(lycoris_file)),
    )
    ours.unet.to(memory_format=torch.channels_last)
    before, wanted = copy_weights(ours), compute_changes([use])
    with (
        lora.apply_loras(ours, [write_unet_only(lycoris_file, tmp_path / "unet.safetensors")]) as worn,
        torch.no_grad(),
    ):
        worn.set_strengths([[replace(use, strength=1.0)], [replace(use, strength=0.5)]])
        for name, shape in (
            ("mid_block.resnets.0.conv1", (2, 72, 4, 4)),
            ("mid_block.attentions.0.proj_in", (2, 5, 72)),
        ):
            assert ours.unet.get_submodule(name)._forward_hooks
            assert ours.unet.get_submodule(name)(torch.ones(shape, dtype=dtype)).dtype == dtype
    with lora.apply_loras(ours, [use]):
        for name, weight in copy_weights(ours).items():
            error = (weight.float() - before[name].float() - wanted[name]).abs().max()
            assert error <= 6 * torch.finfo(dtype).eps * max(weight.abs().max(), 0.1), name
    assert all(torch.equal(weight, before[name]) for name, weight in copy_weights(ours).items())
