"""A crowd of clients by plain HTTP.

Clients with jobs of every kind that compare what comes back with what they requested, readers that
hardly read, and people who meet a full queue.
"""

import io
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save

from tests.trust.raw import RawClient

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
QUEUE_FULL = "Queue is full. Max size is "
Size = dict[str, int]
NANO_SIZE: Size = {"width": 128, "height": 128, "steps": 25}
SMALL_SIZE: Size = {"width": 64, "height": 64, "steps": 2}


class RefusalError(Exception):
    """The app refused the call, with a sentence for the person."""


class BrokenError(Exception):
    """The app answered in a way that no visitor should ever see."""


@dataclass
class Tally:
    """Outcomes of the jobs."""

    completions: list[tuple[str, float]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    mixups: list[str] = field(default_factory=list)
    """Answers that were not the client's own."""

    def summarize(self) -> dict[str, Any]:
        kinds = {
            kind: sorted(seconds for each, seconds in self.completions if each == kind)
            for kind in sorted({kind for kind, _ in self.completions})
        }
        return {
            "held": len(self.completions),
            "refused": dict(Counter(self.refusals)),
            "errors": dict(Counter(self.errors)),
            "cross_talk": self.mixups,
            "seconds": {
                kind: {"jobs": len(took), "p50": _percentile(took, 0.5), "p95": _percentile(took, 0.95)}
                for kind, took in kinds.items()
            },
        }


def _percentile(ordered: list[float], part: float) -> float:
    return round(ordered[round(part * (len(ordered) - 1))], 2)


class LoadVisitor:
    """One job of one client, with a number that is nobody else's."""

    def __init__(self, url: str, number: int, size: Size, refusals: list[str]):
        self.raw, self.number, self.size, self.refusals = RawClient(url), number, size, refusals
        self.prompt = f"1girl, visitor {number}, smile"

    def ask(self, endpoint: str, **values: Any) -> list[Any]:
        """Call the endpoint and return its values; retry every two seconds while the queue is full.

        Raises `RefusalError` with the app's sentence, `BrokenError` on any other failure.
        """
        while QUEUE_FULL in (first := self.raw.submit(endpoint, **values)).text:
            self.refusals.append(describe_refusal(first))
            time.sleep(2)
        if not first.is_success:
            raise (
                RefusalError(describe_refusal(first))
                if first.status_code == 422
                else BrokenError(describe_refusal(first))
            )
        text = self.raw.http.get(f"call{endpoint}/{first.json()['event_id']}").text
        event, _, data = text.rstrip().rpartition("\n\n")[2].partition("\ndata: ")
        if event == "event: complete":
            return json.loads(data)
        sentence = json.loads(data)["error"] if event == "event: error" and data != "null" else None
        raise (
            BrokenError(text[-300:])
            if not sentence or sentence.startswith("Something went wrong")
            else RefusalError(sentence)
        )

    def generate(self, **more: Any) -> bool:
        files, report = self.ask("/generate", prompt=self.prompt, seed=self.number, **self.size, **more)
        picture = Image.open(
            io.BytesIO(self.raw.http.get(f"file={files[0]['path']}").raise_for_status().content)
        )
        told = picture.text["parameters"]
        own = self.prompt in told and f"Seed: {self.number}," in told and ("<lora:" in told) == bool(more)
        return own and report["seeds"] == [self.number]

    def with_lora(self) -> bool:
        return self.generate(loras=[{"lora": "nano-airbrush", "strength": 1.5}])

    def inspect_lora(self) -> bool:
        upload = self.raw.upload(
            "mine.safetensors", save(load_file(EXAMPLE), {"modelspec.title": self.prompt})
        )
        return self.ask("/inspect_lora", lora=upload)[0]["metadata"]["modelspec.title"] == self.prompt

    def sweep(self) -> bool:
        seeds = [2 * self.number, 2 * self.number + 1]
        *_, report = self.ask(
            "/sweep",
            lora="nano-airbrush",
            strengths="0, 1.5",
            seeds=", ".join(map(str, seeds)),
            prompts=self.prompt,
        )
        return {cell["seed"] for cell in report["cells"]} == set(seeds) and {
            cell["prompt"] for cell in report["cells"]
        } == {self.prompt}

    def expand_prompt(self) -> bool:
        return (
            f" visitor {self.number},"
            in self.ask("/expand_prompt", prompt=self.prompt, seed=self.number, max_tags=3)[0]["prompt"]
        )

    def read_picture(self) -> bool:
        info = PngInfo()
        info.add_text(
            "parameters",
            f"{self.prompt}\nSteps: 5, Sampler: Euler a, CFG scale: 5, Seed: {self.number}, Size: 64x64",
        )
        found = self.ask("/read_picture", picture=self.raw.upload("mine.png", make_png(self.number, info)))[0]
        return (found["prompt"], found["seed"]) == (self.prompt, self.number)

    def train(self) -> bool:
        steps = 1 + self.number % 3
        overrides = {
            "steps": steps,
            "batch": 1,
            "preview_every": 0,
            "resolution": 64,
            "least_side": 32,
            "most_side": 128,
        }
        pictures = [self.raw.upload("mine.png", make_png(self.number))]
        begun = self.ask(
            "/train_start",
            dataset=pictures,
            recipe="nano-quick",
            trigger=f"visitor {self.number}",
            overrides=overrides,
        )[0]
        return begun["steps"] == steps == self.ask("/train_status", run=begun["run"])[0]["steps"]


def make_png(number: int, info: PngInfo | None = None) -> bytes:
    """Return a PNG of 64 x 64 pixels in a colour that depends on `number`."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 99)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


JOB_KINDS: tuple[Callable[[LoadVisitor], bool], ...] = (
    LoadVisitor.generate, LoadVisitor.with_lora, LoadVisitor.inspect_lora, LoadVisitor.expand_prompt,
    LoadVisitor.read_picture, LoadVisitor.sweep, LoadVisitor.train,
    LoadVisitor.generate, LoadVisitor.with_lora, LoadVisitor.inspect_lora, LoadVisitor.generate,
    LoadVisitor.generate, LoadVisitor.with_lora, LoadVisitor.expand_prompt,
    LoadVisitor.generate, LoadVisitor.read_picture, LoadVisitor.generate, LoadVisitor.inspect_lora,
    LoadVisitor.with_lora, LoadVisitor.generate, LoadVisitor.with_lora,
    LoadVisitor.generate, LoadVisitor.generate,
)  # fmt: skip
"""The kinds of jobs that visitors request, in turn."""
KIND_COUNT = 7
"""The first `KIND_COUNT` entries of `JOB_KINDS` hold every kind once."""


def run_job(url: str, number: int, size: Size, tally: Tally) -> None:
    """Run job `number` and add its outcome to `tally`."""
    kind, begin = JOB_KINDS[number % len(JOB_KINDS)], time.monotonic()
    try:
        own = kind(LoadVisitor(url, number, size, tally.refusals))
    except RefusalError as refusal:
        tally.refusals.append(str(refusal))
    except (BrokenError, httpx.HTTPError) as error:
        tally.errors.append(f"{kind.__name__}: {type(error).__name__}: {error}")
    else:
        tally.completions.append((kind.__name__, time.monotonic() - begin))
        if not own:
            tally.mixups.append(f"{kind.__name__} {number}")


@contextmanager
def connect_slow_readers(url: str, many: int) -> Iterator[None]:
    """Connect clients with a job each that read a byte a second of its stream.

    At the end they hang up without having read it.
    """
    over, sockets = threading.Event(), []
    for i in range(many):
        event = (
            RawClient(url)
            .submit("/generate", prompt=f"slow reader {i}", **SMALL_SIZE)
            .raise_for_status()
            .json()["event_id"]
        )
        at = urlparse(url)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect((at.hostname, at.port))
        connection.sendall(
            f"GET /gradio_api/call/generate/{event} HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode()
        )
        sockets.append(connection)

    def read_slowly() -> None:
        while not over.wait(1):
            for connection in sockets:
                connection.recv(1)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
        for connection in sockets:
            connection.close()


def overfill_queue(url: str, many: int) -> Counter[str]:
    """Send `many` requests at once, more than the queue holds, and count the answers.

    The clients never come back for a result.
    """
    with ThreadPoolExecutor(min(many, 32)) as pool:
        told = pool.map(lambda i: RawClient(url).submit("/generate", prompt=f"crowd {i}"), range(many))
        return Counter("taken" if each.is_success else describe_refusal(each) for each in told)


def describe_refusal(response: httpx.Response) -> str:
    """Return the answer to a refused request, without the queue's size, which varies."""
    return re.sub(r" and size is \d+", "", f"{response.status_code} {response.text}"[:300])
