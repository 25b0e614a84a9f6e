"""Export a trained adapter as one file that every program reads at the strength it was trained at.

It has kohya's keys with the true alpha; `ss_*` as kohya's trainer writes them, modelspec, and
PEFT's adapter metadata, without which diffusers takes alpha for the rank. DoRA and LoKr have the
names that LyCORIS gives them. No path, no user's name, no token.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import get_peft_model_state_dict

from core.dataset.dataset import Dataset
from core.lora.blocks import to_sai
from core.models import bases
from core.system.tensor_files import write_tensors
from core.train.trainer.adapter import Adapter
from core.train.trainer.run_record import Run
from core.train.trainer.settings import TrainingSettings

KOHYA_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}
"""kohya's words for the precision of the computation."""
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
KOHYA_PARTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    "lokr_w1": "lokr_w1",
    "lokr_w1_a": "lokr_w1_a",
    "lokr_w1_b": "lokr_w1_b",
    "lokr_w2": "lokr_w2",
    "lokr_w2_a": "lokr_w2_a",
    "lokr_w2_b": "lokr_w2_b",
}
"""PEFT's names of an adapter's parts -> those of kohya and LyCORIS."""
CONFIG_KEYS = {"diffusers": "lora_adapter_metadata", "kohya": "peft_adapter_config"}
"""Layout -> the metadata key of PEFT's configuration.

Under its own key, diffusers refuses a file that also has alphas ("Both `network_alphas` and
`metadata`").
"""


