"""Refuse what another site's page sends, and uploads for which the disk has no room.

Both are refused before Gradio sees them. A login is a cookie that a browser sends along with
whatever any page asks for, and Gradio lets any page ask.
"""

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.schema import limits
from core.schema.errors import UserError
from core.system import disk
from tabs.server.gradio_internals import route_utils
from tabs.server.page_files import FILES_FOLDER
from tabs.server.request_bodies import is_form

FOREIGN_ORIGIN_MESSAGE = (
    "origin: a page of another site sent this; Sweetspot answers only its own page and programs."
)
NO_FORM_MESSAGE = "form: files can only be uploaded to /gradio_api/upload."
TOO_LARGE_MESSAGE = f"upload: it is too large; the limit at once is {limits.DATASET_BYTES / 2**30:g} GB."
UPLOAD_PATHS = ("/upload", f"{route_utils.API_PREFIX}/upload")
"""The paths of the one address that takes files.

Any other address that ends like it, such as that of a call named `upload`, keeps a form in memory.
"""
DISK_CHECK_BYTES = 2**20
"""Bytes of an upload between two checks of the disk."""


class UploadParser(route_utils.GradioMultiPartParser):
    """Parse the form of an upload, which has files called `files` and nothing else.

    Gradio keeps a field's text in memory, and a file of another name on the disk.
    """

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException("form: an upload may only contain files, each in a part called files.")


route_utils.GradioMultiPartParser = UploadParser


class OriginGuard:
    """Middleware around the app that refuses requests of other sites, and too large uploads.

    It answers 403 to what another site's page sends and to a form outside of uploads, 413 to an
    upload without end, and 507 where an upload would bring the disk below its floor.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_cross_origin(scope["method"], Headers(scope=scope)):
            await PlainTextResponse(FOREIGN_ORIGIN_MESSAGE, 403)(scope, receive, send)
        elif scope["type"] == "http" and is_form(Headers(scope=scope)):
            if scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") in UPLOAD_PATHS:
                await self._handle_upload(scope, receive, send)
            else:
                await PlainTextResponse(NO_FORM_MESSAGE, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _handle_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        if int(Headers(scope=scope).get("content-length") or 0) > limits.DATASET_BYTES + DISK_CHECK_BYTES:
            await PlainTextResponse(TOO_LARGE_MESSAGE, 413)(scope, receive, send)
            return
        try:
            disk.check_free_disk(FILES_FOLDER)
        except UserError as error:
            await PlainTextResponse(str(error), 507)(scope, receive, send)
            return
        arrived, status = 0, None

        async def receive_bounded() -> Message:
            nonlocal arrived, status
            message = await receive()
            before, arrived = arrived, arrived + len(message.get("body", b""))
            if arrived > limits.DATASET_BYTES + DISK_CHECK_BYTES:
                status = 413
                raise MultiPartException(TOO_LARGE_MESSAGE)  # Gradio then deletes what it wrote
            if before // DISK_CHECK_BYTES != arrived // DISK_CHECK_BYTES:
                try:
                    disk.check_free_disk(FILES_FOLDER)
                except UserError as error:
                    status = 507
                    raise MultiPartException(str(error)) from error
            return message

        async def send_with_status(message: Message) -> None:
            await send(
                {**message, "status": status}
                if status and message["type"] == "http.response.start"
                else message
            )

        await self.app(scope, receive_bounded, send_with_status)


def _is_cross_origin(method: str, headers: Headers) -> bool:
    """Whether a page of another origin sent the request.

    To follow a link is no request of a page, and a program sends none of these headers. No page and
    no proxy can change what a browser says of the site; an older browser, or one without https,
    sends the origin alone.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none"):
        return False
    if site and not (method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"):
        return True
    return origin is not None and origin.partition("://")[2] != headers.get("host")
