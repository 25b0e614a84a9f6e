"""Many visitors at once, and long days: `python tests/bench/load.py`, and `--jobs 500` for the soak.

The real app in a process of its own. 50 clients with 5 jobs each in turn: pictures, pictures with a LoRA, uploads that are inspected
and read, tags, small sweeps, trainings; beside them 10 readers that take a byte a second and a crowd larger than the queue.
Every job has a seed and words of its own, and what comes back is held against them. Printed: requests held, refused (by sentence), errors,
p50 and p95 by kind, memory of the app after a warm-up and at the end, files before and after `core.sweeper` with all of them old.
"""

import json
import os
import platform
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from huggingface_hub import constants  # noqa: E402

from core import cells, limits, sweeper  # noqa: E402
from core.train import runs  # noqa: E402
from tests.server import Server  # noqa: E402
from tests.trust.crowd import EACH, KINDS, NANO, Size, Tally, crowd, slow_readers, work  # noqa: E402

CLIENTS, JOBS, SLOW = 50, 5, 10
BOUND = 0.05
"""What the app's memory may grow by after a warm-up."""


def memory(server: Server) -> int:
    """Bytes that the app has in memory, once nothing is under way any more."""
    while server.health()["queue"]["waiting"]:
        time.sleep(0.2)
    time.sleep(1)
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())[0]) * 1024


def trained(server: Server) -> None:
    """Wait for all runs."""
    while any(server.health()["runs"][state] for state in ("training", "waiting")):
        time.sleep(0.5)


def lying(folder: Path) -> dict[str, int]:
    """Files below the app's folders, and their bytes."""
    files = [file for name in ("files", "cells", "runs") for file in (folder / name).rglob("*") if file.is_file()]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def swept(folder: Path) -> dict[str, int]:
    """The same after the sweeper came by a hundred days later, as on a hosted Space; `cells.FOLDER`, `runs.RUNS` and the Hub's cache are the app's."""
    then = time.time() - 100 * limits.DAY
    for each in (*folder.rglob("*"), folder):
        os.utime(each, (then, then), follow_symlinks=False)
    sweeper.sweep(folder / "files")
    return lying(folder)


def warming(many: int) -> range:
    """Numbers of jobs that come before all others, every kind among them."""
    first = 10**5 * len(KINDS)
    return range(first, first + many)


def load(server: Server, clients: int, jobs: int, slow: int, size: Size) -> dict[str, Any]:
    """Everybody at once."""
    url, tally, warm = server.url() + "/", Tally(), Tally()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda number: work(url, number, size, warm), warming(2 * EACH)))
        trained(server)
        before = memory(server)

        def client(which: int) -> None:
            for job in range(jobs):
                work(url, which * jobs + job, size, tally)

        with slow_readers(url, slow):
            under_way = [pool.submit(client, which) for which in range(clients)]
            door = crowd(url, 2 * limits.QUEUE)
            for each in under_way:
                each.result()
    trained(server)
    return {"clients": clients, "jobs": clients * jobs, "slow_readers": slow, **tally.told(), "crowd": dict(door), **grown(server, before)}


def soak(server: Server, jobs: int, size: Size) -> dict[str, Any]:
    """One job after another, and in pairs."""
    url, tally, warm, course = server.url() + "/", Tally(), Tally(), []
    for number in warming(2 * EACH):
        work(url, number, size, warm)
    trained(server)
    before = memory(server)
    for i, first in enumerate(range(0, jobs, 25)):
        with ThreadPoolExecutor(1 + i % 2) as pool:
            list(pool.map(lambda number: work(url, number, size, tally), range(first, min(first + 25, jobs))))
        course.append(round(memory(server) / 1e6, 1))
    trained(server)
    return {"jobs": jobs, **tally.told(), "memory_mb": course, **grown(server, before)}


def grown(server: Server, before: int) -> dict[str, Any]:
    after = memory(server)
    told = {"warm_mb": round(before / 1e6, 1), "end_mb": round(after / 1e6, 1), "growth": round(after / before - 1, 4)}
    return {"memory": told, "lying": lying(server.folder)}


def main() -> None:
    many = int(sys.argv[2]) if sys.argv[1:2] == ["--jobs"] else None
    with TemporaryDirectory(prefix="sweetspot-load-") as at:
        server = Server(Path(at))
        cells.FOLDER, runs.RUNS, constants.HF_HUB_CACHE = server.folder / "cells", server.folder / "runs", str(server.folder / "hub")
        begin, loaded = time.monotonic(), os.getloadavg()
        try:
            found = soak(server, many, NANO) if many else load(server, CLIENTS, JOBS, SLOW, NANO)
            alive = server.process.poll() is None
        finally:
            server.end()
        os.environ["SPACE_ID"] = "somebody/studio"  # the ages of a hosted Space: at home runs stay
        found |= {"swept": swept(server.folder), "took": round(time.monotonic() - begin)}
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    report = {"date": date.today().isoformat(), "device": device, "load_average": [round(each, 1) for each in loaded], **found}
    print(json.dumps(report, indent=1))
    (ROOT / "tests" / "bench" / "results" / f"{'soak' if many else 'load'}.json").write_text(json.dumps(report, indent=1) + "\n")
    if not alive or report["errors"] or report["cross_talk"] or report["memory"]["growth"] >= BOUND:
        sys.exit("The bar was missed.")


if __name__ == "__main__":
    main()
