"""Compare each kind of LyCORIS' with LyCORIS' own live modules: `python tests/bench/kinds.py FOLDER`.

FOLDER holds LyCORIS, which Sweetspot does not need: `pip install --no-deps --target FOLDER lycoris-lora
toml`. LyCORIS makes a random network of a kind on nano's U-Net and saves it; the file is read and
applied here at strengths 0.5, 1 and 2. The reference is what a module adds to its layer when the model
runs (`get_weight`): LyCORIS' `merge_to` applies the scale of LoHa and LoKr twice (4.1.3). The rescale of
OFT and BOFT counts in proportion to the strength, as here. Prints the largest difference of any weight
beside the largest change. PEFT's kinds are in tests/lora, where PEFT is at hand.
"""

import copy
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.lora import apply as lora  # noqa: E402
from core.models import bases  # noqa: E402
from core.schema.types import LoraUse  # noqa: E402
from tests.bench.report import save_report  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "LoCon": {"algo": "lora"},
    "LoCon with cores": {"algo": "lora", "use_tucker": True},
    "LoHa": {"algo": "loha"},
    "LoHa with cores": {"algo": "loha", "use_tucker": True},
    "LoHa with DoRA": {"algo": "loha", "weight_decompose": True},
    "LoKr": {"algo": "lokr", "factor": 4},
    "LoKr with cores": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "LoKr in factors": {"algo": "lokr", "factor": 4, "decompose_both": True},
    "full difference": {"algo": "full"},
    "LoCon with norms": {"algo": "lora", "train_norm": True},
    "GLoRA": {"algo": "glora"},
    "GLoRA with cores": {"algo": "glora", "use_tucker": True},
    "IA3": {"algo": "ia3"},
    "IA3 of inputs": {"algo": "ia3", "train_on_input": True},
    "OFT": {"algo": "diag-oft"},
    "OFT with a limit": {"algo": "diag-oft", "constraint": 0.01},
    "OFT with rescale": {"algo": "diag-oft", "rescaled": True},
    "BOFT": {"algo": "boft", "linear_dim": 32, "conv_dim": 32},
    "BOFT with a limit": {"algo": "boft", "linear_dim": 32, "conv_dim": 32, "constraint": 0.01},
    "BOFT with rescale": {"algo": "boft", "linear_dim": 32, "conv_dim": 32, "rescaled": True},
}
SIZES = {"linear_dim": 4, "linear_alpha": 2, "conv_dim": 4, "conv_alpha": 2}
STRENGTHS = (0.5, 1.0, 2.0)


def make_network(module: torch.nn.Module, options: dict[str, Any]) -> Any:
    """Make LyCORIS' network on a module, and put it on."""
    from lycoris import LycorisNetwork, create_lycoris  # type: ignore[reportMissingImports]  (see above)

    layers = ["Linear", "Conv2d", *(["GroupNorm", "LayerNorm"] if "train_norm" in options else [])]
    LycorisNetwork.apply_preset({"target_module": layers})
    network = create_lycoris(module, 1.0, **{**SIZES, **options})
    network.apply_to()
    return network


def add_reference(network: Any, strength: float, weights: dict[str, torch.Tensor]) -> None:
    """Add what the network's modules add at a strength to the weights, by the parameters' names."""
    places = {f"lycoris_{name.rpartition('.')[0].replace('.', '_')}": name for name in weights}
    for module in network.loras:
        stem = places[module.lora_name].rpartition(".")[0]
        base = weights[f"{stem}.weight"].clone()
        if hasattr(module, "w_norm"):
            weights[f"{stem}.weight"] = base + strength * module.w_norm
            weights[f"{stem}.bias"] = weights[f"{stem}.bias"] + strength * module.b_norm
            continue
        if module.name in ("diag-oft", "boft"):  # not always in proportion to the strength
            change = module.make_weight(strength).view_as(base) - base
            if module.rescaled:  # which LyCORIS keeps whole at any strength
                change = change - (1 - strength) * (module.rescale - 1) * base
            weights[f"{stem}.weight"] = base + change
            continue
        if module.name in ("loha", "kron"):
            change = module.get_weight(module.shape) * module.scalar
        else:
            change, bias = module.get_diff_weight(1.0)
            if bias is not None:
                weights[f"{stem}.bias"] = weights[f"{stem}.bias"] + strength * bias
        change = change.view_as(base)
        weights[f"{stem}.weight"] = (
            module.apply_weight_decompose(base + change, strength)
            if getattr(module, "wd", False)
            else base + strength * change
        )


@torch.no_grad()
def compare_kind(options: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the largest difference of a weight from the reference, and the largest change."""
    unet = bases.load_model("nano").unet
    own = {name: value.detach().clone() for name, value in unet.named_parameters()}
    network = make_network(copy.deepcopy(unet), options)
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    file = folder / "network.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    found = {"difference": 0.0, "change": 0.0}
    for strength in STRENGTHS:
        wanted = dict(own)
        add_reference(network, strength, wanted)
        with lora.apply_loras(bases.load_model("nano"), [LoraUse(path=str(file), strength=strength)]):
            for name, value in unet.named_parameters():
                found["difference"] = max(found["difference"], float((value - wanted[name]).abs().max()))
                found["change"] = max(found["change"], float((wanted[name] - own[name]).abs().max()))
    assert all(torch.equal(value, own[name]) for name, value in unet.named_parameters())
    return found


def main() -> None:
    sys.path.append(sys.argv[1])
    logging.disable(logging.INFO)
    torch.manual_seed(0)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, options in KINDS.items():
            report[name] = compare_kind(options, Path(work))
            print(f"{name}: difference {report[name]['difference']:.1e} of {report[name]['change']:.2f}")
    save_report("kinds", report)


if __name__ == "__main__":
    main()