def export_lora(
    adapter: Adapter,
    run: Run,
    dataset: Dataset,
    step: int,
    file: Path,
    bucket_counts: Mapping[tuple[int, int], int],
) -> None:
    """Write the adapter as it is after `step` into `file`.

    `bucket_counts` is the number of pictures in each bucket.
    """
    made = run.settings
    # Numbers that were computed in half precision need no more.
    kept = torch.float32 if made.precision == "float32" else torch.float16
    states = {
        name: get_peft_model_state_dict(getattr(adapter.pipeline, name), adapter_name="default")
        for name in adapter.components
    }
    if made.layout == "kohya":
        tensors = {
            key: value
            for name, state in states.items()
            for key, value in _convert_to_kohya(state, name, adapter, kept).items()
        }
    else:
        # PEFT's own names: diffusers' older ones exist for attention alone, and it skips those in a
        # file that has both.
        tensors = {
            f"{name}.{key}": value.half() for name, state in states.items() for key, value in state.items()
        }
    told = {
        **build_metadata(run, dataset, step, bucket_counts),
        CONFIG_KEYS[made.layout]: json.dumps(_collect_peft_config(adapter), sort_keys=True),
    }
    digest = hashlib.sha256(
        b"".join(tensors[key].detach().cpu().contiguous().numpy().tobytes() for key in sorted(tensors))
    ).hexdigest()
    told |= {"format": "pt", "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    write_tensors(file, tensors, told)


def _convert_to_kohya(
    state: Mapping[str, torch.Tensor], component: str, adapter: Adapter, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    rank = max(adapter.ranks[component].values())
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        part = next(part for part in sorted(KOHYA_PARTS, key=len, reverse=True) if key.endswith(f".{part}"))
        modules.setdefault(key.removesuffix(f".{part}"), {})[KOHYA_PARTS[part]] = value.float()
    found = {}
    for path, parts in modules.items():
        flat = path.replace(".", "_")
        own = (
            to_sai(flat)
            if component == "unet"
            else flat
            if flat.startswith("text_")
            else f"text_model_{flat}"
        )
        parts = _balance_matrices(_pad_to_rank(parts, rank)) if "lora_down.weight" in parts else parts
        stem, scale = f"{KOHYA_PREFIXES[component]}{own}", adapter.settings.alpha / adapter.settings.rank
        if "dora_scale" in parts:  # one number per output, in the weight's dimensions
            parts["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * (parts["lora_down.weight"].ndim - 1))
        if {"lokr_w1", "lokr_w2"} <= parts.keys():  # only PEFT reads the alpha of whole factors
            parts["lokr_w1"] = parts["lokr_w1"] * scale
        # In half precision, most of what a magnitude changes would be rounding.
        found |= {
            f"{stem}.{part}": value if part == "dora_scale" else value.to(dtype)
            for part, value in parts.items()
        }
        found[f"{stem}.alpha"] = torch.tensor(
            scale * (rank if "lora_down.weight" in parts else adapter.ranks[component][path])
        )
    return found


def _pad_to_rank(parts: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Pad both matrices with zeros to the largest rank of the file.

    diffusers reads one alpha where a file has several.
    """
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    more = rank - len(down)
    filled = {
        "lora_down.weight": torch.cat([down, down.new_zeros(more, *down.shape[1:])]),
        "lora_up.weight": torch.cat([up, up.new_zeros(len(up), more, *up.shape[2:])], 1),
    }
    return {**parts, **filled}


def _balance_matrices(parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring both matrices to a like size, moving a power of two from one to the other.

    So half precision keeps what is small.
    """
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    sizes = [float(matrix.abs().max()) for matrix in (down, up)]
    shift = round(float(torch.tensor(sizes[0] / sizes[1]).log2()) / 2) if all(sizes) else 0
    return {**parts, "lora_down.weight": down * 2.0**-shift, "lora_up.weight": up * 2.0**shift}


def _collect_peft_config(adapter: Adapter) -> dict[str, Any]:
    """Return PEFT's configuration of each component, as diffusers keeps it in a file."""
    found = {}
    for key, config in _collate_lora_metadata(
        {name: getattr(adapter.pipeline, name) for name in adapter.components}
    ).items():
        component = key.removesuffix("_lora_adapter_metadata")
        plain = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in config.items()
            if _is_plain(value)
        }
        found |= {f"{component}.{name}": value for name, value in plain.items()}
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | set | list | dict) and value not in ([], {})


def build_metadata(
    run: Run, dataset: Dataset, step: int, bucket_counts: Mapping[tuple[int, int], int]
) -> dict[str, str]:
    """Return the metadata of the LoRA after `step`, without a path or a user's name.

    `bucket_counts` is the number of pictures in each bucket.
    """
    return {**_build_kohya_metadata(run, dataset, step, bucket_counts), **_build_modelspec(run)}


def _build_modelspec(run: Run) -> dict[str, str]:
    small, native = bases.find_model(run.model).is_nano, bases.find_model(run.model).native_size
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{'nano' if small else 'stable-diffusion-xl-v1-base'}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": run.name,
        "modelspec.date": run.began[:19],
        "modelspec.resolution": f"{native}x{native}",
        "modelspec.prediction_type": "v"
        if bases.find_prediction(run.model).type == "v_prediction"
        else "epsilon",
        "modelspec.license": bases.find_model(run.model).licence,
        **({"modelspec.trigger_phrase": run.trigger} if run.trigger else {}),
    }


def _build_kohya_metadata(
    run: Run, dataset: Dataset, step: int, bucket_counts: Mapping[tuple[int, int], int]
) -> dict[str, str]:
    """Return what kohya's trainer writes, as far as it has a meaning here; JSON if nested."""
    made, model = run.settings, bases.find_model(run.model)
    told: dict[str, Any] = {
        "output_name": run.name,
        "sd_model_name": run.model,
        "base_model_version": "nano" if model.is_nano else "sdxl_base_v1-0",
        "v2": False,
        **_describe_network(made),
        "learning_rate": made.learning_rate,
        "unet_lr": made.learning_rate,
        "text_encoder_lr": made.effective_text_encoder_lr if made.text_encoders else None,
        "optimizer": f"{made.optimizer}(weight_decay={made.weight_decay},betas={made.betas})",
        "lr_scheduler": made.scheduler,
        "lr_warmup_steps": made.lr_warmup_steps,
        "num_train_images": sum(s.repeats for s in dataset.samples if not s.regularisation),
        "num_reg_images": sum(s.repeats for s in dataset.samples if s.regularisation),
        "steps": step,
        "max_train_steps": made.steps,
        "gradient_accumulation_steps": made.accumulation,
        "batch_size_per_device": made.batch,
        "total_batch_size": made.total_batch_size,
        "max_grad_norm": made.max_grad_norm,
        "mixed_precision": KOHYA_PRECISIONS.get(made.precision, "no"),
        "seed": made.seed,
        "clip_skip": made.clip_skip,
        "min_snr_gamma": made.min_snr,
        "noise_offset": made.noise_offset,
        "prior_loss_weight": made.prior_weight,
        "zero_terminal_snr": bases.find_prediction(run.model).zero_snr,
        "caption_dropout_rate": made.caption_dropout,
        "caption_tag_dropout_rate": made.tag_dropout,
        "shuffle_caption": made.shuffle,
        "keep_tokens": made.keep_tokens,
        "flip_aug": made.flip,
        "resolution": f"({made.resolution}, {made.resolution})",
        "enable_bucket": True,
        "bucket_no_upscale": not made.upscale,
        "min_bucket_reso": made.least_side,
        "max_bucket_reso": made.most_side,
        **_describe_pictures(dataset, bucket_counts),
        "cache_latents": True,
    }
    return {f"ss_{name}": str(value) for name, value in told.items() if value is not None}


def _describe_network(made: TrainingSettings) -> dict[str, Any]:
    """Return kind, size and layers of the adapter in kohya's and LyCORIS' words."""
    kind = {"LoRA": "networks.lora", "DoRA": "lycoris.kohya", "LoKr": "lycoris.kohya"}[made.kind]
    extra = {"LoKr": {"algo": "lokr"}, "DoRA": {"algo": "locon", "dora_wd": "True"}}.get(made.kind, {})
    return {
        "network_module": kind,
        "network_dim": made.rank,
        "network_alpha": made.alpha,
        "network_dropout": made.dropout or None,
        "network_args": json.dumps(
            {**extra, **({"block_dims": made.ranks} if made.ranks else {}), "targets": made.targets}
        ),
    }


def _describe_pictures(dataset: Dataset, bucket_counts: Mapping[tuple[int, int], int]) -> dict[str, str]:
    """Return buckets, groups of pictures and the tags of their captions, as JSON."""
    counts = {
        regularisation: {
            name: _count_group_members(dataset, name, regularisation)
            for name in sorted({s.group for s in dataset.samples if s.regularisation == regularisation})
        }
        for regularisation in (False, True)
    }
    buckets = {
        str(i): {"resolution": list(size), "count": n}
        for i, (size, n) in enumerate(sorted(bucket_counts.items()))
    }
    return {
        "bucket_info": json.dumps({"buckets": buckets}),
        "dataset_dirs": json.dumps(counts[False]),
        "reg_dataset_dirs": json.dumps(counts[True]),
        "tag_frequency": json.dumps(
            {name: Counter(_list_group_tags(dataset, name)) for name in counts[False]}
        ),
    }


def _count_group_members(dataset: Dataset, group: str, regularisation: bool) -> dict[str, int]:
    members = [s for s in dataset.samples if s.group == group and s.regularisation == regularisation]
    return {"n_repeats": members[0].repeats, "img_count": len(members)}


def _list_group_tags(dataset: Dataset, group: str) -> list[str]:
    captions = [s.caption for s in dataset.samples if s.group == group and not s.regularisation]
    return [tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()]
