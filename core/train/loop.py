"""The training loop: a generator of what happens, that goes on where the run's folder stands.

A step is a function of the state before it and of its number: nothing else. So a run that was interrupted, anywhere and as often
as it may be, ends in the same weights and the same losses as one that was not.
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

from core import models
from core.data import dataset as datasets
from core.events import Failed, Loss, Note, Preview, Saved, Validation
from core.memory import OutOfMemory, ran_out_of_memory, release
from core.train.adapter import Adapter, components_of
from core.train.export import export
from core.train.fellows import Alone
from core.train.folder import Folder
from core.train.lesson import Lessons
from core.train.objective import errors, schedule
from core.train.optimizer import factor, optimizer, remembered, restore, set_rates
from core.train.preview import previews
from core.train.run import Run, last, read
from core.train.turns import keep_on_device, take_turns
from core.types import UserError

STATE_SECONDS = 30
"""Between two states, beside those of each LoRA: what a killed process costs at most."""
UNSEEN = 10
"""Steps whose losses may wait on a GPU before anybody looks at them: a look makes the GPU wait."""
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Said = Loss | Validation | Saved | Preview | Note | Failed

log = logging.getLogger(__name__)


def train(folder: Folder, seconds: float = math.inf, fellows: Alone | None = None) -> Generator[Said, None, None]:
    """Go on with the run until it is done, asked to stop, or `seconds` are over, the model's loading among them.

    What happened is said in its events, too.

    Ends with `Failed` when it cannot go on; the last state stays. The caller owns the folder.
    """
    fellows, until = fellows or Alone(), time.monotonic() + seconds
    try:
        run = read(folder)
        pipeline = _open(run.model, folder)
        if pipeline is None:
            return
        with keep_on_device(pipeline, components_of(run.settings)):
            yield from Session(folder, fellows, run, pipeline).steps(until)
        return
    except UserError as error:
        message = str(error)
    except (OSError, SafetensorError) as error:
        if "No space left" not in str(error):
            raise
        message = "The disk is full: make room and go on; the last state stays."
    if fellows.rank == 0:
        folder.failed(message)
    yield Failed(message=message)


def _open(model: str, folder: Folder) -> StableDiffusionXLPipeline | None:
    """The base of a run; `None` where the run is asked to stop meanwhile."""
    with closing(models.open_model(model)) as steps:
        try:
            while True:
                next(steps)
                if folder.asked_to_stop():
                    return None
        except StopIteration as end:
            return end.value


class Session:
    """A run in memory."""

    def __init__(self, folder: Folder, fellows: Alone, run: Run, pipeline: StableDiffusionXLPipeline):
        """`pipeline` is the run's base, with what is trained on the device."""
        self.folder, self.fellows, self.run, self.pipeline = folder, fellows, run, pipeline
        made = self.run.settings
        self.dataset = datasets.load(folder.dataset)
        if self.dataset.fingerprint() != self.run.fingerprint:
            raise UserError("dataset: the pictures or captions are no longer those that the run was set up with; set up a new run.")
        if made.precision == "float32" != str(pipeline.unet.dtype).removeprefix("torch."):
            pipeline.unet.to(torch.float32)
        self.adapter = Adapter(pipeline, made)
        self.noises = schedule(pipeline)
        self.lessons = Lessons(self.run, self.dataset, self.adapter, self.noises, folder)
        self.optimizer, self.factor = optimizer(self.adapter, made), factor(made)
        self.device = self.adapter.values.device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=made.precision == "float16")
        self.mean = self.adapter.values.clone() if made.ema is not None else None
        self.step, self.checkpointing = 0, 0
        self.unseen: list[tuple[int, float, torch.Tensor]] = []
        """Step, rate, and (loss, norm) wherever they were computed."""
        self.saved, self.saved_step = time.monotonic(), -1
        self._resume()

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.fellows.rank == 0

    def steps(self, until: float) -> Iterator[Said]:
        """Train; see `train`."""
        made = self.run.settings
        for was_made in self.lessons.prepare():
            if self._stop(until if was_made else math.inf):  # what was made stays on disk
                return
        if self.step == 0:
            yield from self._milestone()
        stop = self._stop(math.inf)  # a slice takes a step, however short it is
        while self.step < made.steps and not stop:
            self._step()
            if self.device == "cpu" or len(self.unseen) == UNSEEN:
                yield from self._seen()
            if self.step % made.save_every == 0 or self.step == made.steps or (made.preview_every and self.step % made.preview_every == 0):
                yield from self._milestone()
            elif self.leads and time.monotonic() - self.saved > STATE_SECONDS:
                yield from self._kept()
            stop = self._stop(until)
        yield from self._kept()

    # --- one step ------------------------------------------------------------------------------

    def _step(self) -> None:
        """One change of the weights; when memory runs out, once more with less of it kept."""
        while True:
            try:
                return self._tried()
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                if self.checkpointing == 2 or self.fellows.size > 1:
                    made = self.run.settings
                    raise UserError(
                        f"This machine ran out of memory: lower batch ({made.batch}) or resolution ({made.resolution}). The last state stays."
                    ) from error
                self.checkpointing += 1
                self.adapter.checkpointing(self.checkpointing)
            release()

    def _tried(self) -> None:
        made, adapter = self.run.settings, self.adapter
        adapter.gradients.zero_()
        loss = torch.zeros(1, device=adapter.values.device)
        for number in range(self.step * made.accumulation, (self.step + 1) * made.accumulation):
            size = self.lessons.size(number)
            mine = range(self.fellows.rank, size, self.fellows.size)
            if not mine:
                continue
            if made.dropout:
                torch.manual_seed(made.seed * 1_000_003 + number)  # PEFT's dropout draws from the global numbers
            with self._precision():
                part = errors(adapter.pipeline.unet, self.noises, self.lessons.batch(number, mine), made.min_snr).sum() / (size * made.accumulation)
            self.scaler.scale(part).backward()
            loss += part.detach()
        self.fellows.add(adapter.gradients)
        self.fellows.add(loss)
        self.scaler.unscale_(self.optimizer)
        norm = adapter.gradients.norm()
        if made.clip:
            adapter.gradients.mul_((made.clip / (norm + 1e-6)).clamp(max=1.0))
        rate = set_rates(self.optimizer, self.factor(self.step))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.mean is not None:
            assert made.ema is not None
            self.mean.lerp_(adapter.values, 1 - made.ema)
        self.step += 1
        self.unseen.append((self.step, rate, torch.cat([loss, norm[None]])))

    def _precision(self):
        half = HALVES.get(self.run.settings.precision)
        return torch.autocast(self.device, dtype=half) if half else nullcontext()

    def _stop(self, until: float) -> bool:
        """Whether to end after this step; all processes come to the same answer."""
        ends = self.folder.asked_to_stop() or time.monotonic() > until
        if self.fellows.size == 1:
            return ends
        asked = torch.tensor([float(ends)], device=self.adapter.values.device)
        self.fellows.add(asked)
        return bool(asked)

    # --- what is seen and kept -----------------------------------------------------------------

    def _seen(self) -> Iterator[Loss]:
        """Look at the losses that nobody has looked at. Raises `UserError` if one is no number."""
        if not self.unseen:
            return
        numbers = torch.stack([both for _, _, both in self.unseen]).tolist()
        found = [Loss(step=step, loss=loss, rate=rate, norm=norm) for (step, rate, _), (loss, norm) in zip(self.unseen, numbers, strict=True)]
        self.unseen.clear()
        bad = next((each for each in found if not math.isfinite(each.loss) or not (math.isfinite(each.norm) or self.scaler.is_enabled())), None)
        self._say([each for each in found if bad is None or each.step < bad.step])
        if bad:
            made, last = self.run.settings, self.folder.state()
            what = f"The loss became {bad.loss:g}" if not math.isfinite(bad.loss) else f"The gradient became {bad.norm:g}"
            raise UserError(
                f"{what} at step {bad.step}: lower rate ({made.rate:g}) or use another precision than {made.precision}. "
                f"The state of step {last[0] if last else 0} stays; fork it with other settings."
            )
        yield from found

    def _milestone(self) -> Iterator[Said]:
        """What there is at some steps: a LoRA, its previews, the loss on held-out pictures; then the state."""
        made, name = self.run.settings, self.run.name
        yield from self._seen()
        if self.lessons.held_out:
            validation = Validation(step=self.step, loss=self._validated())
            self._say([validation])
            yield validation
        if self.leads and self.step:
            is_last = self.step == made.steps
            file = self.folder.loras / (f"{name}.safetensors" if is_last else f"{name}-{self.step:06d}.safetensors")
            with self.adapter.holding(self.mean):
                export(self.adapter, self.run, self.dataset, self.step, file, self.lessons.occupied)
            saved = Saved(step=self.step, file=file.name)
            self._say([saved])
            yield saved
            if made.preview_every and (self.step % made.preview_every == 0 or is_last):
                yield from self._previews(file)
        yield from self._kept(keep=self.step > 0 and self.step % made.save_every == 0)

    def _previews(self, lora: Path) -> Iterator[Preview | Note]:
        """The pictures of this step; those that cannot be made are left out with a note, for no picture ends a training."""
        why = None
        with take_turns(self.pipeline, self.adapter.trained):
            try:
                for picture in previews(self.run, lora, self.step, self.folder.previews, self.folder.asked_to_stop):
                    shown = Preview(step=self.step, file=picture.name)
                    self._say([shown])
                    yield shown
            except Exception as error:
                log.warning("a preview cannot be made", exc_info=error)
                why = _reason(error)
            release()  # before what is trained comes back
        if why:
            note = Note(step=self.step, text=f"Previews of step {self.step} are left out: {why}")
            self._say([note])
            yield note

    @torch.no_grad()
    def _validated(self) -> float:
        with self.adapter.holding(self.mean), self._precision():
            parts = [errors(self.adapter.pipeline.unet, self.noises, batch, None).mean() for batch in self.lessons.validation()]
        return float(torch.stack(parts).mean())

    def _kept(self, keep: bool = False) -> Iterator[Loss]:
        """Write the state, once all that led to it has been seen and said."""
        yield from self._seen()
        if not self.leads or self.saved_step == self.step:
            return
        self.saved, self.saved_step = time.monotonic(), self.step
        tensors, told = remembered(self.optimizer)
        tensors = {f"optimizer.{name}": value for name, value in tensors.items()} | {"values": self.adapter.values}
        if self.mean is not None:
            tensors["mean"] = self.mean
        self.folder.save_state(self.step, tensors, {"optimizer": told, "scaler": self.scaler.state_dict()}, keep)

    def _resume(self) -> None:
        found = self.folder.state()
        self.folder.clear(found[0] if found else -1)
        if found is None:
            return
        self.step, tensors, told = found
        steps = self.run.settings.steps
        if self.step >= steps and last(self.folder) is None:
            raise UserError(f"steps: {steps} are not beyond step {self.step}, from which the run goes on; fork it with more.")
        self.saved_step = self.step
        self.adapter.values.copy_(tensors["values"])
        if self.mean is not None:
            self.mean.copy_(tensors.get("mean", tensors["values"]))
        restore(self.optimizer, {name.removeprefix("optimizer."): value for name, value in tensors.items() if name.startswith("optimizer.")}, told["optimizer"])
        self.scaler.load_state_dict(told["scaler"])

    def _say(self, events: list[Any]) -> None:
        if self.leads:
            now = {"t": round(time.time(), 2), "memory": memory()}
            self.folder.say([{"kind": type(event).__name__.lower(), **asdict(event), **now} for event in events])


def memory() -> int:
    """Bytes that this process has had at most: of the GPU, or else of the machine."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reason(error: Exception) -> str:
    """Why a preview cannot be made, as the end of a sentence."""
    if isinstance(error, OutOfMemory) or ran_out_of_memory(error):
        return "this machine ran out of memory; preview_every = 0 makes none."
    said = str(error) if isinstance(error, UserError) else f"They broke off ({type(error).__name__})."
    return f"{said[0].lower()}{said[1:]}"
