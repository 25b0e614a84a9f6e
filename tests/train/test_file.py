"""The LoRA file that a training leaves.

Read by diffusers and by the studio, it does at strength 1 what the training saw.
"""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from core.dataset import dataset as datasets
from core.lora import apply as lora
from core.lora import file as lora_file
from core.models import bases
from core.runtime import torch_thread
from core.schema.types import LoraUse
from core.train.trainer import export
from core.train.trainer.adapter import Adapter
from core.train.trainer.settings import load_recipes
from tests.train.parts import make_dataset, prepare_run

NANO = Path(__file__).parent.parent.parent / "core" / "nano" / "weights" / "nano"
PROMPTS = ("1girl, flow, blue hair", "no humans, gradient")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "pictures")


def make_adapter_file(
    data: datasets.Dataset, run_folder: Path, recipe: str, **overrides
) -> tuple[Adapter, Path]:
    """Return an adapter and its exported file as a training leaves them, without the waiting.

    Noise of standard deviation 0.1 on every matrix stands for what it learnt.
    """
    folder, run = prepare_run(data, run_folder, recipe, **overrides)

    def make() -> Adapter:
        adapter = Adapter(bases.load_model("nano"), run.settings)
        noise = torch.Generator().manual_seed(1)
        adapter.values.add_(torch.randn(len(adapter.values), generator=noise) * 0.1)
        export.export_lora(adapter, run, data, 12, folder.loras / f"{run.name}.safetensors", {(128, 128): 4})
        return adapter

    return torch_thread.run_on_torch_thread(make), folder.loras / f"{run.name}.safetensors"


@torch.no_grad()
def predict_noise(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    """Return the U-Net's prediction for noise under two prompts, text encoders included."""
    states, _, pooled, _ = pipeline.encode_prompt(
        list(PROMPTS),  # type: ignore[arg-type]
        do_classifier_free_guidance=False,
    )
    noise, ids = (
        torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5)),
        torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2),
    )
    return pipeline.unet(
        noise, torch.tensor([300, 700]), states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
    ).sample


def predict_with_studio(file: Path) -> torch.Tensor:
    """Return the same prediction of nano with the studio's LoRA of this file, at strength 1."""
    pipeline = bases.load_model("nano")
    with lora.apply_loras(pipeline, [LoraUse(path=str(file))]):
        return predict_noise(pipeline)


ADAPTER_CASES = [
    *((name, {}) for name in load_recipes()),
    ("nano-quick", {"text_encoders": True, "targets": "attention + feed-forward"}),
    ("nano-quick", {"targets": "attention + feed-forward + convolution", "rank": 6, "alpha": 1.5}),
    ("nano-quick", {"ranks": "OUT00=2, OUT01=8, M00=3"}),
    ("nano-quick", {"layout": "diffusers", "rank": 4, "alpha": 1.0, "text_encoders": True}),
    (
        "nano-quick",
        {"layout": "diffusers", "targets": "attention + feed-forward + convolution", "rank": 6, "alpha": 1.5},
    ),
]


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    ADAPTER_CASES,
    ids=[f"{name} {' '.join(map(str, more.values()))}".strip() for name, more in ADAPTER_CASES],
)
def test_case_19_diffusers_and_the_studio_see_what_the_training_saw(
    recipe: str, overrides: dict, data: datasets.Dataset, tmp_path: Path
) -> None:
    adapter, file = make_adapter_file(data, tmp_path / "run", recipe, **overrides)
    live, plain = (
        torch_thread.run_on_torch_thread(predict_noise, adapter.pipeline),
        torch_thread.run_on_torch_thread(predict_noise, bases.load_model("nano")),
    )
    effect = float((live - plain).abs().max())
    assert effect > 0.002, "the adapter does nothing that could be lost"

    theirs = StableDiffusionXLPipeline.from_pretrained(NANO)
    theirs.load_lora_weights(str(file), adapter_name="it")
    error = float((torch_thread.run_on_torch_thread(predict_noise, theirs) - live).abs().max())
    assert error <= min(1e-4, effect / 50), f"diffusers, at strength 1: {error:.1e} from what was trained"

    error = float((torch_thread.run_on_torch_thread(predict_with_studio, file) - live).abs().max())
    assert error <= min(1e-4, effect / 50), f"the studio, at strength 1: {error:.1e} from what was trained"
    assert torch.equal(torch_thread.run_on_torch_thread(predict_noise, bases.load_model("nano")), plain), (
        "the model is not what it was"
    )


