"""Whole files with each program's own names: every matrix finds its layer, with its alpha.

The names are those that the programs' code writes: sd-scripts and A1111's LyCORIS, diffusers (three
ages), PEFT, ComfyUI, OneTrainer (its five formats) and ai-toolkit.
"""

import copy
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.lora.blocks import to_sai
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import paths
from tests.lora.parts import compute_changes

PARTS = ("unet", "text_encoder", "text_encoder_2")
Layers = dict[tuple[str, str], torch.nn.Linear | torch.nn.Conv2d]
Pairs = Mapping[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
ALPHA, RANK = 3.0, 2


def name_original(path: str) -> str:
    """Return a U-Net layer's path in the original's names, with dots."""
    flat = to_sai(path.replace(".", "_"))
    if found := re.fullmatch(r"(input_blocks|output_blocks)_(\d+)_(\d)_(.+)", flat):
        block, rest = f"{found[1]}.{found[2]}.{found[3]}.", found[4]
    elif found := re.fullmatch(r"(middle_block)_(\d)_(.+)", flat):
        block, rest = f"{found[1]}.{found[2]}.", found[3]
    else:
        return re.sub(r"_(?=\d)", ".", flat)
    if rest in ("op", "conv"):
        return block + rest
    inner = re.split(r"(?:attentions|resnets)\.\d+\.", path)[-1]
    return block + (inner if "attentions" in path else re.sub(r"_(?=\d+$)", ".", rest))


def flatten(path: str) -> str:
    return path.replace(".", "_")


def name_kohya(part: str, path: str) -> str:
    return f"lora_unet_{to_sai(flatten(path))}" if part == "unet" else name_kohya_by_diffusers(part, path)


def name_kohya_by_diffusers(part: str, path: str) -> str:
    prefix = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}[part]
    return f"lora_{prefix}_{flatten(path)}"


def name_comfy(part: str, path: str) -> str:
    if part == "unet":
        return f"diffusion_model.{name_original(path)}"
    return f"text_encoders.{'clip_l' if part == 'text_encoder' else 'clip_g'}.transformer.{path}"


def name_dotted(part: str, path: str) -> str:
    return f"{part}.{path}"


def name_peft(_: str, path: str) -> str:
    return f"base_model.model.{path}"


def name_by_processor(part: str, path: str) -> str:
    """Return the name of a layer of attention as diffusers before 0.21 had it."""
    return f"unet.{re.sub(r'.(to_[a-z]+)(.0)?$', r'.processor.' + chr(92) + '1_lora', path)}"


NAMES: dict[str, tuple[Callable[[str, str], str], str, str, bool]] = {
    "kohya": (name_kohya, ".lora_down.weight", ".lora_up.weight", True),
    "OneTrainer's old": (name_kohya_by_diffusers, ".lora_down.weight", ".lora_up.weight", True),
    "LyCORIS on diffusers": (
        lambda _, path: f"lycoris_{flatten(path)}", ".lora_down.weight", ".lora_up.weight", True
    ),
    "diffusers": (name_dotted, ".lora_A.weight", ".lora_B.weight", False),
    "diffusers 0.21": (name_dotted, ".lora.down.weight", ".lora.up.weight", False),
    "diffusers' processors": (name_by_processor, ".down.weight", ".up.weight", False),
    "diffusers, a U-Net alone": (lambda _, path: path, ".lora_A.weight", ".lora_B.weight", False),
    "PEFT": (name_peft, ".lora_A.weight", ".lora_B.weight", False),
    "PEFT with a name": (name_peft, ".lora_A.me.weight", ".lora_B.me.weight", False),
    "ComfyUI": (name_comfy, ".lora_down.weight", ".lora_up.weight", True),
    "OneTrainer for ComfyUI": (name_comfy, ".lora_A.weight", ".lora_B.weight", True),
    "OneTrainer's original": (lambda _, path: name_original(path), ".lora_A.weight", ".lora_B.weight", True),
    "OneTrainer's own": (name_dotted, ".lora_down.weight", ".lora_up.weight", True),
}  # fmt: skip
"""Program -> names of the layers, ends of the two matrices, and whether each layer has its alpha."""
UNET_ONLY = {
    "LyCORIS on diffusers", "diffusers' processors", "diffusers, a U-Net alone", "PEFT", "PEFT with a name",
    "OneTrainer's original",
}  # fmt: skip


@pytest.fixture(scope="module")
def layers() -> Layers:
    """Return each linear layer and convolution of nano, by part and by its path in files."""
    ours, found = bases.load_model("nano"), {}
    for part in PARTS:
        for path, layer in getattr(ours, part).named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                own = path.removeprefix("text_model.")
                inside = part != "unet" and own.startswith("encoder.")
                found[part, f"text_model.{own}" if inside else path] = layer
    return found


