"""What the tests of LoRAs share: a model's answers, and its fingerprint."""

import hashlib

import torch
from diffusers import StableDiffusionXLPipeline

from core import models
from core.types import Request

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"]
RANK, ALPHA = 4, 2.0
REQUEST = Request(model="nano", prompt="1girl", negative="", width=64, height=64, steps=2, cfg=5.0, sampler="Euler", seed=7)


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