LYCORIS_CASES = [
    {"kind": "DoRA", "rank": 4, "alpha": 2.0},
    {"kind": "DoRA", "targets": "attention + feed-forward + convolution"},
    {"kind": "LoKr", "rank": 2, "alpha": 1.0},
    {"kind": "LoKr", "ranks": "OUT00=2, OUT01=8, M00=3", "targets": "attention + feed-forward + convolution"},
]


@pytest.mark.parametrize("overrides", LYCORIS_CASES, ids=lambda said: " ".join(map(str, said.values())))
def test_case_19_the_studio_sees_what_a_dora_or_lokr_training_saw(
    overrides: dict, data: datasets.Dataset, tmp_path: Path
) -> None:
    """The file has LyCORIS' key names, which diffusers does not read."""
    adapter, file = make_adapter_file(data, tmp_path / "run", "nano-quick", **overrides)
    live = torch_thread.run_on_torch_thread(predict_noise, adapter.pipeline)

    effect = float(
        (live - torch_thread.run_on_torch_thread(predict_noise, bases.load_model("nano"))).abs().max()
    )
    error = float((torch_thread.run_on_torch_thread(predict_with_studio, file) - live).abs().max())
    assert error <= min(1e-4, effect / 50), f"{error:.1e} from what was trained, of an effect of {effect:.1e}"


def test_what_the_file_says(data: datasets.Dataset, tmp_path: Path) -> None:
    """Alpha, rank, trigger, tags and settings are where programs look for them.

    No path and no name of a machine or user is in the file.
    """
    _, file = make_adapter_file(data, tmp_path / "run", "baxl-style")
    found = lora_file.read_lora_file(file)
    assert (found.format, found.family, found.rank, found.scale, found.trigger) == (
        "kohya",
        "nano",
        8,
        0.5,
        "flow",
    )
    assert found.tags["1girl"] == 2
    with safe_open(file, framework="pt") as opened:
        told = opened.metadata()
        assert {
            str(opened.get_tensor(key).dtype)
            for key in opened.keys()  # noqa: SIM118
            if "lora_" in key.rpartition("unet_")[2]
        } == {"torch.float32"}
    wanted = {
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_network_module": "networks.lora",
        "ss_min_snr_gamma": "5.0",
        "ss_caption_tag_dropout_rate": "0.1",
        "ss_gradient_accumulation_steps": "4",
        "ss_optimizer": "Lion8bit(weight_decay=0.1,betas=(0.9, 0.95))",
        "ss_steps": "12",
        "ss_seed": "42",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.trigger_phrase": "flow",
        "modelspec.prediction_type": "epsilon",
    }
    assert {name: told[name] for name in wanted} == wanted
    assert json.loads(told["ss_dataset_dirs"]) == {"2_flow": {"n_repeats": 2, "img_count": 4}}
    assert json.loads(told["peft_adapter_config"])["unet.lora_alpha"] == 4.0
    leaks = [
        key
        for key, value in told.items()
        if str(tmp_path) in value or str(Path.home()) in value or "/tmp" in value
    ]
    assert not leaks, f"a path of this machine stands in {leaks}"


def test_small_numbers_survive_half_precision(data: datasets.Dataset, tmp_path: Path) -> None:
    """A learning rate such as BAXL's leaves matrices of 1e-6, which float16 alone would lose."""
    _, run = prepare_run(data, tmp_path / "run", precision="bfloat16")

    def export_tensors() -> dict[str, torch.Tensor]:
        adapter = Adapter(bases.load_model("nano"), run.settings)
        for name, matrix in adapter.pipeline.unet.named_parameters():
            if "lora_B" in name:
                matrix.data.normal_(std=1e-7)
        export.export_lora(adapter, run, data, 1, tmp_path / "it.safetensors", {})
        return {
            name: matrix.detach().clone()
            for name, matrix in adapter.pipeline.unet.named_parameters()
            if "lora_" in name
        }

    truth = torch_thread.run_on_torch_thread(export_tensors)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    wanted = truth[f"{name}.lora_B.default.weight"] @ truth[f"{name}.lora_A.default.weight"]
    found = lora_file.read_lora_file(tmp_path / "it.safetensors")
    module = next(module for module in found.modules if module.name == name.replace(".", "_"))
    tensors = found.load_tensors()
    got = tensors[module.up].float() @ tensors[module.down].float()
    assert float((got - wanted).norm() / wanted.norm()) < 1e-3
