"""A Hub on this machine that answers from a function and keeps the requests it gets."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"

RequestLog = list[tuple[str, dict[str, str]]]
"""Path and headers of each request."""


@contextmanager
def serve_hub_stub(answer: Callable[[str], bytes | None]) -> Iterator[tuple[str, RequestLog]]:
    """Yield the Hub's address and the requests that it gets.

    A path for which `answer` returns None is a repository that does not exist.
    """
    asked: RequestLog = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append((path, {key.lower(): value for key, value in self.headers.items()}))
            body = answer(path)
            told = (
                {"ETag": f'"{path}"', "X-Repo-Commit": COMMIT}
                if body is not None
                else {"X-Error-Code": "RepoNotFound"}
            )
            self.send_response(404 if body is None else 200)
            for key, value in {
                "Content-Length": str(len(body or b"")),
                "Content-Type": "application/json",
                **told,
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET" and body:
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
