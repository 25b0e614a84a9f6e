"""A visitor by plain HTTP, with a session of their own: joins the queue, reads the stream, cancels, hangs up; all that comes back is kept as it came."""

import json
import os
import secrets
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from http.client import HTTPResponse
from typing import Any


class Visitor:
    """One session of the app at `url`; `headers` go with every request, such as a browser's cookie."""

    def __init__(self, url: str, headers: dict[str, str] | None = None):
        self.url, self.session, self.headers = url, secrets.token_hex(6), headers or {}
        told = json.loads(self.get("config"))
        self.jobs = {one["api_name"]: one for one in told["dependencies"]}
        self.components = {one["id"]: one["props"] for one in told["components"]}
        self.raw = b""
        """All of the streams."""
        self.response: HTTPResponse | None = None

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", headers=self.headers), timeout=60) as response:
            return response.read()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **self.headers})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def join(self, job: str, *, more: dict[str, Any] | None = None, **values: Any) -> str:
        """Take a place in the queue, of the page's jobs or of the API's; gives the event. What is not said is as the page has it.

        A value goes by its parameter's name, on the page by the `elem_id` or the label of the first component that has it.
        """
        told = self.jobs[job]
        names = [self.named(i) for i in told["inputs"]] if told["api_visibility"] == "private" else self.parameters(job)
        assert values.keys() <= set(names), f"{values.keys() - set(names)} is none of {names}"
        data = [values.pop(name, self.components[i].get("value")) for name, i in zip(names, told["inputs"], strict=True)]
        return self.post("gradio_api/queue/join", {"data": data, "fn_index": told["id"], "session_hash": self.session, **(more or {})})["event_id"]

    def named(self, component: int) -> str:
        props = self.components[component]
        return props.get("elem_id") or props.get("label") or str(component)

    @cached_property
    def endpoints(self) -> dict[str, Any]:
        return json.loads(self.get("gradio_api/info"))["named_endpoints"]

    def parameters(self, job: str) -> list[str]:
        return [one["parameter_name"] for one in self.endpoints[f"/{job}"]["parameters"]]

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the stream says, until its jobs are done or the visitor hangs up."""
        if self.response is None:
            stream = urllib.request.Request(f"{self.url}gradio_api/queue/data?session_hash={self.session}", headers=self.headers)
            self.response = urllib.request.urlopen(stream, timeout=120)
        assert self.response is not None
        while line := self.response.readline():
            self.raw += line
            if line.startswith(b"data: "):
                message = json.loads(line[6:])
                yield message
                if message["msg"] == "close_stream":
                    break
        self.hang_up()

    def until(self, said: str) -> dict[str, Any]:
        """The first message in which something stands."""
        for message in self.messages():
            if said in json.dumps(message, ensure_ascii=False):
                return message
        raise AssertionError(f"{said!r} was never said; the stream ends with {self.raw[-2000:].decode()}")

    def ended(self) -> dict[str, Any]:
        """The last word of the job under way."""
        *_, last = (message for message in self.messages() if message["msg"] == "process_completed")
        return last

    def cancel(self, job: str, event: str) -> None:
        """As the page's Stop and gradio_client's `cancel`."""
        self.post("gradio_api/cancel", {"session_hash": self.session, "fn_index": self.jobs[job]["id"], "event_id": event})

    def hang_up(self) -> None:
        """Close the tab. Workers of ZeroGPU that were forked from this process have the connection open, too, so it is ended first."""
        if self.response is not None:
            if not self.response.isclosed():
                with socket.socket(fileno=os.dup(self.response.fileno())) as connection, suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.response.close()
            self.response = None
