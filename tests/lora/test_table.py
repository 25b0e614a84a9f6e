"""The table of docs/lora-kinds.md is true: each kind in each layout is applied, mixed and written anew."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.lora.blocks import to_sai
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from tests.lora import formulas as f
from tests.lora.parts import compute_changes, predict_noise

PAGE = Path(__file__).parents[2] / "docs" / "lora-kinds.md"
KINDS: dict[str, tuple[f.Make, str]] = {
    "LoRA, LoCon": (f.make_lora, f.CONV),
    "LoRA with a core": (f.make_locon_with_a_core, f.CONV),
    "LoHa": (f.make_loha, f.LINEAR),
    "LoHa with cores": (f.make_loha_with_cores, f.CONV),
    "LoKr in factors": (f.make_lokr, f.LINEAR),
    "LoKr without factors": (f.make_full_lokr, f.CONV),
    "LoKr with a core": (f.make_lokr_with_a_core, f.CONV),
    "GLoRA": (f.make_glora, f.CONV),
    "full difference": (f.make_difference, f.LINEAR),
    "LoRA with a bias": (f.make_lora_with_a_bias, f.LINEAR),
    "norm": (f.make_norm, f.NORM),
    "IA3": (f.make_ia3_of_inputs, f.CONV),
    "DoRA": (f.add_magnitudes(f.make_lora), f.CONV),
    "LoHa with DoRA": (f.add_magnitudes(f.make_loha), f.LINEAR),
    "LoKr with DoRA": (f.add_magnitudes(f.make_lokr), f.CONV),
    "OFT": (f.make_oft, f.LINEAR),
    "OFT with rescale": (f.add_rescale(f.make_oft), f.CONV),
    "OFT of inputs": (f.make_oft_of_inputs, f.LINEAR),
    "BOFT": (f.make_boft, f.CONV),
}
LAYOUTS = {
    "kohya": lambda path: f"lora_unet_{to_sai(path.replace('.', '_'))}",
    "diffusers": lambda path: f"unet.{path}",
    "ComfyUI": lambda path: f"diffusion_model.{path}",
    "PEFT": lambda path: f"base_model.model.{path}",
}
PEFT_NAMES = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}


def read_table() -> dict[str, dict[str, str]]:
    """Return the rows of the page's first table: kind -> column -> cell."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2 : 2 + len(KINDS)]}


TABLE = read_table()


def write_kind(kind: str, layout: str, folder: Path) -> tuple[LoraUse, torch.Tensor]:
    """Write a kind in a layout, and return it with the change of the weight that it makes at strength 1."""
    make, path = KINDS[kind]
    rng = torch.Generator().manual_seed(3)
    shape = bases.load_model("nano").unet.get_submodule(path).weight.shape
    parts, change, _ = make(shape, lambda *shape: 0.2 * torch.randn(shape, generator=rng))
    named = {
        name.replace("__", "."): value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in parts.items()
    }
    if layout == "PEFT":
        alpha = named.pop("alpha", torch.tensor(0.0))
        settings = {"lora_alpha": float(alpha), "alpha": float(alpha), "use_cayley_neumann": True}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        named = {PEFT_NAMES.get(name, name): value for name, value in named.items()}
        if "lora_magnitude_vector" in named:
            named["lora_magnitude_vector"] = named["lora_magnitude_vector"].transpose(0, 1)
    stem = LAYOUTS[layout](path)
    file = folder / "adapter_model.safetensors"
    save_file({f"{stem}.{name}": value.contiguous() for name, value in named.items()}, file)
    return LoraUse(path=str(file)), change.view(shape)


def get_change(use: LoraUse, path: str) -> torch.Tensor:
    """Return what a use adds to a layer's weight, also of a norm."""
    ours = bases.load_model("nano")
    weight = ours.unet.get_submodule(path).weight
    before = weight.detach().clone()
    with lora.apply_loras(ours, [use]):
        return weight.detach() - before


