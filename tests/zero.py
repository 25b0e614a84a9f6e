"""ZeroGPU on this machine: the scheduler that `spaces` asks for a GPU, so that its own code forks, lends, reuses, refuses and reports.

Of `spaces` two things are replaced. Its emulation of CUDA needs another build of torch; here an operation on weights that
were there at the launch raises in the page's process, as there, and in a worker they are what they were. And the token that
the Hub's proxy writes into a visitor's request is written where it is read. No GPU is lent without a request.
"""

import base64
import json
import os
import signal
import sys
import threading
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import torch
from gradio.context import LocalContext
from torch.overrides import resolve_name

QUOTA, LONGEST = 10**6, 180
LENDERS: list["Zero"] = []
VISITOR = SimpleNamespace(headers=type("Headers", (dict,), {})())
"""A request."""


class Zero:
    """What is lent to whom. `spaces` asks by HTTP, since its workers do, too."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        """Seconds of each call, as spaces has rounded them."""
        self.workers: dict[tuple[str, int], int] = {}
        """Function and GPU -> the process that is kept for it."""
        self.lent: dict[str, tuple[str, int]] = {}
        self.timers: dict[str, threading.Timer] = {}
        self.answers = threading.Event()
        """Until it is set, whoever asks waits."""
        self.answers.set()
        self.easy()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"zero": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def easy(self) -> None:
        """Lend to everybody."""
        self.left, self.longest, self.free = QUOTA, LONGEST, True  # seconds; whether a GPU is free
        self.second = 10.0  # how long a lent one is: they are counted for a GPU, and here are cores that are shared

    def schedule(self, task: str, seconds: int, known: bool) -> tuple[int, dict[str, str], Any]:
        """Status, headers and answer."""
        self.asked.append(seconds)
        self.answers.wait()
        if seconds > self.longest:
            return 429, {"X-Approve-Result": "illegal-duration"}, {"left": self.left, "wait": -1}
        if seconds > self.left or not known:
            return 429, {"X-Approve-Result": "quota-exceeded"}, {"left": self.left, "wait": 3600}
        if not self.free:
            return 200, {"X-Queuing-Reason": "node"}, "event: failed\n\n"
        gpu = next(i for i in range(99) if (task, i) not in self.lent.values())
        token = uuid.uuid4().hex
        self.lent[token] = task, gpu
        self.timers[token] = threading.Timer(seconds * self.second, self.kill, [(task, gpu)])
        self.timers[token].start()
        return 200, {}, {"idle": (task, gpu) in self.workers, "nvidiaIndex": gpu, "nvidiaUUID": f"GPU-{gpu}", "allowToken": token}

    def allow(self, token: str, pid: int) -> int:
        self.workers[self.lent[token]] = pid
        return 200

    def release(self, token: str, failed: bool) -> int:
        if token not in self.lent:
            return 404
        self.timers.pop(token).cancel()
        place = self.lent.pop(token)
        if failed:
            self.kill(place)
        return 200

    def kill(self, place: tuple[str, int]) -> None:
        """End a worker, as when its time is over."""
        if pid := self.workers.pop(place, None):
            with suppress(ProcessLookupError):  # it ends by itself when spaces has thrown its queue away
                os.kill(pid, signal.SIGKILL)

    def retire(self) -> None:
        """End all workers, so that the next call forks one from what this process is by then."""
        for place in list(self.workers):
            self.kill(place)


class Handler(BaseHTTPRequestHandler):
    zero: Zero

    def do_POST(self) -> None:
        url, headers = urlsplit(self.path), {}
        said = dict(parse_qsl(url.query))
        match url.path:
            case "/schedule":
                status, headers, answer = self.zero.schedule(said["taskId"], int(said["durationSeconds"]), "token" in said)
            case "/allow":
                status, answer = self.zero.allow(said["allowToken"], int(said["pid"])), ""
            case "/release":
                status, answer = self.zero.release(said["allowToken"], said["fail"] == "true"), ""
            case _:
                status, answer = 404, ""
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/event-stream" if isinstance(answer, str) else "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Offloaded(torch.Tensor):
    """A weight of the page's process: its place, and nothing in it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.device.__get__:
            return torch.device("cpu")
        raise Exception(f"Cannot apply function {resolve_name(func)} on disk-offloaded Tensor")  # as spaces raises it


_packed: list[tuple[dict[str, Any], str, torch.Tensor]] = []


def is_packed() -> bool:
    """Whether this is a page's process without weights."""
    return bool(_packed)


def pack() -> None:
    """Take the weights of what is loaded out of this process; its workers have them."""
    from core import models

    for pipeline in models._loaded.values():
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            for own in (own for layer in part.modules() for own in (layer._parameters, layer._buffers)):
                _packed.extend((own, name, value) for name, value in own.items() if value is not None)
    for own, name, _ in _packed:
        own[name] = torch.empty(0).as_subclass(Offloaded)


def unpack(**_: object) -> None:
    """Give them back."""
    while _packed:
        own, name, value = _packed.pop()
        own[name] = value


def switched_on(launch: bool = True) -> Zero:
    """`spaces.GPU` lends from now on; what it decorated before stays as it was. The next `launch` takes the weights."""
    zero, nothing = Zero(), lambda *_, **__: None
    stub = SimpleNamespace(enter_mode=nothing, unpatch=nothing, init=nothing, size=lambda: 0, move=unpack)
    sys.modules["spaces.zero.torch"] = stub  # type: ignore[assignment]
    import spaces
    from spaces import utils
    from spaces.config import Config

    spaces.zero.torch = stub
    utils.debug = nothing
    Config.zero_gpu, Config.zero_device_api_url = True, f"http://127.0.0.1:{zero.server.server_port}"
    from spaces.zero import client, gradio

    own, token = client._get_headers, f".{base64.urlsafe_b64encode(b'{}').decode().rstrip('=')}."
    client._get_headers = lambda request: own(request) if request is None else {**dict(own(request)), "x-ip-token": token}
    if launch:
        gradio.one_launch(pack)
    LENDERS.append(zero)
    return zero


def visit() -> None:
    """What is called from now on in this context is a visitor's."""
    LocalContext.request.set(VISITOR)  # type: ignore[arg-type]


def at_home() -> dict[str, str]:
    """The environment of a process that has its own GPU."""
    return {name: value for name, value in os.environ.items() if name != "SPACES_ZERO_GPU"}
