"""One stage of making nano: a resumable loop of optimiser steps with a cosine rate and an average.

Every stage is the same loop over another loss. Its state goes to `<build>/<name>.pt` every
minute, so that a stage that was stopped goes on where it was, and a finished one is not run again.

Two processes of one thread each take half of every batch: on two cores that is 1.4 times as
fast as one process of two threads, which wait for each other in every operation.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

BUILD = Path(os.environ.get("SWEETSPOT_NANO_BUILD", "build/nano"))
"""Where drawings, latents and the states of the stages are kept; not part of the repository."""

WORKERS = 2
"""Part of the recipe, whatever the machine: each worker draws its own half of a batch."""

SAVE_EVERY_SECONDS = 60
PATIENCE_SECONDS = 600
"""A worker whose fellows have stayed away this long gives up instead of waiting for ever."""

Loss = Callable[[int, torch.Generator], torch.Tensor]


def fit(name: str, model: torch.nn.Module, loss_of: Loss, *, steps: int, rate: float, average: float = 0.999, weight_decay: float = 0.01) -> None:
    """Train `model` in place for `steps` steps of AdamW on the mean of the workers' `loss_of(step, generator)`.

    The model ends with its exponential average (decay `average`). The random state of step n
    depends on n and the worker alone, so a resumed stage sees the data that an unbroken one would have seen.
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

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "ema": ema.state_dict(), "step": step}
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)

    def work(worker: int, mean: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        """What every worker does; the same gradients make the same weights in each of them."""
        saved, seen, total, clock = time.monotonic(), 0, 0.0, time.monotonic()
        model.train()
        for step in range(start, steps):
            loss = loss_of(step, torch.Generator().manual_seed(step * WORKERS + worker))
            loss.backward()
            grads = [p.grad for p in parameters if p.grad is not None]
            shared = mean(worker, torch.cat([grad.reshape(-1) for grad in grads]))
            for grad, part in zip(grads, shared.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view(grad.shape))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            if worker != 0:
                continue
            ema.step(parameters)
            seen, total = seen + 1, total + float(loss.detach())
            if seen == 100 or step + 1 == steps:
                pace = (time.monotonic() - clock) / seen
                print(f"{name}: step {step + 1}/{steps}  loss {total / seen:.4f}  {pace:.2f} s/step  {(steps - step - 1) * pace / 60:.0f} min left", flush=True)
                seen, total, clock = 0, 0.0, time.monotonic()
            if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
                save(step + 1)
                saved = time.monotonic()

    if start < steps:
        with fellows(work, sum(p.numel() for p in parameters)) as mean:
            work(0, mean)
    ema.copy_to(parameters)
    model.eval()


@torch.no_grad()
def settle(model: torch.nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Set the batch norms' statistics for the averaged weights: a plain average over some passes of training data."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    model.train()
    for run in passes:
        run()
    model.eval()


@contextmanager
def fellows(work: Callable[[int, Callable[[int, torch.Tensor], torch.Tensor]], None], numbers: int) -> Iterator[Callable[[int, torch.Tensor], torch.Tensor]]:
    """Start the other workers as copies of this process; gives the function that averages a vector over all of them."""
    fork = get_context("fork")
    table = torch.zeros(WORKERS, numbers).share_memory_()
    barrier = fork.Barrier(WORKERS, timeout=PATIENCE_SECONDS)

    def mean(worker: int, vector: torch.Tensor) -> torch.Tensor:
        table[worker, : len(vector)] = vector
        barrier.wait()
        found = table[:, : len(vector)].mean(0)
        barrier.wait()  # nobody writes the next vector while another still reads this one
        return found

    def follow(worker: int) -> None:
        try:
            work(worker, mean)
        except BaseException:
            barrier.abort()  # so that the others stop, too
            raise

    others = [fork.Process(target=follow, args=(worker,), daemon=True) for worker in range(1, WORKERS)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for process in others:
        process.start()
    try:
        yield mean
    finally:
        torch.set_num_threads(threads)
        for process in others:
            process.terminate()
