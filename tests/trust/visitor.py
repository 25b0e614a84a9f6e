"""A visitor by plain HTTP with a session of their own.

They join the queue, read the stream, cancel and hang up; all that comes back is kept unchanged.
"""

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
    """A session of the app at `url`; `headers`, such as a cookie, go with every request."""

    def __init__(self, url: str, headers: dict[str, str] | None = None):
        self.url, self.session, self.headers = url, secrets.token_hex(6), headers or {}
        told = json.loads(self.get("config"))
        self.jobs = {one["api_name"]: one for one in told["dependencies"]}
        self.components = {one["id"]: one["props"] for one in told["components"]}
        self.stream_bytes = b""
        """All bytes of all streams."""
        self.response: HTTPResponse | None = None

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}{path}", headers=self.headers), timeout=60
        ) as response:
            return response.read()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **self.headers},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def join(self, job: str, *, more: dict[str, Any] | None = None, **values: Any) -> str:
        """Put a job of the page or the API into the queue and return the event's id.

        Values go by parameter name; for jobs of the page, by the `elem_id` or the label of the
        first component that has it. What is left out has the page's initial value.
        """
        told = self.jobs[job]
        names = (
            [self.get_component_name(i) for i in told["inputs"]]
            if told["api_visibility"] == "private"
            else self.list_parameters(job)
        )
        assert values.keys() <= set(names), f"{values.keys() - set(names)} is none of {names}"
        data = [
            values.pop(name, self.components[i].get("value"))
            for name, i in zip(names, told["inputs"], strict=True)
        ]
        return self.post(
            "gradio_api/queue/join",
            {"data": data, "fn_index": told["id"], "session_hash": self.session, **(more or {})},
        )["event_id"]

    def get_component_name(self, component: int) -> str:
        props = self.components[component]
        return props.get("elem_id") or props.get("label") or str(component)

    @cached_property
    def endpoints(self) -> dict[str, Any]:
        return json.loads(self.get("gradio_api/info"))["named_endpoints"]

    def list_parameters(self, job: str) -> list[str]:
        return [one["parameter_name"] for one in self.endpoints[f"/{job}"]["parameters"]]

    def read_messages(self) -> Iterator[dict[str, Any]]:
        """Yield the stream's messages until its jobs are done or the visitor hangs up."""
        if self.response is None:
            stream = urllib.request.Request(
                f"{self.url}gradio_api/queue/data?session_hash={self.session}", headers=self.headers
            )
            self.response = urllib.request.urlopen(stream, timeout=120)
        assert self.response is not None
        while line := self.response.readline():
            self.stream_bytes += line
            if line.startswith(b"data: "):
                message = json.loads(line[6:])
                yield message
                if message["msg"] == "close_stream":
                    break
        self.hang_up()

    def wait_for_text(self, text: str) -> dict[str, Any]:
        """Return the first message that contains `text`."""
        for message in self.read_messages():
            if text in json.dumps(message, ensure_ascii=False):
                return message
        raise AssertionError(
            f"{text!r} was never said; the stream ends with {self.stream_bytes[-2000:].decode()}"
        )

    def wait_for_result(self) -> dict[str, Any]:
        """Return the last message of the job that runs."""
        *_, last = (message for message in self.read_messages() if message["msg"] == "process_completed")
        return last

    def cancel(self, job: str, event: str) -> None:
        """Cancel an event as the page's Stop and gradio_client's `cancel` do."""
        self.post(
            "gradio_api/cancel",
            {"session_hash": self.session, "fn_index": self.jobs[job]["id"], "event_id": event},
        )

    def hang_up(self) -> None:
        """Close the connection, as a closed tab does.

        It is shut down first, since forked workers of ZeroGPU hold the same connection open.
        """
        if self.response is not None:
            if not self.response.isclosed():
                with socket.socket(fileno=os.dup(self.response.fileno())) as connection, suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.response.close()
            self.response = None
