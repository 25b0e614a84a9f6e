"""What is refused before Gradio sees it: what another site's page sends, and an upload for which the disk has no room.

A login is a cookie that a browser sends along with whatever any page asks for, and Gradio lets any page ask.
"""

from gradio import route_utils
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import limits, room
from core.types import UserError
from tabs.bodies import is_form
from tabs.files import FILES

FOREIGN = "origin: a page of another site sent this; the studio answers its own page, and programs."
NO_FORM = "form: files are brought by /gradio_api/upload alone."
TOO_LARGE = f"upload: it is too large; at once it takes up to {limits.DATASET_BYTES / 2**30:g} GB."
UPLOADS = ("/upload", f"{route_utils.API_PREFIX}/upload")
"""The one address that takes files; another that ends so, such as that of a call by this name, keeps a form in memory."""
STEP = 2**20
"""Bytes of an upload between two looks at the disk."""


class Files(route_utils.GradioMultiPartParser):
    """An upload's form has files and nothing else: Gradio keeps a field's text in memory, and a file of another name on the disk."""

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException("form: an upload takes files alone, each in a part called files.")


route_utils.GradioMultiPartParser = Files


class Door:
    """Around the app: 403 for what another site's page sends, 413 for an upload without end, 507 where one would bring the disk below its floor."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_foreign(scope["method"], Headers(scope=scope)):
            await PlainTextResponse(FOREIGN, 403)(scope, receive, send)
        elif scope["type"] == "http" and is_form(Headers(scope=scope)):
            if scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") in UPLOADS:
                await self._upload(scope, receive, send)
            else:
                await PlainTextResponse(NO_FORM, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        if int(Headers(scope=scope).get("content-length") or 0) > limits.DATASET_BYTES + STEP:
            await PlainTextResponse(TOO_LARGE, 413)(scope, receive, send)
            return
        try:
            room.check(FILES)
        except UserError as error:
            await PlainTextResponse(str(error), 507)(scope, receive, send)
            return
        arrived, status = 0, None

        async def bounded() -> Message:
            nonlocal arrived, status
            message = await receive()
            before, arrived = arrived, arrived + len(message.get("body", b""))
            if arrived > limits.DATASET_BYTES + STEP:
                status = 413
                raise MultiPartException(TOO_LARGE)  # for which Gradio takes away what it has written
            if before // STEP != arrived // STEP:
                try:
                    room.check(FILES)
                except UserError as error:
                    status = 507
                    raise MultiPartException(str(error)) from error
            return message

        async def said(message: Message) -> None:
            await send({**message, "status": status} if status and message["type"] == "http.response.start" else message)

        await self.app(scope, bounded, said)


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
