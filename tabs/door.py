"""What is refused before Gradio sees it: what another site's page sends, and an upload for which the disk has no room.

A login is a cookie that a browser sends along with whatever any page asks for, and Gradio lets any page ask.
"""

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import room
from core.types import UserError
from tabs.files import FILES

FOREIGN = "origin: a page of another site sent this; the studio answers its own page, and programs."
NO_FORM = "form: files are brought by /gradio_api/upload alone."
STEP = 2**20
"""Bytes of an upload between two looks at the disk."""


class Door:
    """Around the app: 403 for what another site's page sends, 507 where an upload would bring the disk below its floor."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_foreign(scope["method"], Headers(scope=scope)):
            await PlainTextResponse(FOREIGN, 403)(scope, receive, send)
        elif scope["type"] == "http" and _is_form(Headers(scope=scope)):
            if scope["path"].endswith("/upload"):
                await self._upload(scope, receive, send)
            else:
                await PlainTextResponse(NO_FORM, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            room.check(FILES)
        except UserError as error:
            await PlainTextResponse(str(error), 507)(scope, receive, send)
            return
        arrived, full = 0, False

        async def bounded() -> Message:
            nonlocal arrived, full
            message = await receive()
            before, arrived = arrived, arrived + len(message.get("body", b""))
            if before // STEP != arrived // STEP:
                try:
                    room.check(FILES)
                except UserError as error:
                    full = True
                    raise MultiPartException(str(error)) from error  # for which Gradio takes away what it has written
            return message

        async def said(message: Message) -> None:
            await send({**message, "status": 507} if full and message["type"] == "http.response.start" else message)

        await self.app(scope, bounded, said)


def _is_form(headers: Headers) -> bool:
    """Whether files may come with it: Gradio writes those of any form to the disk before it looks at what they are for."""
    return headers.get("content-type", "").strip().lower().startswith("multipart/")


def _is_foreign(method: str, headers: Headers) -> bool:
    """Whether a page of another origin sent it. Following a link is nobody's page; a program says none of this.

    What a browser says of the site no page can change, and no proxy; an older one, or one without https, says the origin alone.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none"):
        return False
    if site and not (method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"):
        return True
    return origin is not None and origin.partition("://")[2] != headers.get("host")
