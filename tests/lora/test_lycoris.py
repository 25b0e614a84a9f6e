"""LyCORIS files that PEFT does not write, against written-out formulas, and refused files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.lora.file import LoraFile
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from tests.lora.parts import assert_samples_are_alone, compute_changes, write_lora
from tests.model import fingerprint

CONV_LAYER, LINEAR_LAYER = (
    "down_blocks.1.resnets.0.conv2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
)


def dora_change(weight: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Return magnitude * V / |V| with V = weight + change.

    The norm is over all dimensions but the one that magnitudes have.
    """
    both = weight + change.view_as(weight)
    over = [i for i in range(weight.ndim) if magnitude.shape[i] == 1]
    return magnitude * both / both.square().sum(over, keepdim=True).sqrt() - weight


@pytest.mark.parametrize("name", [CONV_LAYER, LINEAR_LAYER])
@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoKr in factors"])
def test_magnitudes_of_outputs_and_of_inputs(tmp_path: Path, name: str, along: int, kind: str) -> None:
    ours, rng = bases.load_model("nano"), torch.Generator().manual_seed(3)
    layer = ours.unet.get_submodule(name)
    weight = layer.weight.detach().clone()
    out, inputs, *kernel = weight.shape
    area = weight[0, 0].numel()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng) * 0.2

    if kind == "LoRA":
        parts = {
            "lora_down__weight": draw(3, inputs, *kernel),
            "lora_up__weight": draw(out, 3, *[1] * len(kernel)),
            "alpha": 6.0,
        }
        change = 2 * parts["lora_up__weight"].flatten(1) @ parts["lora_down__weight"].flatten(1)
    elif kind == "LoKr":
        parts = {"lokr_w1": draw(4, 2), "lokr_w2": draw(out // 4, inputs // 2, *kernel), "alpha": 6.0}
        change = torch.kron(parts["lokr_w1"], parts["lokr_w2"].flatten(1))
    else:
        parts = {
            "lokr_w1": draw(4, 2),
            "lokr_w2_a": draw(out // 4, 3),
            "lokr_w2_b": draw(3, inputs // 2 * area),
            "alpha": 6.0,
        }
        change = 2 * torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    magnitude = (
        weight.transpose(0, along)
        .flatten(1)
        .norm(dim=1)
        .view([-1 if i == along else 1 for i in range(weight.ndim)])
    )
    magnitude = magnitude * (1 + draw(*magnitude.shape))
    use = write_lora(tmp_path / "it.safetensors", name, **parts, dora_scale=magnitude)
    assert lora_file.read_lora_file(Path(use.path)).kind == ("DoRA" if kind == "LoRA" else "LoKr with DoRA")
    wanted = dora_change(weight, change, magnitude)
    torch.testing.assert_close(
        compute_changes([replace(use, strength=-0.5)])[name], wanted * -0.5, atol=1e-5, rtol=1e-4
    )
    x = torch.randn(4, inputs, 6, 6, generator=rng) if kernel else torch.randn(4, 5, inputs, generator=rng)
    assert_samples_are_alone(layer, x, use)
    kept = edit.rewrite_lora(lora_file.read_lora_file(Path(use.path)), tmp_path, keep="all")
    assert torch.equal(compute_changes([LoraUse(path=str(kept))])[name], compute_changes([use])[name])


def test_a_row_of_nothing_stays_nothing(tmp_path: Path) -> None:
    ours = bases.load_model("nano")
    layer = ours.unet.get_submodule(LINEAR_LAYER)
    own = layer.weight.detach().clone()
    try:
        layer.weight.data[5] = 0
        up = torch.ones(len(own), 1).index_fill_(0, torch.tensor([5]), 0)
        use = write_lora(
            tmp_path / "it.safetensors",
            LINEAR_LAYER,
            lora_down__weight=torch.ones(1, own.shape[1]),
            lora_up__weight=up,
            dora_scale=torch.ones(len(own), 1),
        )
        with lora.apply_loras(ours, [use]):
            assert torch.isfinite(layer.weight).all()
            assert not layer.weight[5].any()
    finally:
        layer.weight.data.copy_(own)


@pytest.mark.parametrize("name", [CONV_LAYER, LINEAR_LAYER])
def test_pefts_own_names_of_magnitudes(tmp_path: Path, name: str) -> None:
    """diffusers' DoRA scripts write one magnitude an output, as a row, even with as many inputs."""
    weight = bases.load_model("nano").unet.get_submodule(name).weight.detach()
    out, inputs, *kernel = weight.shape
    down, up, magnitude = (
        torch.full((2, inputs, *kernel), 0.1),
        torch.full((out, 2, *[1] * len(kernel)), 0.1),
        torch.linspace(0.5, 2, out),
    )
    as_row = magnitude.view(1, -1, 1, 1) if kernel else magnitude
    names = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": as_row}
    save_file(
        {f"unet.{name}.{end}": value.contiguous() for end, value in names.items()},
        tmp_path / "it.safetensors",
    )
    found = lora_file.read_lora_file(tmp_path / "it.safetensors")
    assert (found.format, found.kind) == ("diffusers", "DoRA")
    wanted = dora_change(
        weight, up.flatten(1) @ down.flatten(1), magnitude.view(-1, *[1] * (weight.ndim - 1))
    )
    for file in (found.path, edit.rewrite_lora(found, tmp_path)):
        torch.testing.assert_close(
            compute_changes([LoraUse(path=str(file))])[name], wanted, atol=1e-5, rtol=1e-4
        )


def test_a_product_larger_than_its_layer_is_never_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraFile, "load_tensors", lambda _: pytest.fail("a tensor was read"))
    huge = {
        "lokr_w1_a": torch.ones(60000, 1),
        "lokr_w1_b": torch.ones(1, 60000),
        "lokr_w2_a": torch.ones(60000, 1),
        "lokr_w2_b": torch.ones(1, 60000),
    }
    use = write_lora(tmp_path / "huge.safetensors", CONV_LAYER, **huge)
    for wear in (
        lambda: lora.AppliedLoras(bases.load_model("nano"), [lora.get_lora_file(use.path)]),
        lambda: lora.measure_norms(bases.load_model("nano"), lora.get_lora_file(use.path)),
    ):
        with pytest.raises(
            UserError, match=r"does not fit this model: .* and \(3600000000, 3600000000\) there"
        ):
            wear()


LORA_PAIR = {"lora_down__weight": torch.ones(2, 160), "lora_up__weight": torch.ones(64, 2)}
LOKR_FACTORS = {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(8, 20)}
BAD_FILES = {
    "both": (
        {**LORA_PAIR, **LOKR_FACTORS},
        r"is incomplete: it only has lokr_w1, lokr_w2, lora_down\.weight, lora_up\.weight\.",
    ),
    "half": (
        {"lokr_w1": LOKR_FACTORS["lokr_w1"], "lokr_w2_a": torch.ones(8, 2)},
        "is incomplete: it only has lokr_w1, lokr_w2_a",
    ),
    "alone": ({"dora_scale": torch.ones(64, 1)}, "is incomplete: it only has dora_scale"),
    "twice": (
        {**LOKR_FACTORS, "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 20)},
        "is incomplete: it only has",
    ),
    "core": (
        {**LOKR_FACTORS, "lokr_t2": torch.ones(2, 2, 3, 3)},
        "is incomplete: it only has lokr_t2, lokr_w1, lokr_w2",
    ),
    "loha": ({"hada_w1_a": torch.ones(2, 2)}, "is incomplete: it only has hada_w1_a"),
    "loha ranks": (
        {
            "hada_w1_a": torch.ones(64, 2),
            "hada_w1_b": torch.ones(2, 160),
            "hada_w2_a": torch.ones(64, 3),
            "hada_w2_b": torch.ones(3, 160),
        },
        "make no Hadamard product",
    ),
    "loha core": (
        {
            "hada_w1_a": torch.ones(2, 64),
            "hada_w1_b": torch.ones(2, 160),
            "hada_w2_a": torch.ones(2, 64),
            "hada_w2_b": torch.ones(2, 160),
            "hada_t1": torch.ones(2, 2, 3, 3),
            "hada_t2": torch.ones(2, 3, 3, 3),
        },
        "make no Hadamard product",
    ),
    "middle": (
        {
            "lora_down__weight": torch.ones(2, 160, 3, 3),
            "lora_up__weight": torch.ones(64, 2, 1, 1),
            "lora_mid__weight": torch.ones(2, 2, 3, 3),
        },
        "rank must be from 1",
    ),
    "difference": ({"diff": torch.ones(64)}, "which no layer has"),
    "flat": (
        {"lokr_w1": torch.ones(8), "lokr_w2": torch.ones(8, 20)},
        r"make no Kronecker product: w1 \(8,\), w2 \(8, 20\)",
    ),
    "deep": ({"lokr_w1": torch.ones(8, 8, 1, 1), "lokr_w2": torch.ones(8, 20)}, "make no Kronecker product"),
    "empty": ({"lokr_w1": torch.ones(8, 0), "lokr_w2": torch.ones(8, 20)}, "make no Kronecker product"),
    "torn": (
        {"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(3, 20)},
        "make no Kronecker product",
    ),
    "ranks": (
        {
            "lokr_w1_a": torch.ones(8, 3),
            "lokr_w1_b": torch.ones(3, 8),
            "lokr_w2_a": torch.ones(8, 2),
            "lokr_w2_b": torch.ones(2, 20),
        },
        "a rank must be from 1 to 4096 and the same in all",
    ),
    "rank": (
        {"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(8, 5000), "lokr_w2_b": torch.ones(5000, 20)},
        "make no Kronecker product",
    ),
    "magnitudes": (
        {**LORA_PAIR, "dora_scale": torch.ones(63, 1)},
        r"has magnitudes of \(63, 1\) for a layer of \(64, 160\)",
    ),
    "matrix": ({**LORA_PAIR, "dora_scale": torch.ones(64, 160)}, "has magnitudes of"),
    "one": ({**LORA_PAIR, "dora_scale": torch.ones(())}, "has magnitudes of"),
    "row": ({**LORA_PAIR, "dora_scale": torch.ones(160)}, "has magnitudes of"),
    "turned": ({**LORA_PAIR, "dora_scale": torch.ones(1, 64)}, "has magnitudes of"),
    "nan": ({**LORA_PAIR, "dora_scale": torch.full((64, 1), float("nan"))}, "contains NaN or infinite"),
    "infinite": ({**LOKR_FACTORS, "lokr_w2": torch.full((8, 20), float("inf"))}, "contains NaN or infinite"),
    "zero": ({**LOKR_FACTORS, "lokr_w2": torch.zeros(8, 20)}, "changes nothing"),
    "alpha": ({**LOKR_FACTORS, "alpha": float("nan")}, "has an invalid alpha"),
    "norms": ({**LORA_PAIR, "w_norm": torch.ones(64)}, "is incomplete: it only has lora_down.weight"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_case_04_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    parts, why = BAD_FILES[name]
    use = write_lora(tmp_path / f"{name}.safetensors", LINEAR_LAYER, **parts)
    with pytest.raises(UserError, match=why) as refused:
        lora_file.read_lora_file(Path(use.path))
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 300


def test_a_lokr_in_pefts_layout_is_refused(tmp_path: Path) -> None:
    save_file(
        {f"base_model.model.{LINEAR_LAYER}.{end}": value for end, value in LOKR_FACTORS.items()},
        tmp_path / "it.safetensors",
    )
    with pytest.raises(UserError, match="is in PEFT's own layout, which stores alpha in adapter_config"):
        lora_file.read_lora_file(tmp_path / "it.safetensors")


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        (CONV_LAYER, LOKR_FACTORS),
        (
            CONV_LAYER,
            {"lokr_w1": torch.ones(1, 9), "lokr_w2_a": torch.ones(64, 2), "lokr_w2_b": torch.ones(2, 64)},
        ),
        (CONV_LAYER, {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(8, 8, 1, 9)}),
        (LINEAR_LAYER, {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(8, 20, 3, 3)}),
        (LINEAR_LAYER, {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(20, 8)}),
        (
            CONV_LAYER,
            {
                "lokr_w1": torch.ones(8, 8),
                "lokr_w2_a": torch.ones(8, 2),
                "lokr_w2_b": torch.ones(2, 72),
                "dora_scale": torch.ones(1, 96, 1, 1),
            },
        ),
    ],
)
def test_case_04_what_does_not_fit_is_refused_before_anything_changes(
    tmp_path: Path, layer: str, parts: dict
) -> None:
    use, before = write_lora(tmp_path / "it.safetensors", layer, **parts), fingerprint()
    with (
        pytest.raises(UserError, match="does not fit this model"),
        lora.apply_loras(bases.load_model("nano"), [use]),
    ):
        pass
    assert fingerprint() == before
