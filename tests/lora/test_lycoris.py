"""LyCORIS' files that PEFT does not write, beside formulas written out; and those that are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core import edit, lora, lorafile, models
from core.lorafile import LoraFile
from core.types import LoraUse, UserError
from tests.lora.parts import changes_of, made
from tests.model import fingerprint

CONV, LINEAR = "down_blocks.1.resnets.0.conv2", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def decomposed(weight: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """magnitude * V / |V| with V = weight + change, the norm over all but the dimension that magnitudes have."""
    both = weight + change.view_as(weight)
    over = [i for i in range(weight.ndim) if magnitude.shape[i] == 1]
    return magnitude * both / both.square().sum(over, keepdim=True).sqrt() - weight


@pytest.mark.parametrize("name", [CONV, LINEAR])
@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoKr in factors"])
def test_magnitudes_of_outputs_and_of_inputs(tmp_path: Path, name: str, along: int, kind: str) -> None:
    ours, rng = models.load("nano"), torch.Generator().manual_seed(3)
    layer = ours.unet.get_submodule(name)
    weight = layer.weight.detach().clone()
    out, inputs, *kernel = weight.shape
    area = weight[0, 0].numel()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng) * 0.2

    if kind == "LoRA":
        parts = {"lora_down__weight": draw(3, inputs, *kernel), "lora_up__weight": draw(out, 3, *[1] * len(kernel)), "alpha": 6.0}
        change = 2 * parts["lora_up__weight"].flatten(1) @ parts["lora_down__weight"].flatten(1)
    elif kind == "LoKr":
        parts = {"lokr_w1": draw(4, 2), "lokr_w2": draw(out // 4, inputs // 2, *kernel), "alpha": 6.0}
        change = torch.kron(parts["lokr_w1"], parts["lokr_w2"].flatten(1))
    else:
        parts = {"lokr_w1": draw(4, 2), "lokr_w2_a": draw(out // 4, 3), "lokr_w2_b": draw(3, inputs // 2 * area), "alpha": 6.0}
        change = 2 * torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    magnitude = weight.transpose(0, along).flatten(1).norm(dim=1).view([-1 if i == along else 1 for i in range(weight.ndim)])
    magnitude = magnitude * (1 + draw(*magnitude.shape))
    use = made(tmp_path / "it.safetensors", name, **parts, dora_scale=magnitude)
    assert lorafile.read(Path(use.path)).kind == ("DoRA" if kind == "LoRA" else "LoKr with DoRA")
    wanted = decomposed(weight, change, magnitude)
    torch.testing.assert_close(changes_of([replace(use, strength=-0.5)])[name], wanted * -0.5, atol=1e-5, rtol=1e-4)
    x = torch.randn(4, inputs, 6, 6, generator=rng) if kernel else torch.randn(4, 5, inputs, generator=rng)
    with lora.loaded(ours, [use]) as worn, torch.no_grad():
        worn.set([[replace(use, strength=strength)] for strength in (1.0, -0.5)])
        together = layer(x)
        for i, strength in enumerate((1.0, -0.5, 1.0, -0.5)):
            worn.set([[replace(use, strength=strength)]])
            torch.testing.assert_close(together[i], layer(x[i : i + 1])[0], atol=1e-4, rtol=1e-4)
    kept = edit.edited(lorafile.read(Path(use.path)), tmp_path, keep="all")
    assert torch.equal(changes_of([LoraUse(path=str(kept))])[name], changes_of([use])[name])


def test_a_row_of_nothing_stays_nothing(tmp_path: Path) -> None:
    ours = models.load("nano")
    layer = ours.unet.get_submodule(LINEAR)
    own = layer.weight.detach().clone()
    try:
        layer.weight.data[5] = 0
        up = torch.ones(len(own), 1).index_fill_(0, torch.tensor([5]), 0)
        use = made(tmp_path / "it.safetensors", LINEAR, lora_down__weight=torch.ones(1, own.shape[1]), lora_up__weight=up, dora_scale=torch.ones(len(own), 1))
        with lora.loaded(ours, [use]):
            assert torch.isfinite(layer.weight).all()
            assert not layer.weight[5].any()
    finally:
        layer.weight.data.copy_(own)


@pytest.mark.parametrize("name", [CONV, LINEAR])
def test_pefts_own_names_of_magnitudes(tmp_path: Path, name: str) -> None:
    """diffusers' DoRA scripts: one an output, as a row, also where as many inputs are."""
    weight = models.load("nano").unet.get_submodule(name).weight.detach()
    out, inputs, *kernel = weight.shape
    down, up, magnitude = torch.full((2, inputs, *kernel), 0.1), torch.full((out, 2, *[1] * len(kernel)), 0.1), torch.linspace(0.5, 2, out)
    as_row = magnitude.view(1, -1, 1, 1) if kernel else magnitude
    names = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": as_row}
    save_file({f"unet.{name}.{end}": value.contiguous() for end, value in names.items()}, tmp_path / "it.safetensors")
    found = lorafile.read(tmp_path / "it.safetensors")
    assert (found.format, found.kind) == ("diffusers", "DoRA")
    wanted = decomposed(weight, up.flatten(1) @ down.flatten(1), magnitude.view(-1, *[1] * (weight.ndim - 1)))
    for file in (found.path, edit.edited(found, tmp_path)):
        torch.testing.assert_close(changes_of([LoraUse(path=str(file))])[name], wanted, atol=1e-5, rtol=1e-4)


