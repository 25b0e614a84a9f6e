"""`GET /health`: what a person or a machine that watches the studio wants to know; nothing of its visitors, no path."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.routing import Route

from core import cells, closing, limits, models, paths, room
from core.device import this_machine
from core.train import runs
from tabs.files import FILES


def route(page: gr.Blocks) -> Route:
    """For `launch(app_kwargs={"routes": [...]})`: it stands before Gradio's own, for which every address is a page."""
    return Route("/health", lambda _request: _answered(page), methods=["GET"])


def _answered(page: gr.Blocks) -> JSONResponse:
    found = state(page)
    return JSONResponse(found, status_code=503 if found["status"] == "closing" else 200, headers={"Cache-Control": "no-store"})


def state(page: gr.Blocks) -> dict[str, Any]:
    """How the studio stands."""
    alive = [folder for folder in runs.listed() if folder.is_owned()]
    waiting = sum(folder.waits() for folder in alive)
    free = min(room.free(folder) for folder in (FILES, cells.FOLDER, runs.RUNS))
    return {
        "status": "closing" if closing.asked() else "full disk" if free < limits.DISK_FLOOR else "ok",
        **built(),
        "model": models.loaded(),
        "machine": this_machine().line(),
        "queue": {"waiting": len(page._queue), "limit": limits.QUEUE},
        "runs": {"training": len(alive) - waiting, "waiting": waiting, "limit": limits.RUNS_WAITING},
        "disk": {"free": free, "floor": limits.DISK_FLOOR},
    }


@cache
def built() -> dict[str, str | None]:
    """The version, and the commit of a checkout."""
    version = tomllib.loads((paths.CODE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return {"version": version, "commit": _commit(paths.CODE / ".git")}


def _commit(git: Path) -> str | None:
    if not (git / "HEAD").is_file():
        return None
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    ref = head.removeprefix("ref: ")
    if (git / ref).is_file():
        return (git / ref).read_text(encoding="utf-8").strip()
    packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines() if (git / "packed-refs").is_file() else []
    return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
