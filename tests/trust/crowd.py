"""A crowd by plain HTTP: clients with jobs of every kind that hold what comes back against what they asked, readers that hardly read, people at a full door."""

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

from tests.trust.raw import Raw

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
FULL = "Queue is full. Max size is "
Size = dict[str, int]
NANO: Size = {"width": 128, "height": 128, "steps": 25}
SMALL: Size = {"width": 64, "height": 64, "steps": 2}


class Refused(Exception):
    """A sentence for the person."""


class Broke(Exception):
    """What no visitor should ever see."""


@dataclass
class Tally:
    """What became of the jobs."""

    held: list[tuple[str, float]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    """Answers that were not the client's own."""

    def told(self) -> dict[str, Any]:
        kinds = {kind: sorted(seconds for each, seconds in self.held if each == kind) for kind in sorted({kind for kind, _ in self.held})}
        return {
            "held": len(self.held),
            "refused": dict(Counter(self.refused)),
            "errors": dict(Counter(self.errors)),
            "cross_talk": self.mixed,
            "seconds": {kind: {"jobs": len(took), "p50": _share(took, 0.5), "p95": _share(took, 0.95)} for kind, took in kinds.items()},
        }


def _share(ordered: list[float], part: float) -> float:
    return round(ordered[round(part * (len(ordered) - 1))], 2)


class Visitor:
    """One job of one client, with a number that is nobody else's."""

    def __init__(self, url: str, number: int, size: Size, refused: list[str]):
        self.raw, self.number, self.size, self.refused = Raw(url), number, size, refused
        self.prompt = f"1girl, visitor {number}, smile"

    def ask(self, endpoint: str, **values: Any) -> list[Any]:
        """What the endpoint returns; whoever finds the queue full presses again two seconds later.

        Raises `Refused` with its sentence, `Broke` with anything else.
        """
        while FULL in (first := self.raw.asked(endpoint, **values)).text:
            self.refused.append(door(first))
            time.sleep(2)
        if not first.is_success:
            raise Refused(door(first)) if first.status_code == 422 else Broke(door(first))
        text = self.raw.http.get(f"call{endpoint}/{first.json()['event_id']}").text
        event, _, data = text.rstrip().rpartition("\n\n")[2].partition("\ndata: ")
        if event == "event: complete":
            return json.loads(data)
        sentence = json.loads(data)["error"] if event == "event: error" and data != "null" else None
        raise Broke(text[-300:]) if not sentence or sentence.startswith("Something broke") else Refused(sentence)

    def generate(self, **more: Any) -> bool:
        files, report = self.ask("/generate", prompt=self.prompt, seed=self.number, **self.size, **more)
        picture = Image.open(io.BytesIO(self.raw.http.get(f"file={files[0]['path']}").raise_for_status().content))
        told = picture.text["parameters"]
        own = self.prompt in told and f"Seed: {self.number}," in told and ("<lora:" in told) == bool(more)
        return own and report["seeds"] == [self.number]

    def with_lora(self) -> bool:
        return self.generate(loras=[{"lora": "nano-airbrush", "strength": 1.5}])

    def inspect_lora(self) -> bool:
        upload = self.raw.upload("mine.safetensors", save(load_file(EXAMPLE), {"modelspec.title": self.prompt}))
        return self.ask("/inspect_lora", lora=upload)[0]["metadata"]["modelspec.title"] == self.prompt

    def sweep(self) -> bool:
        seeds = [2 * self.number, 2 * self.number + 1]
        *_, report = self.ask("/sweep", lora="nano-airbrush", strengths="0, 1.5", seeds=", ".join(map(str, seeds)), prompts=self.prompt)
        return {cell["seed"] for cell in report["cells"]} == set(seeds) and {cell["prompt"] for cell in report["cells"]} == {self.prompt}

    def expand_prompt(self) -> bool:
        return f" visitor {self.number}," in self.ask("/expand_prompt", prompt=self.prompt, seed=self.number, max_tags=3)[0]["prompt"]

    def read_picture(self) -> bool:
        info = PngInfo()
        info.add_text("parameters", f"{self.prompt}\nSteps: 5, Sampler: Euler a, CFG scale: 5, Seed: {self.number}, Size: 64x64")
        found = self.ask("/read_picture", picture=self.raw.upload("mine.png", png(self.number, info)))[0]
        return (found["prompt"], found["seed"]) == (self.prompt, self.number)

    def train(self) -> bool:
        steps = 1 + self.number % 3
        overrides = {"steps": steps, "batch": 1, "preview_every": 0, "resolution": 64, "least_side": 32, "most_side": 128}
        pictures = [self.raw.upload("mine.png", png(self.number))]
        begun = self.ask("/train_start", dataset=pictures, recipe="nano-quick", trigger=f"visitor {self.number}", overrides=overrides)[0]
        return begun["steps"] == steps == self.ask("/train_status", run=begun["run"])[0]["steps"]


def png(number: int, info: PngInfo | None = None) -> bytes:
    """A picture of a colour of its own."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 99)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


KINDS: tuple[Callable[[Visitor], bool], ...] = (
    Visitor.generate, Visitor.with_lora, Visitor.inspect_lora, Visitor.expand_prompt, Visitor.read_picture, Visitor.sweep, Visitor.train,
    Visitor.generate, Visitor.with_lora, Visitor.inspect_lora, Visitor.generate, Visitor.generate, Visitor.with_lora, Visitor.expand_prompt,
    Visitor.generate, Visitor.read_picture, Visitor.generate, Visitor.inspect_lora, Visitor.with_lora, Visitor.generate, Visitor.with_lora,
    Visitor.generate, Visitor.generate,
)  # fmt: skip
"""What visitors ask for, in turn."""
EACH = 7
"""As many of them, the first, are all that there are."""


def work(url: str, number: int, size: Size, tally: Tally) -> None:
    """Job `number`."""
    kind, begin = KINDS[number % len(KINDS)], time.monotonic()
    try:
        own = kind(Visitor(url, number, size, tally.refused))
    except Refused as refusal:
        tally.refused.append(str(refusal))
    except (Broke, httpx.HTTPError) as error:
        tally.errors.append(f"{kind.__name__}: {type(error).__name__}: {error}")
    else:
        tally.held.append((kind.__name__, time.monotonic() - begin))
        if not own:
            tally.mixed.append(f"{kind.__name__} {number}")


@contextmanager
def slow_readers(url: str, many: int) -> Iterator[None]:
    """Clients with a job each that take a byte a second of what it says, and hang up in the end without having read it."""
    over, sockets = threading.Event(), []
    for i in range(many):
        event = Raw(url).asked("/generate", prompt=f"slow reader {i}", **SMALL).raise_for_status().json()["event_id"]
        at = urlparse(url)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect((at.hostname, at.port))
        connection.sendall(f"GET /gradio_api/call/generate/{event} HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode())
        sockets.append(connection)

    def read() -> None:
        while not over.wait(1):
            for connection in sockets:
                connection.recv(1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
        for connection in sockets:
            connection.close()


def crowd(url: str, many: int) -> Counter[str]:
    """More requests at once than the queue holds, of clients that never come back for an answer: what each is told at the door."""
    with ThreadPoolExecutor(min(many, 32)) as pool:
        told = pool.map(lambda i: Raw(url).asked("/generate", prompt=f"crowd {i}"), range(many))
        return Counter("taken" if each.is_success else door(each) for each in told)


def door(refused: httpx.Response) -> str:
    """What somebody is told who does not get into the queue; how full it was just then does not matter."""
    return re.sub(r" and size is \d+", "", f"{refused.status_code} {refused.text}"[:300])
