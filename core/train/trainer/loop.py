"""The training loop: a generator of events that continues from the state in the run's folder.

A step is a function of the state before it and of its number, and of nothing else. So a run that
was interrupted, at any point and any number of times, ends with the same weights and losses as one
that was not.
"""

import logging
import math
import resource
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import SafetensorError

from core.dataset import dataset as datasets
from core.models import bases
from core.schema.errors import UserError
from core.schema.events import Failed, Loss, Note, Preview, Saved, Validation
from core.system.memory import OutOfMemory, is_out_of_memory, release_memory
from core.train.trainer.adapter import Adapter, get_trained_components
from core.train.trainer.batches import TrainingBatches
from core.train.trainer.distributed import SingleProcess
from core.train.trainer.export import export_lora
from core.train.trainer.loss import compute_losses, make_noise_scheduler
from core.train.trainer.optimizer import (
    create_optimizer,
    get_optimizer_state,
    make_lr_schedule,
    restore_optimizer_state,
    set_learning_rates,
)
from core.train.trainer.previews import make_previews
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import Run, find_final_lora, read_run
from core.train.trainer.turns import enable_cpu_offload, keep_on_device

STATE_SECONDS = 30
"""Seconds between two states, besides those at each LoRA; a killed process loses no more."""
MAX_PENDING_LOSSES = 10
"""Steps whose losses may wait on a GPU before they are read: reading them makes the GPU wait."""
AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

TrainingEvent = Loss | Validation | Saved | Preview | Note | Failed

log = logging.getLogger(__name__)


def train(
    folder: RunFolder, seconds: float = math.inf, processes: SingleProcess | None = None
) -> Generator[TrainingEvent, None, None]:
    """Continue the run until it is done, asked to stop, or `seconds` are over.

    The seconds include the loading of the model.

    What happens is also written into the run's events. Ends with `Failed` when the run cannot
    continue; its last state stays. The caller holds the folder's lock.
    """
    processes, until = processes or SingleProcess(), time.monotonic() + seconds
    try:
        run = read_run(folder)
        pipeline = _load_base_model(run.model, folder)
        if pipeline is None:
            return
        with keep_on_device(pipeline, get_trained_components(run.settings)):
            yield from Trainer(folder, processes, run, pipeline).run_steps(until)
        return
    except UserError as error:
        message = str(error)
    except (OSError, SafetensorError) as error:
        if "No space left" not in str(error):
            raise
        message = "The disk is full. Free up space and resume; the last state is kept."
    if processes.rank == 0:
        folder.save_failure(message)
    yield Failed(message=message)


def _load_base_model(model: str, folder: RunFolder) -> StableDiffusionXLPipeline | None:
    """Load the base of a run; `None` if the run is asked to stop meanwhile."""
    with closing(bases.open_model(model)) as steps:
        try:
            while True:
                next(steps)
                if folder.is_stop_requested():
                    return None
        except StopIteration as end:
            return end.value


