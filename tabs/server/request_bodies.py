"""Check requests before Gradio reads them: the body's bytes and values, and fields that exist.

Whatever breaks after that is answered with one sentence.
"""

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

import gradio as gr
import httpx
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.schema import limits
from core.schema.bounds import format_value
from core.schema.errors import UserError
from core.system.call_log import Call
from tabs.server.call_wrapper import was_refused
from tabs.server.gradio_internals import API_PREFIX, BlockFunction, routes

# Gradio prints which file of a component was asked for: a visitor's words.
routes.print = lambda *_: None  # type: ignore[attr-defined]

CALL_ROUTE_PATTERN = re.compile(
    rf"{API_PREFIX}/(?:(call/v2|call|run|api)/([^/]+)|(queue/join|component_server))/?"
)
JSON_STRING_PATTERN = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
BRACKET_PATTERN = re.compile(r"[\[\]{}]")


class Refusal(NamedTuple):
    """Why a request goes no further: an HTTP status and a sentence."""

    status: int
    sentence: str

    def make_response(self) -> JSONResponse:
        """Return the response as the page's client and scripts read it.

        Gradio has its sentences under one of these names or the other.
        """
        return JSONResponse({"detail": self.sentence, "error": self.sentence}, self.status)


class RequestGuard:
    """Middleware around Gradio that refuses requests which it could not answer.

    It answers 413 to a body beyond its limit, 400 and 404 to what no endpoint takes, and with one
    sentence to what breaks.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks):
        self.app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif is_form(Headers(scope=scope)):  # only of uploads: see `OriginGuard`
            await self._forward(scope, receive, send)
        elif (body := await _read_body(scope, receive)) is None:
            await Refusal(
                413, f"body: it is too long; the limit is {limits.BODY_BYTES / 2**20:g} MB."
            ).make_response()(scope, receive, send)
        elif refusal := _find_refusal(self._page, scope["path"], body):
            call = Call(kind="request")
            call.mark_refused(refusal.sentence)
            call.end()
            await refusal.make_response()(scope, receive, send)
        else:
            await self._forward(scope, _replay_body(body, receive), send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio answer the request.

        A call that a handler refuses is no error of the server; an unexpected error is in the call
        log, without its words.
        """
        begun = False
        was_refused.set(False)

        async def send_with_status(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = (
                    {**message, "status": 400} if message["status"] == 500 and was_refused.get() else message
                )
            await send(message)

        try:
            await self.app(scope, receive, send_with_status)
        except Exception as error:
            refusal = _handle_error(error)
            if begun:
                await send({"type": "http.response.body", "body": b""})
            else:
                await refusal.make_response()(scope, receive, send)


def _handle_error(error: Exception) -> Refusal:
    """Log an error that no route of Gradio's caught, and return it as a sentence."""
    call = Call(kind="request")
    if isinstance(error, httpx.InvalidURL):
        refusal = Refusal(400, "address: its host or its path is not valid.")
        call.mark_refused(refusal.sentence)
    elif isinstance(error.__cause__, HTTPException):
        # A stream that has begun raises this instead of sending a status.
        refusal = Refusal(error.__cause__.status_code, "event: it does not exist.")
        call.mark_refused(refusal.sentence)
    elif isinstance(error, ClientDisconnect):
        refusal = Refusal(400, "request: it was broken off.")
        call.mark_stopped()
    else:
        refusal = Refusal(500, f"Something went wrong (request {call.request_id}).")
        call.mark_crashed(error)
    call.end()
    return refusal


async def handle_validation_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer a body of the wrong form with one sentence, which repeats nothing of the body.

    For `FastAPI(exception_handlers=...)`.
    """
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str)) or "body"
    call = Call(kind="request")
    why = "it is missing" if first["type"] == "missing" else f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    call.mark_refused(sentence := f"{field[:40]}: {why}.")
    call.end()
    return Refusal(400, sentence).make_response()


def is_form(headers: Headers) -> bool:
    """Whether the request is a form, and so may carry files.

    Gradio writes those of any form to the disk before it looks at what they are for.
    """
    return headers.get("content-type", "").strip().lower().startswith("multipart/")


async def _read_body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the whole body, or `None` if it is, or says that it is, longer than the limit.

    No more than the limit is kept.
    """
    if int(Headers(scope=scope).get("content-length") or 0) > limits.BODY_BYTES:
        return None
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limits.BODY_BYTES:
            return None
        if not message.get("more_body", False):
            break
    return bytes(body)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, and after it whatever else comes."""
    left = [body]

    async def receive_body() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return receive_body


def _find_refusal(page: gr.Blocks, path: str, body: bytes) -> Refusal | None:
    """Return why Gradio would not know what to do with the request, or `None`."""
    try:
        said = _parse_body(body) if body else None
    except UserError as error:
        return Refusal(400, str(error))
    if not (match := CALL_ROUTE_PATTERN.fullmatch(path[path.find(API_PREFIX) :])) or not isinstance(
        said, dict
    ):
        return None  # FastAPI checks the kind of the body
    kind, name, other = match.groups()
    if other == "component_server":
        known = isinstance(said.get("component_id"), int) and said["component_id"] in page.blocks
        return (
            None
            if known
            else Refusal(404, f"component_id: {format_value(said.get('component_id'))} is unknown.")
        )
    if kind == "call/v2":
        return _find_named_refusal(page, name, said)
    number = said.get("fn_index") if kind != "call" else None
    if number is not None and (type(number) is not int or number not in page.fns):
        return Refusal(404, f"fn_index: {format_value(number)} is unknown.")
    if number is None and kind is None:
        return Refusal(400, "fn_index: it is missing.")
    fn = (
        page.fns[number]
        if number is not None
        else next((fn for fn in page.fns.values() if fn.api_name == name), None)
    )
    if fn is None:
        return _make_unknown_refusal(page, name)
    if kind in ("run", "api") and fn.queue:
        return None  # Gradio answers that it takes no direct request
    return _find_count_refusal(fn, said, by_name=kind == "call")


def _parse_body(body: bytes) -> Any:
    """Parse JSON of a bounded shape: what it becomes in memory takes many times its bytes.

    Raises `UserError` if the body is not JSON, or is beyond a limit.
    """
    try:
        text = body.decode("utf-8")
        bare = JSON_STRING_PATTERN.sub("", text)
        if sum(bare.count(sign) for sign in ",[]{}") > limits.BODY_VALUES:
            raise UserError("body", f"it contains too many values; the limit is {limits.BODY_VALUES:,}.")
        depth = deepest = 0
        for bracket in BRACKET_PATTERN.finditer(bare):
            depth += 1 if bracket[0] in "[{" else -1
            deepest = max(deepest, depth)
        if deepest > limits.BODY_DEPTH:
            raise UserError(
                "body", f"it is nested too deeply; the limit is {limits.BODY_DEPTH} nested lists and tables."
            )
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError("body", "it is not JSON in UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError("body", f"it is not JSON: {error.msg} at character {error.pos:,}.") from error
    except ValueError as error:
        raise UserError("body", "it contains a number with too many digits.") from error


def _make_unknown_refusal(page: gr.Blocks, name: str) -> Refusal:
    known = ", ".join(sorted(str(fn.api_name) for fn in page.fns.values() if fn.api_visibility == "public"))
    return Refusal(404, f"endpoint: {format_value(name)} is unknown; the endpoints are {known}.")


@lru_cache(maxsize=1)
def _get_api_info(page: gr.Blocks) -> dict[str, Any]:
    """Return what Gradio says of each endpoint, which takes it 0.01 s to put together."""
    return page.get_api_info()["named_endpoints"]


def _find_named_refusal(page: gr.Blocks, name: str, body: dict[str, Any]) -> Refusal | None:
    """Return why a body that gives its values by field is refused, or `None`."""
    takes = _get_api_info(page).get(f"/{name}")
    if takes is None:
        return _make_unknown_refusal(page, name)
    fields = {
        told["parameter_name"]: told.get("parameter_has_default", False) for told in takes["parameters"]
    }
    if unknown := [key for key in body if key not in fields and key != "oauth_token"]:
        return Refusal(
            400, f"{name}: {format_value(unknown[0])} is not a field; the fields are {', '.join(fields)}."
        )
    if missing := [key for key, has_default in fields.items() if key not in body and not has_default]:
        return Refusal(400, f"{missing[0]}: it is missing.")
    return None


def _find_count_refusal(fn: BlockFunction, body: dict[str, Any], by_name: bool) -> Refusal | None:
    """Return why a body that gives its values in the fields' order is refused, or `None`.

    Scripts need not count what a session remembers.
    """
    data = body.get("data")
    takes = {len(fn.inputs)} | ({sum(not block.skip_api for block in fn.inputs)} if by_name else set())
    if fn.cancels or not isinstance(data, list) or len(data) in takes:
        return None
    names = [
        told or f"value {i + 1}" for i, told in enumerate(fn.input_parameter_names or [None] * len(fn.inputs))
    ]
    return Refusal(400, f"data: use {len(names)} values ({', '.join(names) or 'none'}), not {len(data):,}.")
