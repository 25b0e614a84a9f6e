"""`GET /health`: what a person or a machine that watches the app wants to know.

It says nothing of the visitors, and gives no path.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.routing import Route

from core.models import bases
from core.schema import limits
from core.sweep import cell_cache
from core.system import disk, paths, shutdown
from core.system.device import detect_machine
from core.train import runs
from tabs.server.page_files import FILES_FOLDER


def make_route(page: gr.Blocks) -> Route:
    """Return the route, for `launch(app_kwargs={"routes": [...]})`.

    It stands before Gradio's own routes, for which every address is a page.
    """
    return Route("/health", lambda _request: _respond(page), methods=["GET"])


def _respond(page: gr.Blocks) -> JSONResponse:
    found = collect_health(page)
    return JSONResponse(
        found, status_code=503 if found["status"] == "closing" else 200, headers={"Cache-Control": "no-store"}
    )


def collect_health(page: gr.Blocks) -> dict[str, Any]:
    """Return the state of the app: model, machine, queue, runs, and disk in bytes."""
    alive = [folder for folder in runs.list_all_runs() if folder.is_locked()]
    waiting = sum(folder.is_queued() for folder in alive)
    free = min(disk.get_free_bytes(folder) for folder in (FILES_FOLDER, cell_cache.FOLDER, runs.RUNS))
    return {
        "status": "closing"
        if shutdown.is_shutting_down()
        else "full disk"
        if free < limits.DISK_FLOOR
        else "ok",
        **get_version(),
        "model": bases.get_loaded_name(),
        "machine": detect_machine().describe(),
        "queue": {"waiting": len(page._queue), "limit": limits.QUEUE_LENGTH},
        "runs": {"training": len(alive) - waiting, "waiting": waiting, "limit": limits.RUNS_WAITING},
        "disk": {"free": free, "floor": limits.DISK_FLOOR},
    }


@cache
def get_version() -> dict[str, str | None]:
    """Return the version, and the commit of a checkout."""
    version = tomllib.loads((paths.CODE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return {"version": version, "commit": _read_commit(paths.CODE / ".git")}


def _read_commit(git: Path) -> str | None:
    if not (git / "HEAD").is_file():
        return None
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    ref = head.removeprefix("ref: ")
    if (git / ref).is_file():
        return (git / ref).read_text(encoding="utf-8").strip()
    packed = (
        (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        if (git / "packed-refs").is_file()
        else []
    )
    return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