class Trainer:
    """A run in memory."""

    def __init__(
        self, folder: RunFolder, processes: SingleProcess, run: Run, pipeline: StableDiffusionXLPipeline
    ):
        """Resume the run; `pipeline` is its base, with what is trained on the device.

        Raises `UserError` if the dataset has changed, or if the state is at or beyond the last step
        and there is no final LoRA.
        """
        self.folder, self.processes, self.run, self.pipeline = folder, processes, run, pipeline
        made = self.run.settings
        self.dataset = datasets.load_dataset(folder.dataset)
        if self.dataset.fingerprint() != self.run.fingerprint:
            raise UserError(
                "dataset", "the images or captions have changed since the run was set up. Set up a new run."
            )
        if made.precision == "float32" != str(pipeline.unet.dtype).removeprefix("torch."):
            pipeline.unet.to(torch.float32)
        self.adapter = Adapter(pipeline, made)
        self.noise_scheduler = make_noise_scheduler(pipeline)
        self.batches = TrainingBatches(self.run, self.dataset, self.adapter, self.noise_scheduler, folder)
        self.optimizer, self.lr_lambda = create_optimizer(self.adapter, made), make_lr_schedule(made)
        self.device = self.adapter.values.device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=made.precision == "float16")
        self.ema_values = self.adapter.values.clone() if made.ema is not None else None
        self.step, self.checkpointing_level = 0, 0
        self.pending_losses: list[tuple[int, float, torch.Tensor]] = []
        """Step, learning rate, and (loss, norm) on the device where they were computed."""
        self.saved_at, self.saved_step = time.monotonic(), -1
        self._resume()

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the run's files."""
        return self.processes.rank == 0

    def run_steps(self, until: float) -> Iterator[TrainingEvent]:
        """Train until the run is done, asked to stop, or `until`, a time of the monotonic clock."""
        made = self.run.settings
        for was_made in self.batches.cache_latents():
            if self._needs_to_stop(until if was_made else math.inf):  # encoded latents stay on disk
                return
        if self.step == 0:
            yield from self._save_milestone()
        stop = self._needs_to_stop(math.inf)  # a slice takes a step, however short it is
        while self.step < made.steps and not stop:
            self._run_step()
            if self.device == "cpu" or len(self.pending_losses) == MAX_PENDING_LOSSES:
                yield from self._flush_losses()
            if (
                self.step % made.save_every == 0
                or self.step == made.steps
                or (made.preview_every and self.step % made.preview_every == 0)
            ):
                yield from self._save_milestone()
            elif self.is_main_process and time.monotonic() - self.saved_at > STATE_SECONDS:
                yield from self._save_state()
            stop = self._needs_to_stop(until)
        yield from self._save_state()

    # --- one step ------------------------------------------------------------------------------

    def _run_step(self) -> None:
        """Change the weights once; when memory runs out, try again while keeping less in it."""
        while True:
            try:
                return self._try_step()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.checkpointing_level == 2 or self.processes.world_size > 1:
                    made = self.run.settings
                    raise UserError(
                        None,
                        "This machine ran out of memory: "
                        f"lower batch ({made.batch}) or resolution ({made.resolution}). "
                        "The last state is kept.",
                    ) from error
                self.checkpointing_level += 1
                self.adapter.set_checkpointing_level(self.checkpointing_level)
            release_memory()

    def _try_step(self) -> None:
        made, adapter = self.run.settings, self.adapter
        adapter.gradients.zero_()
        loss = torch.zeros(1, device=adapter.values.device)
        for number in range(self.step * made.accumulation, (self.step + 1) * made.accumulation):
            size = self.batches.get_batch_size(number)
            mine = range(self.processes.rank, size, self.processes.world_size)
            if not mine:
                continue
            if made.dropout:
                # PEFT's dropout draws from the global generator.
                torch.manual_seed((made.seed * 1_000_003 + number) % 2**64)
            with self._autocast():
                part = compute_losses(
                    adapter.pipeline.unet,
                    self.noise_scheduler,
                    self.batches.make_batch(number, mine),
                    made.min_snr,
                ).sum() / (size * made.accumulation)
            self.scaler.scale(part).backward()
            loss += part.detach()
        self.processes.all_reduce(adapter.gradients)
        self.processes.all_reduce(loss)
        self.scaler.unscale_(self.optimizer)
        norm = adapter.gradients.norm()
        if made.max_grad_norm:
            adapter.gradients.mul_((made.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        rate = set_learning_rates(self.optimizer, self.lr_lambda(self.step))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema_values is not None:
            assert made.ema is not None
            self.ema_values.lerp_(adapter.values, 1 - made.ema)
        self.step += 1
        self.pending_losses.append((self.step, rate, torch.cat([loss, norm[None]])))

    def _autocast(self):
        half = AUTOCAST_DTYPES.get(self.run.settings.precision)
        return torch.autocast(self.device, dtype=half) if half else nullcontext()

    def _needs_to_stop(self, until: float) -> bool:
        """Whether to end after this step; all processes come to the same answer."""
        ends = self.folder.is_stop_requested() or time.monotonic() > until
        if self.processes.world_size == 1:
            return ends
        asked = torch.tensor([float(ends)], device=self.adapter.values.device)
        self.processes.all_reduce(asked)
        return bool(asked)

    # --- what is seen and kept -----------------------------------------------------------------

    def _flush_losses(self) -> Iterator[Loss]:
        """Read the pending losses and append them to the events.

        Raises `UserError` if a loss or a gradient norm is not a finite number.
        """
        if not self.pending_losses:
            return
        numbers = torch.stack([both for _, _, both in self.pending_losses]).tolist()
        found = [
            Loss(step=step, loss=loss, rate=rate, norm=norm)
            for (step, rate, _), (loss, norm) in zip(self.pending_losses, numbers, strict=True)
        ]
        self.pending_losses.clear()
        bad = next(
            (
                each
                for each in found
                if not math.isfinite(each.loss) or not (math.isfinite(each.norm) or self.scaler.is_enabled())
            ),
            None,
        )
        self._append_events([each for each in found if bad is None or each.step < bad.step])
        if bad:
            made, last = self.run.settings, self.folder.load_state()
            what = (
                f"The loss became {bad.loss:g}"
                if not math.isfinite(bad.loss)
                else f"The gradient became {bad.norm:g}"
            )
            raise UserError(
                None,
                f"{what} at step {bad.step}: lower the learning rate ({made.learning_rate:g}) "
                f"or use another precision than {made.precision}. "
                f"The state of step {last[0] if last else 0} is kept; branch from it with other settings.",
            )
        yield from found

    def _save_milestone(self) -> Iterator[TrainingEvent]:
        """Write a LoRA, its previews and the loss on held-out pictures; then the state."""
        made, name = self.run.settings, self.run.name
        yield from self._flush_losses()
        if self.batches.held_out_samples:
            validation = Validation(step=self.step, loss=self._compute_validation_loss())
            self._append_events([validation])
            yield validation
        if self.is_main_process and self.step:
            is_last = self.step == made.steps
            file = self.folder.loras / (
                f"{name}.safetensors" if is_last else f"{name}-{self.step:06d}.safetensors"
            )
            with self.adapter.swap_values(self.ema_values):
                export_lora(self.adapter, self.run, self.dataset, self.step, file, self.batches.bucket_counts)
            saved = Saved(step=self.step, file=file.name)
            self._append_events([saved])
            yield saved
            if made.preview_every and (self.step % made.preview_every == 0 or is_last):
                yield from self._make_previews(file)
        yield from self._save_state(keep=self.step > 0 and self.step % made.save_every == 0)

    def _make_previews(self, lora: Path) -> Iterator[Preview | Note]:
        """Make the previews of this step.

        Those that cannot be made are skipped with a note: a preview never ends a training.
        """
        why = None
        with enable_cpu_offload(self.pipeline, self.adapter.components):
            try:
                for picture in make_previews(
                    self.run, lora, self.step, self.folder.previews, self.folder.is_stop_requested
                ):
                    shown = Preview(step=self.step, file=picture.name)
                    self._append_events([shown])
                    yield shown
            except Exception as error:
                log.warning("a preview cannot be made", exc_info=error)
                why = _describe_preview_error(error)
            release_memory()  # before what is trained returns to the device
        if why:
            note = Note(step=self.step, text=f"Previews of step {self.step} were skipped: {why}")
            self._append_events([note])
            yield note

    @torch.no_grad()
    def _compute_validation_loss(self) -> float:
        with self.adapter.swap_values(self.ema_values), self._autocast():
            parts = [
                compute_losses(self.adapter.pipeline.unet, self.noise_scheduler, batch, None).mean()
                for batch in self.batches.iter_validation_batches()
            ]
        return float(torch.stack(parts).mean())

    def _save_state(self, keep: bool = False) -> Iterator[Loss]:
        """Write the state, once all events that led to it are written."""
        yield from self._flush_losses()
        if not self.is_main_process or self.saved_step == self.step:
            return
        self.saved_at, self.saved_step = time.monotonic(), self.step
        tensors, told = get_optimizer_state(self.optimizer)
        tensors = {f"optimizer.{name}": value for name, value in tensors.items()} | {
            "values": self.adapter.values
        }
        if self.ema_values is not None:
            tensors["mean"] = self.ema_values
        self.folder.save_state(
            self.step, tensors, {"optimizer": told, "scaler": self.scaler.state_dict()}, keep
        )

    def _resume(self) -> None:
        found = self.folder.load_state()
        if self.is_main_process:
            self.folder.rewind_to(found[0] if found else -1)
        # Otherwise a file that another process begins to write would be deleted as a torn one.
        self.processes.wait_for_everyone()
        if found is None:
            return
        self.step, tensors, told = found
        steps = self.run.settings.steps
        if self.step >= steps and find_final_lora(self.folder) is None:
            raise UserError(
                "steps",
                f"{steps} are not beyond step {self.step}, from which the run continues; "
                "branch from it with more.",
            )
        self.saved_step = self.step
        self.adapter.values.copy_(tensors["values"])
        if self.ema_values is not None:
            self.ema_values.copy_(tensors.get("mean", tensors["values"]))
        restore_optimizer_state(
            self.optimizer,
            {
                name.removeprefix("optimizer."): value
                for name, value in tensors.items()
                if name.startswith("optimizer.")
            },
            told["optimizer"],
        )
        self.scaler.load_state_dict(told["scaler"])

    def _append_events(self, events: list[Any]) -> None:
        if self.is_main_process:
            now = {"t": round(time.time(), 2), "memory": get_peak_memory()}
            self.folder.append_events(
                [{"kind": type(event).__name__.lower(), **asdict(event), **now} for event in events]
            )


def get_peak_memory() -> int:
    """Return the peak memory of this process in bytes: of the GPU, or else of the machine."""
    return (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def _describe_preview_error(error: Exception) -> str:
    """Return why a preview cannot be made, as the end of a sentence."""
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return "this machine ran out of memory; preview_every = 0 turns them off."
    said = str(error) if isinstance(error, UserError) else f"They failed ({type(error).__name__})."
    return f"{said[0].lower()}{said[1:]}"
