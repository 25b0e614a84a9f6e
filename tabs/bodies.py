"""What a request may hold, before Gradio reads it: so many bytes and values, fields that exist. Whatever breaks behind that is one sentence."""

import json
import re
from typing import Any, NamedTuple

import gradio as gr
import httpx
from fastapi.exceptions import RequestValidationError
from gradio import routes
from gradio.block_function import BlockFunction
from gradio.route_utils import API_PREFIX
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import limits
from core.checks import shown
from core.journal import Call
from core.types import UserError
from tabs.watch import refused

routes.print = lambda *_: None  # type: ignore[attr-defined]  # by which Gradio says which file of a component was asked for: a visitor's words

ROUTE = re.compile(rf"{API_PREFIX}/(?:(call/v2|call|run|api)/([^/]+)|(queue/join|component_server))/?")
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
BRACKETS = re.compile(r"[\[\]{}]")


class Refusal(NamedTuple):
    """Why a request goes no further."""

    status: int
    sentence: str

    def answer(self) -> JSONResponse:
        """As the page's client and scripts read it: Gradio has its sentences under one of these names or the other."""
        return JSONResponse({"detail": self.sentence, "error": self.sentence}, self.status)


class Bodies:
    """Around Gradio: 413 for a body beyond its bound, 400 and 404 for what no endpoint takes, one sentence for what breaks."""

    def __init__(self, app: ASGIApp, page: gr.Blocks):
        self.app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif is_form(Headers(scope=scope)):  # the door lets those of an upload through, in parts
            await self._guarded(scope, receive, send)
        elif (body := await _read(scope, receive)) is None:
            await Refusal(413, f"body: it is too long; it takes up to {limits.BODY / 2**20:g} MB.").answer()(scope, receive, send)
        elif refusal := _look(self._page, scope["path"], body):
            call = Call(kind="request")
            call.refused(refusal.sentence)
            call.end()
            await refusal.answer()(scope, receive, send)
        else:
            await self._guarded(scope, _again(body, receive), send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A call that a handler refuses is no fault of the server; an error that nobody foresaw is in the journal, without its words."""
        begun = False
        refused.set(False)

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "status": 400} if message["status"] == 500 and refused.get() else message
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            refusal = _say(error)
            if begun:
                await send({"type": "http.response.body", "body": b""})
            else:
                await refusal.answer()(scope, receive, send)


def _say(error: Exception) -> Refusal:
    """An error that no route of Gradio's caught, in the journal and as a sentence."""
    call = Call(kind="request")
    if isinstance(error, httpx.InvalidURL):
        refusal = Refusal(400, "address: its host or its path is none that an address can have.")
        call.refused(refusal.sentence)
    elif isinstance(error.__cause__, HTTPException):  # what a stream that has begun says instead of a status
        refusal = Refusal(error.__cause__.status_code, "event: it is not there.")
        call.refused(refusal.sentence)
    else:
        refusal = Refusal(500, f"Something broke here (request {call.request}).")
        call.broke(error)
    call.end()
    return refusal


async def explain(_request: Request, error: Exception) -> JSONResponse:
    """For `FastAPI(exception_handlers=...)`: a body of the wrong form is one sentence, which repeats nothing of it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str)) or "body"
    call = Call(kind="request")
    why = "it is missing" if first["type"] == "missing" else f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    call.refused(sentence := f"{field[:40]}: {why}.")
    call.end()
    return Refusal(400, sentence).answer()


def is_form(headers: Headers) -> bool:
    """Whether files may come with it: Gradio writes those of any form to the disk before it looks at what they are for."""
    return headers.get("content-type", "").strip().lower().startswith("multipart/")


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; `None` where it is, or says that it is, longer than it may be: no more than that is kept."""
    if int(Headers(scope=scope).get("content-length") or 0) > limits.BODY:
        return None
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limits.BODY:
            return None
        if not message.get("more_body", False):
            break
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and after it whatever else comes."""
    left = [body]

    async def first() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return first


def _look(page: gr.Blocks, path: str, body: bytes) -> Refusal | None:
    """Why Gradio would not know what to do with it."""
    try:
        said = _parsed(body) if body else None
    except UserError as error:
        return Refusal(400, str(error))
    if not (match := ROUTE.fullmatch(path[path.find(API_PREFIX) :])) or not isinstance(said, dict):
        return None  # FastAPI looks at what kind of thing it is
    kind, name, other = match.groups()
    if other == "component_server":
        known = isinstance(said.get("component_id"), int) and said["component_id"] in page.blocks
        return None if known else Refusal(404, f"component_id: {shown(said.get('component_id'))} is unknown.")
    if kind == "call/v2":
        return _named(page, name, said)
    number = said.get("fn_index") if kind != "call" else None
    if number is not None and (type(number) is not int or number not in page.fns):
        return Refusal(404, f"fn_index: {shown(number)} is unknown.")
    if number is None and kind is None:
        return Refusal(400, "fn_index: it is missing.")
    fn = page.fns[number] if number is not None else next((fn for fn in page.fns.values() if fn.api_name == name), None)
    if fn is None:
        return _unknown(page, name)
    if kind in ("run", "api") and fn.queue:
        return None  # Gradio says that it takes no direct request
    return _counted(fn, said, by_name=kind == "call")


def _parsed(body: bytes) -> Any:
    """JSON of a bounded shape: what it becomes in memory takes many times its bytes. Raises `UserError`."""
    try:
        text = body.decode("utf-8")
        bare = STRING.sub("", text)
        if sum(bare.count(sign) for sign in ",[]{}") > limits.BODY_VALUES:
            raise UserError(f"body: it holds too many values; it takes up to {limits.BODY_VALUES:,}.")
        depth = deepest = 0
        for bracket in BRACKETS.finditer(bare):
            depth += 1 if bracket[0] in "[{" else -1
            deepest = max(deepest, depth)
        if deepest > limits.BODY_DEPTH:
            raise UserError(f"body: it is nested too deeply; it takes up to {limits.BODY_DEPTH} lists and tables inside of each other.")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError("body: it is not JSON in UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"body: it is not JSON: {error.msg} at character {error.pos:,}.") from error
    except ValueError as error:
        raise UserError("body: it holds a number of too many digits.") from error


def _unknown(page: gr.Blocks, name: str) -> Refusal:
    known = ", ".join(sorted(str(fn.api_name) for fn in page.fns.values() if fn.api_visibility == "public"))
    return Refusal(404, f"endpoint: {shown(name)} is unknown; the endpoints are {known}.")


def _named(page: gr.Blocks, name: str, said: dict[str, Any]) -> Refusal | None:
    """What is said by fields' names."""
    takes = page.get_api_info()["named_endpoints"].get(f"/{name}")
    if takes is None:
        return _unknown(page, name)
    fields = {told["parameter_name"]: told.get("parameter_has_default", False) for told in takes["parameters"]}
    if unknown := [key for key in said if key not in fields and key != "oauth_token"]:
        return Refusal(400, f"{name}: {shown(unknown[0])} is not a field; the fields are {', '.join(fields)}.")
    if missing := [key for key, has_default in fields.items() if key not in said and not has_default]:
        return Refusal(400, f"{missing[0]}: it is missing.")
    return None


def _counted(fn: BlockFunction, said: dict[str, Any], by_name: bool) -> Refusal | None:
    """What is said in the fields' order; scripts need not count what a session remembers."""
    data = said.get("data")
    takes = {len(fn.inputs)} | ({sum(not block.skip_api for block in fn.inputs)} if by_name else set())
    if fn.cancels or not isinstance(data, list) or len(data) in takes:
        return None
    names = [told or f"value {i + 1}" for i, told in enumerate(fn.input_parameter_names or [None] * len(fn.inputs))]
    return Refusal(400, f"data: it takes {len(names)} values ({', '.join(names) or 'none'}), not {len(data):,}.")