def test_a_product_larger_than_its_layer_is_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraFile, "tensors", lambda _: pytest.fail("a tensor was read"))
    huge = {"lokr_w1_a": torch.ones(60000, 1), "lokr_w1_b": torch.ones(1, 60000), "lokr_w2_a": torch.ones(60000, 1), "lokr_w2_b": torch.ones(1, 60000)}
    use = made(tmp_path / "huge.safetensors", CONV, **huge)
    for wear in (lambda: lora.Loaded(models.load("nano"), [lora.file(use.path)]), lambda: lora.norms(models.load("nano"), lora.file(use.path))):
        with pytest.raises(UserError, match=r"does not fit this model: .* and \(3600000000, 3600000000\) there"):
            wear()


PAIR = {"lora_down__weight": torch.ones(2, 160), "lora_up__weight": torch.ones(64, 2)}
WHOLE = {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(8, 20)}
BAD = {
    "both": ({**PAIR, **WHOLE}, r"is not a whole change: all it has is lokr_w1, lokr_w2, lora_down\.weight, lora_up\.weight\."),
    "half": ({"lokr_w1": WHOLE["lokr_w1"], "lokr_w2_a": torch.ones(8, 2)}, "is not a whole change: all it has is lokr_w1, lokr_w2_a"),
    "alone": ({"dora_scale": torch.ones(64, 1)}, "is not a whole change: all it has is dora_scale"),
    "twice": ({**WHOLE, "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 20)}, "is not a whole change"),
    "core": ({**WHOLE, "lokr_t2": torch.ones(2, 2, 3, 3)}, "is LoKr with a core tensor; it takes LoRA, LoCon, DoRA and LoKr for SDXL"),
    "loha": ({"hada_w1_a": torch.ones(2, 2)}, "is LoHa; it takes"),
    "flat": ({"lokr_w1": torch.ones(8), "lokr_w2": torch.ones(8, 20)}, r"make no Kronecker product: w1 \(8,\), w2 \(8, 20\)"),
    "deep": ({"lokr_w1": torch.ones(8, 8, 1, 1), "lokr_w2": torch.ones(8, 20)}, "make no Kronecker product"),
    "empty": ({"lokr_w1": torch.ones(8, 0), "lokr_w2": torch.ones(8, 20)}, "make no Kronecker product"),
    "torn": ({"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(3, 20)}, "make no Kronecker product"),
    "ranks": (
        {"lokr_w1_a": torch.ones(8, 3), "lokr_w1_b": torch.ones(3, 8), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 20)},
        "a rank must be from 1 to 4096 and the same in all",
    ),
    "rank": ({"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(8, 5000), "lokr_w2_b": torch.ones(5000, 20)}, "make no Kronecker product"),
    "magnitudes": ({**PAIR, "dora_scale": torch.ones(63, 1)}, r"has magnitudes of \(63, 1\) for a layer of \(64, 160\)"),
    "matrix": ({**PAIR, "dora_scale": torch.ones(64, 160)}, "has magnitudes of"),
    "one": ({**PAIR, "dora_scale": torch.ones(())}, "has magnitudes of"),
    "row": ({**PAIR, "dora_scale": torch.ones(160)}, "has magnitudes of"),
    "turned": ({**PAIR, "dora_scale": torch.ones(1, 64)}, "has magnitudes of"),
    "nan": ({**PAIR, "dora_scale": torch.full((64, 1), float("nan"))}, "holds NaN or infinite"),
    "infinite": ({**WHOLE, "lokr_w2": torch.full((8, 20), float("inf"))}, "holds NaN or infinite"),
    "zero": ({**WHOLE, "lokr_w2": torch.zeros(8, 20)}, "changes nothing"),
    "alpha": ({**WHOLE, "alpha": float("nan")}, "is not a number that alpha can be"),
    "norms": ({**PAIR, "w_norm": torch.ones(64)}, "which is not known here"),
}


@pytest.mark.parametrize("name", BAD)
def test_case_04_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    parts, why = BAD[name]
    use = made(tmp_path / f"{name}.safetensors", LINEAR, **parts)
    with pytest.raises(UserError, match=why) as refused:
        lorafile.read(Path(use.path))
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 300


def test_a_lokr_in_pefts_layout_is_refused(tmp_path: Path) -> None:
    save_file({f"base_model.model.{LINEAR}.{end}": value for end, value in WHOLE.items()}, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match="is a LoKr in PEFT's own layout, which does not tell its alpha"):
        lorafile.read(tmp_path / "it.safetensors")


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        (CONV, WHOLE),
        (CONV, {"lokr_w1": torch.ones(1, 9), "lokr_w2_a": torch.ones(64, 2), "lokr_w2_b": torch.ones(2, 64)}),
        (CONV, {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(8, 8, 1, 9)}),
        (LINEAR, {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(8, 20, 3, 3)}),
        (LINEAR, {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(20, 8)}),
        (CONV, {"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 72), "dora_scale": torch.ones(1, 96, 1, 1)}),
    ],
)
def test_case_04_what_does_not_fit_is_refused_before_anything_changes(tmp_path: Path, layer: str, parts: dict) -> None:
    use, before = made(tmp_path / "it.safetensors", layer, **parts), fingerprint()
    with pytest.raises(UserError, match="does not fit this model"), lora.loaded(models.load("nano"), [use]):
        pass
    assert fingerprint() == before
