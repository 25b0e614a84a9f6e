"""What a LoRA's file says of its training, where other programs look for it: kohya's `ss_*` and modelspec."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from core import models
from core.data.dataset import Dataset
from core.train.run import Run

HALVES = {"float16": "fp16", "bfloat16": "bf16"}
"""kohya's words for what is computed in."""


def told_of(run: Run, dataset: Dataset, step: int, buckets: Mapping[tuple[int, int], int]) -> dict[str, str]:
    """Metadata of the LoRA after `step`; `buckets` are the pictures in each. No path, no user's name."""
    return {**_kohyas(run, dataset, step, buckets), **_modelspec(run)}


def _modelspec(run: Run) -> dict[str, str]:
    small, native = models.find(run.model).native_size == 128, models.find(run.model).native_size
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{'nano' if small else 'stable-diffusion-xl-v1-base'}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": run.name,
        "modelspec.date": run.began[:19],
        "modelspec.resolution": f"{native}x{native}",
        "modelspec.prediction_type": "v" if models.find(run.model).prediction_type == "v_prediction" else "epsilon",
        "modelspec.license": models.find(run.model).licence,
        **({"modelspec.trigger_phrase": run.trigger} if run.trigger else {}),
    }


def _kohyas(run: Run, dataset: Dataset, step: int, buckets: Mapping[tuple[int, int], int]) -> dict[str, str]:
    """What kohya's trainer writes, as far as it has a meaning here; text, nested as JSON."""
    made, model = run.settings, models.find(run.model)
    groups = [(regularisation, {sample.group for sample in dataset.samples if sample.regularisation == regularisation}) for regularisation in (False, True)]
    counts = {regularisation: {name: _members(dataset, name, regularisation) for name in sorted(names)} for regularisation, names in groups}
    tags = {name: Counter(_tags(dataset, name)) for name in counts[False]}
    kind = {"LoRA": "networks.lora", "DoRA": "lycoris.kohya", "LoKr": "lycoris.kohya"}[made.kind]
    extra = {"LoKr": {"algo": "lokr"}, "DoRA": {"algo": "locon", "dora_wd": "True"}}.get(made.kind, {})
    told: dict[str, Any] = {
        "output_name": run.name, "sd_model_name": run.model, "base_model_version": "nano" if model.native_size == 128 else "sdxl_base_v1-0",
        "v2": False, "network_module": kind, "network_dim": made.rank, "network_alpha": made.alpha, "network_dropout": made.dropout or None,
        "network_args": json.dumps({**extra, **({"block_dims": made.ranks} if made.ranks else {}), "targets": made.targets}),
        "learning_rate": made.rate, "unet_lr": made.rate, "text_encoder_lr": made.own_text_rate if made.text_encoders else None,
        "optimizer": f"{made.optimizer}(weight_decay={made.weight_decay},betas={made.betas})", "lr_scheduler": made.scheduler, "lr_warmup_steps": made.warmup,
        "num_train_images": sum(s.repeats for s in dataset.samples if not s.regularisation),
        "num_reg_images": sum(s.repeats for s in dataset.samples if s.regularisation),
        "steps": step, "max_train_steps": made.steps, "gradient_accumulation_steps": made.accumulation, "batch_size_per_device": made.batch,
        "total_batch_size": made.pictures_a_step, "max_grad_norm": made.clip, "mixed_precision": HALVES.get(made.precision, "no"),
        "seed": made.seed, "clip_skip": made.clip_skip, "min_snr_gamma": made.min_snr, "noise_offset": made.noise_offset,
        "prior_loss_weight": made.prior_weight, "zero_terminal_snr": model.prediction_type == "v_prediction",
        "caption_dropout_rate": made.caption_dropout, "caption_tag_dropout_rate": made.tag_dropout,
        "shuffle_caption": made.shuffle, "keep_tokens": made.keep_tokens, "flip_aug": made.flip, "resolution": f"({made.resolution}, {made.resolution})",
        "enable_bucket": True, "bucket_no_upscale": not made.upscale, "min_bucket_reso": made.least_side, "max_bucket_reso": made.most_side,
        "bucket_info": json.dumps({"buckets": {str(i): {"resolution": list(size), "count": n} for i, (size, n) in enumerate(sorted(buckets.items()))}}),
        "dataset_dirs": json.dumps(counts[False]), "reg_dataset_dirs": json.dumps(counts[True]), "tag_frequency": json.dumps(tags), "cache_latents": True,
    }  # fmt: skip
    return {f"ss_{name}": str(value) for name, value in told.items() if value is not None}


def _members(dataset: Dataset, group: str, regularisation: bool) -> dict[str, int]:
    members = [s for s in dataset.samples if s.group == group and s.regularisation == regularisation]
    return {"n_repeats": members[0].repeats, "img_count": len(members)}


def _tags(dataset: Dataset, group: str) -> list[str]:
    captions = [s.caption for s in dataset.samples if s.group == group and not s.regularisation]
    return [tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()]
