"""A Hub on this machine that answers from a function: what is asked of it is kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Asked = list[tuple[str, dict[str, str]]]
"""Paths and headers."""


@contextmanager
def hub(answer: Callable[[str], bytes | None]) -> Iterator[tuple[str, Asked]]:
    """Its address and the requests that it gets; a path that `answer` has nothing for is a repository that is not there."""
    asked: Asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append((path, {key.lower(): value for key, value in self.headers.items()}))
            body = answer(path)
            told = {"ETag": f'"{path}"', "X-Repo-Commit": COMMIT} if body is not None else {"X-Error-Code": "RepoNotFound"}
            self.send_response(404 if body is None else 200)
            for key, value in {"Content-Length": str(len(body or b"")), "Content-Type": "application/json", **told}.items():
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
