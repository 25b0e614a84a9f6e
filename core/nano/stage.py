"""One stage of making nano: a resumable loop of optimiser steps with a cosine rate and an average.

Every stage is the same loop over another loss. Its state goes to `<build>/<name>.pt` every
minute, so that a stage that was stopped goes on where it was, and a finished one is not run again.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

BUILD = Path(os.environ.get("SWEETSPOT_NANO_BUILD", "build/nano"))
"""Where drawings, latents and the states of the stages are kept; not part of the repository."""

SAVE_EVERY_SECONDS = 60


def fit(
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[int, torch.Generator], torch.Tensor],
    *,
    steps: int,
    rate: float,
    average: float = 0.999,
    weight_decay: float = 0.01,
) -> None:
    """Train `model` in place for `steps` steps of AdamW on `loss_of(step, generator)`.

    The model ends with its exponential average (decay `average`). The random state of step n
    depends on n alone, so a resumed stage sees the data that an unbroken one would have seen.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    state_file = BUILD / f"{name}.pt"
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimiser, min(200, steps // 10), steps)
    ema = EMAModel(parameters, decay=average, use_ema_warmup=True, power=0.8, foreach=True)
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        ema.load_state_dict(state["ema"])
        start = state["step"]
    saved, seen, total, clock = time.monotonic(), 0, 0.0, time.monotonic()

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "ema": ema.state_dict(), "step": step}
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)

    model.train()
    for step in range(start, steps):
        loss = loss_of(step, torch.Generator().manual_seed(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        ema.step(parameters)
        seen, total = seen + 1, total + float(loss.detach())
        if seen == 100 or step + 1 == steps:
            pace = (time.monotonic() - clock) / seen
            print(f"{name}: step {step + 1}/{steps}  loss {total / seen:.4f}  {pace:.2f} s/step  {(steps - step - 1) * pace / 60:.0f} min left", flush=True)
            seen, total, clock = 0, 0.0, time.monotonic()
        if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
            save(step + 1)
            saved = time.monotonic()
    ema.copy_to(parameters)
    model.eval()
