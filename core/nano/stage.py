"""One stage of making nano: a resumable training loop with a cosine learning rate and an average.

Every stage is the same loop over another loss. Its state goes to `<build>/<name>.pt` every minute,
so that a stage that was stopped resumes where it was, and a finished one is not run again.

Two processes of one thread each take half of every batch: on two cores that is 1.4 times as fast as
one process of two threads, which wait for each other in every operation.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

BUILD_FOLDER = Path(os.environ.get("SWEETSPOT_NANO_BUILD", "build/nano"))
"""Where drawings, latents and the states of the stages are kept; not part of the repository."""

WORKERS = 2
"""Part of the recipe, whatever the machine: each worker draws its own half of a batch."""

SAVE_EVERY_SECONDS = 60
WORKER_TIMEOUT_SECONDS = 600
"""A worker that the others keep waiting for this long gives up instead of waiting for ever."""

LossFunction = Callable[[int, torch.Generator], torch.Tensor]
AverageFunction = Callable[[int, torch.Tensor], torch.Tensor]
"""(worker, its vector) -> the mean of the workers' vectors."""


def train_model(
    name: str,
    model: torch.nn.Module,
    compute_loss: LossFunction,
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float = 0.999,
    weight_decay: float = 0.01,
) -> None:
    """Train `model` in place with AdamW, on the mean of `compute_loss(step, generator)`.

    The mean is over the workers. The model ends as its exponential average (decay `ema_decay`). The
    random state of step n depends on n and the worker alone, so a resumed stage sees the data that
    an uninterrupted one would have seen.
    """
    BUILD_FOLDER.mkdir(parents=True, exist_ok=True)
    state_file = BUILD_FOLDER / f"{name}.pt"
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, min(200, steps // 10), steps)
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.8, foreach=True)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule, "ema": ema}
    start = _load_state(state_file, parts)

    def run_steps(worker: int, average: AverageFunction) -> None:
        """Run one worker's steps; the same gradients make the same weights in each worker."""
        saved, seen, total, clock = time.monotonic(), 0, 0.0, time.monotonic()
        model.train()
        for step in range(start, steps):
            loss = compute_loss(step, torch.Generator().manual_seed(step * WORKERS + worker))
            loss.backward()
            _average_gradients(parameters, worker, average)
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
                print(
                    f"{name}: step {step + 1}/{steps}  loss {total / seen:.4f}  "
                    f"{pace:.2f} s/step  {(steps - step - 1) * pace / 60:.0f} min left",
                    flush=True,
                )
                seen, total, clock = 0, 0.0, time.monotonic()
            if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
                _save_state(state_file, parts, step + 1)
                saved = time.monotonic()

    if start < steps:
        with start_workers(run_steps, sum(p.numel() for p in parameters)) as mean:
            run_steps(0, mean)
    ema.copy_to(parameters)
    model.eval()


def _load_state(file: Path, parts: Mapping[str, Any]) -> int:
    """Load a stage's state into its parts, and return its step; without a file, 0."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def _save_state(file: Path, parts: Mapping[str, Any], step: int) -> None:
    """Save the state of a stage's parts after `step`, in place of an earlier one."""
    state = {**{name: part.state_dict() for name, part in parts.items()}, "step": step}
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def _average_gradients(
    parameters: Sequence[torch.nn.Parameter], worker: int, average: AverageFunction
) -> None:
    """Replace this worker's gradients by the mean over all workers."""
    grads = [p.grad for p in parameters if p.grad is not None]
    shared = average(worker, torch.cat([grad.reshape(-1) for grad in grads]))
    for grad, part in zip(grads, shared.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view(grad.shape))


@torch.no_grad()
def update_batch_norm(model: torch.nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Set the batch norms' statistics for the averaged weights.

    They are a plain average over `passes` of training data.
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    model.train()
    for run in passes:
        run()
    model.eval()


@contextmanager
def start_workers(
    run_steps: Callable[[int, AverageFunction], None], parameter_count: int
) -> Iterator[AverageFunction]:
    """Start the other workers as copies of this process.

    Yields the function that averages a vector over all workers.
    """
    fork = get_context("fork")
    table = torch.zeros(WORKERS, parameter_count).share_memory_()
    barrier = fork.Barrier(WORKERS, timeout=WORKER_TIMEOUT_SECONDS)

    def average(worker: int, vector: torch.Tensor) -> torch.Tensor:
        table[worker, : len(vector)] = vector
        barrier.wait()
        found = table[:, : len(vector)].mean(0)
        barrier.wait()  # nobody writes the next vector while another still reads this one
        return found

    def run_worker(worker: int) -> None:
        try:
            run_steps(worker, average)
        except BaseException:
            barrier.abort()  # makes the others stop, too
            raise

    others = [fork.Process(target=run_worker, args=(worker,), daemon=True) for worker in range(1, WORKERS)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for process in others:
        process.start()
    try:
        yield average
    finally:
        torch.set_num_threads(threads)
        for process in others:
            process.terminate()