@pytest.fixture(scope="module")
def pairs(layers: Layers) -> Pairs:
    rng = torch.Generator().manual_seed(0)
    return {
        key: (
            torch.randn(RANK, *layer.weight.shape[1:], generator=rng),
            torch.randn(len(layer.weight), RANK, *[1] * (layer.weight.ndim - 2), generator=rng),
        )
        for key, layer in layers.items()
    }


@pytest.mark.parametrize("program", NAMES)
def test_every_matrix_finds_its_layer(program: str, layers: Layers, pairs: Pairs, tmp_path: Path) -> None:
    name, down, up, has_alpha = NAMES[program]
    there = {
        key: pair
        for key, pair in pairs.items()
        if (key[0] == "unet" or program not in UNET_ONLY)
        and (program != "diffusers' processors" or ".attn" in key[1])
    }
    tensors = {}
    for (part, path), pair in there.items():
        stem = name(part, path)
        tensors |= {f"{stem}{down}": pair[0], f"{stem}{up}": pair[1]}
        if has_alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    assert len(tensors) == (3 if has_alpha else 2) * len(there), "two layers have one name"
    save_file(tensors, tmp_path / "it.safetensors")
    found = lora_file.read_lora_file(tmp_path / "it.safetensors")
    assert found.family == "nano"
    matched = {id(layer): module for module, layer in lora.match_layers(bases.load_model("nano"), found)}
    assert matched.keys() == {id(layers[key]) for key in there}
    read = found.load_tensors()
    for key, pair in there.items():
        module = matched[id(layers[key])]
        assert torch.equal(read[module.down], pair[0]), key
        assert torch.equal(read[module.up], pair[1]), key
        assert module.scale == (ALPHA / RANK if has_alpha else 1), key


@pytest.mark.parametrize("program", NAMES)
def test_written_anew_it_changes_the_same(program: str, pairs: Pairs, tmp_path: Path) -> None:
    """*Edit LoRA file* gives any layout kohya's names, and the picture stays."""
    name, down, up, _ = NAMES[program]
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    pair = pairs["unet", path]
    stem = name("unet", path)
    save_file({f"{stem}{down}": pair[0], f"{stem}{up}": pair[1]}, tmp_path / "it.safetensors")
    found = lora_file.read_lora_file(tmp_path / "it.safetensors")
    written = edit.rewrite_lora(found, tmp_path, multiply=2)
    changed = compute_changes([LoraUse(path=str(written))])
    torch.testing.assert_close(changed[path], 2 * pair[1] @ pair[0], atol=1e-5, rtol=1e-5)
    assert sum(bool(change.any()) for change in changed.values()) == 1


def test_what_diffusers_makes_of_pefts_names_is_read(layers: Layers, pairs: Pairs, tmp_path: Path) -> None:
    """Its `convert_state_dict_to_kohya` leaves a U-Net's names flat and without a prefix."""
    for number, start in enumerate(("", "base_model.model.", "unet.")):
        state = {}
        for (part, path), (down, up) in pairs.items():
            if part == "unet":
                state |= {f"{start}{path}.lora_A.weight": down, f"{start}{path}.lora_B.weight": up}
        file = tmp_path / f"{number}.safetensors"
        save_file(convert_state_dict_to_kohya(state), file)
        found = lora.match_layers(bases.load_model("nano"), lora_file.read_lora_file(file))
        assert {id(layer) for _, layer in found} == {
            id(layer) for (part, _), layer in layers.items() if part == "unet"
        }