def test_the_table_has_every_kind() -> None:
    assert TABLE.keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, layout) for kind, row in TABLE.items() for layout in LAYOUTS if row[layout] == "yes"],
)
def test_a_kind_in_a_layout_is_applied(kind: str, layout: str, tmp_path: Path) -> None:
    use, change = write_kind(kind, layout, tmp_path)
    path = KINDS[kind][1]
    found = lora_file.read_lora_file(Path(use.path))
    assert found.format == layout
    torch.testing.assert_close(get_change(use, path), change, atol=1e-5, rtol=1e-5)
    twice = get_change(replace(use, strength=2.0), path)
    is_linear = bool(torch.allclose(twice, 2 * change, atol=1e-5, rtol=1e-5))
    assert is_linear == (TABLE[kind]["at strength s"] == "s D")
    assert is_linear or any("not in proportion" in note for note in found.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_strengths_is_each_alone(kind: str, tmp_path: Path) -> None:
    """Also the strength 0, which is the base."""
    use, _ = write_kind(kind, "kohya", tmp_path)
    ours, strengths = bases.load_model("nano"), (0.5, 2.0, 0.0, -1.0)
    plain = predict_noise(ours)
    rng = torch.Generator().manual_seed(1)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]]).repeat(4, 1)
    draws = [torch.randn(size, generator=rng) for size in ((1, 4, 16, 16), (1, 77, 160), (1, 96))]
    x, states, pooled = (draw.repeat(4, *[1] * (draw.ndim - 1)) for draw in draws)
    with lora.apply_loras(ours, [use]) as applied, torch.no_grad():
        applied.set_strengths([[replace(use, strength=strength)] for strength in strengths])
        together = ours.unet(
            x, 500, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
        ).sample
        for number, strength in enumerate(strengths):
            applied.set_strengths([[replace(use, strength=strength)]])
            alone = predict_noise(ours)[0]
            assert bool((alone - plain[0]).abs().max() > 1e-4) == bool(strength)
            assert (together[number] - alone).abs().max() <= 1e-5 * alone.abs().max(), strength


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_written_anew_as_the_table_says(kind: str, tmp_path: Path) -> None:
    use, change = write_kind(kind, "ComfyUI", tmp_path)
    path, found, how = KINDS[kind][1], lora_file.read_lora_file(Path(use.path)), TABLE[kind]["written anew"]
    target = tmp_path / "new"
    same = edit.rewrite_lora(found, target, keep="all")
    assert lora_file.read_lora_file(same).kind == found.kind
    assert torch.equal(get_change(LoraUse(path=str(same)), path), get_change(use, path))
    if how == "blocks only":
        with pytest.raises(UserError, match="whose strength does not depend on alpha"):
            edit.rewrite_lora(found, target, multiply=2)
        assert list(target.iterdir()) == [same], "refused before anything is written"
        return
    twice = edit.rewrite_lora(found, target, multiply=2)
    torch.testing.assert_close(get_change(LoraUse(path=str(twice)), path), 2 * change, atol=1e-5, rtol=1e-5)
    old, new = found.load_tensors(), lora_file.read_lora_file(twice).load_tensors()
    kept = sum(any(torch.equal(value, other) for other in new.values()) for value in old.values())
    assert (kept == len(old)) == (how == "alpha")


def test_block_merges_keep_each_kind(tmp_path: Path) -> None:
    """The style block of an OFT and the content block of a LoHa stay what they are in one file."""
    made = {}
    for name, kind, path in (
        ("style", "OFT", "up_blocks.0.attentions.1.proj_in"),
        ("content", "LoHa", "up_blocks.0.attentions.0.proj_in"),
    ):
        shape = bases.load_model("nano").unet.get_submodule(path).weight.shape
        parts = (
            {"oft_blocks": torch.ones(shape[0] // 8, 8, 8).triu(1), "alpha": torch.tensor(0.0)}
            if kind == "OFT"
            else {f"hada_w{n}": torch.ones(shape[0], 2) if n[-1] == "a" else torch.ones(2, shape[1]) for n in
                  ("1_a", "1_b", "2_a", "2_b")}
        )  # fmt: skip
        file = tmp_path / f"{name}.safetensors"
        save_file({f"{LAYOUTS['kohya'](path)}.{part}": value for part, value in parts.items()}, file)
        made[name] = lora_file.read_lora_file(file)
    both = lora_file.read_lora_file(edit.combine_loras(made["style"], made["content"], tmp_path / "new"))
    assert {module.kind for module in both.modules} == {"OFT", "LoHa"}
    apart = compute_changes([LoraUse(path=str(file.path)) for file in made.values()])
    for path, change in compute_changes([LoraUse(path=str(both.path))]).items():
        torch.testing.assert_close(change, apart[path], atol=1e-6, rtol=1e-5)


def test_every_layout_of_the_page_is_one_that_the_studio_names() -> None:
    rows = re.findall(r"^\| (\w+) \| `", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [row for row in rows if row in LAYOUTS] == [*LAYOUTS]
