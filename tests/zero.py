"""ZeroGPU on this machine: a scheduler that `spaces` asks for a GPU.

So its own code forks, lends, reuses, refuses and reports. Two things of `spaces` are replaced. Its
emulation of CUDA needs another build of torch; here an operation on weights that were there at the
launch raises in the page's process, as there, and in a worker they are what they were. And the
token that the Hub's proxy writes into a visitor's request is written where it is read. No GPU is
lent without a request.
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

QUOTA_SECONDS, MAX_DURATION = 10**6, 180
SCHEDULERS: list["ZeroScheduler"] = []
VISITOR_REQUEST = SimpleNamespace(headers=type("Headers", (dict,), {})())
"""A visitor's request."""


class ZeroScheduler:
    """The scheduler of GPUs. `spaces` asks it by HTTP, since its workers do, too."""

    def __init__(self) -> None:
        self.requested_seconds: list[int] = []
        """Seconds of each call, as `spaces` has rounded them."""
        self.workers: dict[tuple[str, int], int] = {}
        """Function and GPU -> the process that is kept for it."""
        self.leases: dict[str, tuple[str, int]] = {}
        self.timers: dict[str, threading.Timer] = {}
        self.may_answer = threading.Event()
        """Cleared to make everybody who asks wait."""
        self.may_answer.set()
        self.reset_limits()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"scheduler": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset_limits(self) -> None:
        """Lend to everybody."""
        # Seconds left, the most seconds of a call, and whether a GPU is free.
        self.quota_left, self.max_duration, self.has_free_gpu = QUOTA_SECONDS, MAX_DURATION, True
        # How long a lent second is: they are counted for a GPU, and these are shared cores.
        self.second_length = 10.0

    def schedule(self, task: str, seconds: int, known: bool) -> tuple[int, dict[str, str], Any]:
        """Return the status, headers and body of the answer to a request for a GPU."""
        self.requested_seconds.append(seconds)
        self.may_answer.wait()
        if seconds > self.max_duration:
            return 429, {"X-Approve-Result": "illegal-duration"}, {"left": self.quota_left, "wait": -1}
        if seconds > self.quota_left or not known:
            return 429, {"X-Approve-Result": "quota-exceeded"}, {"left": self.quota_left, "wait": 3600}
        if not self.has_free_gpu:
            return 200, {"X-Queuing-Reason": "node"}, "event: failed\n\n"
        gpu = next(i for i in range(99) if (task, i) not in self.leases.values())
        token = uuid.uuid4().hex
        self.leases[token] = task, gpu
        self.timers[token] = threading.Timer(seconds * self.second_length, self.kill_worker, [(task, gpu)])
        self.timers[token].start()
        return (
            200,
            {},
            {
                "idle": (task, gpu) in self.workers,
                "nvidiaIndex": gpu,
                "nvidiaUUID": f"GPU-{gpu}",
                "allowToken": token,
            },
        )

    def allow(self, token: str, pid: int) -> int:
        self.workers[self.leases[token]] = pid
        return 200

    def release(self, token: str, failed: bool) -> int:
        if token not in self.leases:
            return 404
        self.timers.pop(token).cancel()
        place = self.leases.pop(token)
        if failed:
            self.kill_worker(place)
        return 200

    def kill_worker(self, place: tuple[str, int]) -> None:
        """End a worker, as when its time is over."""
        if pid := self.workers.pop(place, None):
            with suppress(ProcessLookupError):  # it ends by itself when spaces has thrown its queue away
                os.kill(pid, signal.SIGKILL)

    def retire_workers(self) -> None:
        """End all workers, so that the next call forks one from what this process is by then."""
        for place in list(self.workers):
            self.kill_worker(place)


class Handler(BaseHTTPRequestHandler):
    scheduler: ZeroScheduler

    def do_POST(self) -> None:
        url, headers = urlsplit(self.path), {}
        said = dict(parse_qsl(url.query))
        match url.path:
            case "/schedule":
                status, headers, answer = self.scheduler.schedule(
                    said["taskId"], int(said["durationSeconds"]), "token" in said
                )
            case "/allow":
                status, answer = self.scheduler.allow(said["allowToken"], int(said["pid"])), ""
            case "/release":
                status, answer = self.scheduler.release(said["allowToken"], said["fail"] == "true"), ""
            case _:
                status, answer = 404, ""
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/event-stream" if isinstance(answer, str) else "application/json",
            **headers,
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class OffloadedTensor(torch.Tensor):
    """A weight of the page's process: a place without values."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.device.__get__:
            return torch.device("cpu")
        # As `spaces` raises it.
        raise Exception(f"Cannot apply function {resolve_name(func)} on disk-offloaded Tensor")


_packed_weights: list[tuple[dict[str, Any], str, torch.Tensor]] = []


def is_packed() -> bool:
    """Whether this is a page's process without weights."""
    return bool(_packed_weights)


def pack_weights() -> None:
    """Take the weights of the loaded models out of this process; its workers have them."""
    from core.models import bases

    for pipeline in bases._pipelines.values():
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            for own in (own for layer in part.modules() for own in (layer._parameters, layer._buffers)):
                _packed_weights.extend((own, name, value) for name, value in own.items() if value is not None)
    for own, name, _ in _packed_weights:
        own[name] = torch.empty(0).as_subclass(OffloadedTensor)


def unpack_weights(**_: object) -> None:
    """Give this process its weights back."""
    while _packed_weights:
        own, name, value = _packed_weights.pop()
        own[name] = value


def enable_zero_gpu(launch: bool = True) -> ZeroScheduler:
    """Let `spaces.GPU` lend from now on; what it decorated before stays as it was.

    The next `launch` takes the weights out of this process.
    """
    zero, nothing = ZeroScheduler(), lambda *_, **__: None
    stub = SimpleNamespace(
        enter_mode=nothing, unpatch=nothing, init=nothing, size=lambda: 0, move=unpack_weights
    )
    sys.modules["spaces.zero.torch"] = stub  # type: ignore[assignment]
    import spaces
    from spaces import utils
    from spaces.config import Config

    spaces.zero.torch = stub
    utils.debug = nothing
    Config.zero_gpu, Config.zero_device_api_url = True, f"http://127.0.0.1:{zero.server.server_port}"
    from spaces.zero import client, gradio

    own, token = client._get_headers, f".{base64.urlsafe_b64encode(b'{}').decode().rstrip('=')}."
    client._get_headers = lambda request: (
        own(request) if request is None else {**dict(own(request)), "x-ip-token": token}
    )
    if launch:
        gradio.one_launch(pack_weights)
    SCHEDULERS.append(zero)
    return zero


def act_as_visitor() -> None:
    """Make all later calls in this context a visitor's."""
    LocalContext.request.set(VISITOR_REQUEST)  # type: ignore[arg-type]


def get_home_environment() -> dict[str, str]:
    """Return the environment of a process that has its own GPU."""
    return {name: value for name, value in os.environ.items() if name != "SPACES_ZERO_GPU"}