def test_ai_toolkits_magnitudes_are_one_for_each_output(tmp_path: Path, layers: Layers, pairs: Pairs) -> None:
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    layer, (down, up), stem = layers["unet", path], pairs["unet", path], name_kohya("unet", path)
    both = layer.weight.detach() + up @ down
    magnitude = 2 * both.norm(dim=1)
    save_file(
        {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.magnitude": magnitude},
        tmp_path / "it.safetensors",
    )
    changed = compute_changes([LoraUse(path=str(tmp_path / "it.safetensors"))])[path]
    torch.testing.assert_close(changed, 2 * both - layer.weight.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_numbers_of_any_width_are_applied_as_they_are(
    dtype: torch.dtype, pairs: Pairs, tmp_path: Path
) -> None:
    """OneTrainer narrows alpha, too."""
    path = "down_blocks.1.resnets.0.conv2"
    stem, (down, up) = name_kohya("unet", path), (matrix.to(dtype) for matrix in pairs["unet", path])
    alpha = torch.tensor(ALPHA).to(dtype)
    save_file(
        {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha},
        tmp_path / "it.safetensors",
    )
    changed = compute_changes([LoraUse(path=str(tmp_path / "it.safetensors"))])[path]
    wanted = ALPHA / RANK * (up.float().flatten(1) @ down.float().flatten(1)).view_as(changed)
    torch.testing.assert_close(changed, wanted, atol=1e-5, rtol=1e-5)


def write_peft(folder: Path, pairs: Pairs, layout: str = "base_model.model.") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "adapter_model.safetensors"
    tensors = {}
    for (part, path), (down, up) in pairs.items():
        if part == "unet" and "attn2" in path:
            tensors |= {f"{layout}{path}.lora_A.weight": down, f"{layout}{path}.lora_B.weight": up}
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("layout", ["base_model.model.", "unet.", ""])
@pytest.mark.parametrize("above", [0, 1])
def test_pefts_config_is_read_from_either_folder(
    above: int, layout: str, pairs: Pairs, tmp_path: Path
) -> None:
    """In the file's folder, or in the one above, as in a repository with a folder for each part."""
    file = write_peft(tmp_path / "run" / "unet", pairs, layout)
    config = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {"to_k": 1}, "rank_pattern": {"to_k": RANK}}
    (file.parents[above] / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    found = lora_file.read_lora_file(file)
    scales = {"to_k" in module.name: module.scale for module in found.modules}
    assert scales == {True: 1 / RANK**0.5, False: 8 / RANK**0.5}
    assert not found.notes


def test_the_config_of_the_folder_above_is_not_another_loras(pairs: Pairs, tmp_path: Path) -> None:
    file = write_peft(tmp_path / "run" / "unet", pairs)
    write_peft(tmp_path / "run", pairs)
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 64}))
    assert lora_file.read_lora_file(file).scale == 1


@pytest.mark.parametrize("rank", [0, 0.5, math.nan, "64", -1])
def test_case_04_a_rank_that_is_none_is_refused(rank: object, tmp_path: Path) -> None:
    """A LoKr without factors has its rank in PEFT's settings only."""
    stem = "base_model.model.down_blocks.1.attentions.0.proj_in"
    tensors = {f"{stem}.lokr_w1": torch.ones(8, 8), f"{stem}.lokr_w2": torch.ones(8, 8)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank, "alpha": 1}))
    with pytest.raises(UserError, match="has an invalid rank in PEFT's settings"):
        lora_file.read_lora_file(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "belongs to no part of SDXL"),
        ("lora_unet_down_blocks_9_attentions_0_proj_in", "which this model does not have"),
        (
            "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding",
            "which this model does not",
        ),
    ],
)
def test_a_key_without_a_place_is_named(key: str, why: str, pairs: Pairs, tmp_path: Path) -> None:
    tensors = {"lora_unet_time_embed_0.diff": torch.ones(192, 48)}
    tensors |= {f"{key}.lora_down.weight": torch.ones(1, 4), f"{key}.lora_up.weight": torch.ones(4, 1)}
    save_file(tensors, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match=why):
        compute_changes([LoraUse(path=str(tmp_path / "it.safetensors"))])


CONFIGS: dict[str, PeftConfig] = {
    "LoRA": LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, alpha_pattern={"to_q": 3}, rank_pattern={"to_k": 2}
    ),
    "DoRA": LoraConfig(r=4, lora_alpha=2, use_dora=True),
    "LoHa": LoHaConfig(r=4, alpha=6, alpha_pattern={"to_q": 3}, use_effective_conv2d=True),
    "LoKr in factors": LoKrConfig(r=2, alpha=3, decompose_both=True, use_effective_conv2d=True),
    "LoKr without factors": LoKrConfig(r=64, alpha=16, rank_pattern={"to_k": 32}, alpha_pattern={"to_q": 48}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_saves_is_pefts_own_merge(kind: str, tmp_path: Path) -> None:
    """Patterns of ranks and alphas too; also after it is written anew in kohya's layout."""
    config = copy.deepcopy(CONFIGS[kind])
    config.target_modules = {"to_q", "to_k", "conv1", "conv_shortcut", "time_emb_proj"}
    folder = Path(paths.locate(bases.find_model("nano").source)) / "unet"
    peft: Any = get_peft_model(UNet2DConditionModel.from_pretrained(folder), config)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for name, parameter in peft.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        elif "lora_" in name or "lokr_" in name or "hada_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(tmp_path)
    own = {path: layer.weight.detach().clone() for path, layer in peft.base_model.model.named_modules()
           if hasattr(layer, "weight") and hasattr(layer, "base_layer")}  # fmt: skip
    merged: Any = peft.merge_and_unload()
    found = lora_file.read_lora_file(tmp_path / "adapter_model.safetensors")
    assert found.notes == ()
    for file in (found.path, edit.rewrite_lora(found, tmp_path / "new", keep="all")):
        changed = compute_changes([LoraUse(path=str(file))])
        for path, weight in own.items():
            wanted = merged.get_submodule(path).weight - weight
            assert wanted.abs().max() > 1e-3
            torch.testing.assert_close(changed[path], wanted, atol=1e-5, rtol=1e-5)
