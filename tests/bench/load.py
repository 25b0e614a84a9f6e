"""Measure many visitors at once, and long days: `python tests/bench/load.py`, `--jobs 500` to soak.

Runs the real app in a process of its own. 50 clients with 5 jobs each in turn make pictures,
pictures with a LoRA, uploads that are inspected and read, tags, small sweeps and trainings; beside
them are 10 readers that take a byte a second and a crowd larger than the queue. Every job has a
seed and words of its own, and its answer is checked against them. Prints the requests that held,
the refusals by sentence, errors, p50 and p95 by kind, memory of the app after a warm-up and at the
end, and files before and after `core.runtime.cleanup` with all of them old.
"""

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from huggingface_hub import constants  # noqa: E402

from core.runtime import cleanup  # noqa: E402
from core.schema import limits  # noqa: E402
from core.sweep import cell_cache  # noqa: E402
from core.train import runs  # noqa: E402
from tests.bench.report import save_report  # noqa: E402
from tests.server import Server  # noqa: E402
from tests.trust.crowd import (  # noqa: E402
    JOB_KINDS,
    KIND_COUNT,
    NANO_SIZE,
    Size,
    Tally,
    connect_slow_readers,
    overfill_queue,
    run_job,
)

CLIENT_COUNT, JOBS_PER_CLIENT, SLOW_READERS = 50, 5, 10
MAX_GROWTH = 0.05
"""The share by which the app's memory may grow after a warm-up."""


def measure_memory(server: Server) -> int:
    """Return the bytes that the app has in memory, once it has nothing more to do."""
    while server.read_health()["queue"]["waiting"]:
        time.sleep(0.2)
    time.sleep(1)
    return (
        int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())[0])
        * 1024
    )


def wait_for_runs(server: Server) -> None:
    """Wait for all runs."""
    while any(server.read_health()["runs"][state] for state in ("training", "waiting")):
        time.sleep(0.5)


def count_files(folder: Path) -> dict[str, int]:
    """Return the number of files below the app's folders, and their bytes."""
    files = [
        file for name in ("files", "cells", "runs") for file in (folder / name).rglob("*") if file.is_file()
    ]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def count_after_cleanup(folder: Path) -> dict[str, int]:
    """Count the files that are left after a cleanup a hundred days later, as on a hosted Space.

    `cell_cache.FOLDER`, `runs.RUNS` and the Hub's cache must be the app's.
    """
    then = time.time() - 100 * limits.DAY
    for each in (*folder.rglob("*"), folder):
        os.utime(each, (then, then), follow_symlinks=False)
    cleanup.remove_expired(folder / "files")
    return count_files(folder)


def number_warmup_jobs(many: int) -> range:
    """Return the numbers of the jobs that come before all others, every kind among them."""
    first = 10**5 * len(JOB_KINDS)
    return range(first, first + many)


def run_load(server: Server, clients: int, jobs: int, slow: int, size: Size) -> dict[str, Any]:
    """Run all clients at once."""
    url, tally, warm = server.wait_for_url() + "/", Tally(), Tally()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda number: run_job(url, number, size, warm), number_warmup_jobs(2 * KIND_COUNT)))
        wait_for_runs(server)
        before = measure_memory(server)

        def run_client(which: int) -> None:
            for job in range(jobs):
                run_job(url, which * jobs + job, size, tally)

        with connect_slow_readers(url, slow):
            under_way = [pool.submit(run_client, which) for which in range(clients)]
            door = overfill_queue(url, 2 * limits.QUEUE_LENGTH)
            for each in under_way:
                each.result()
    wait_for_runs(server)
    return {
        "clients": clients,
        "jobs": clients * jobs,
        "slow_readers": slow,
        **tally.summarize(),
        "crowd": dict(door),
        **measure_growth(server, before),
    }


def run_soak(server: Server, jobs: int, size: Size) -> dict[str, Any]:
    """Run one job after another, and in pairs."""
    url, tally, warm, course = server.wait_for_url() + "/", Tally(), Tally(), []
    for number in number_warmup_jobs(2 * KIND_COUNT):
        run_job(url, number, size, warm)
    wait_for_runs(server)
    before = measure_memory(server)
    for i, first in enumerate(range(0, jobs, 25)):
        with ThreadPoolExecutor(1 + i % 2) as pool:
            list(
                pool.map(
                    lambda number: run_job(url, number, size, tally), range(first, min(first + 25, jobs))
                )
            )
        course.append(round(measure_memory(server) / 1e6, 1))
    wait_for_runs(server)
    return {"jobs": jobs, **tally.summarize(), "memory_mb": course, **measure_growth(server, before)}


def measure_growth(server: Server, before: int) -> dict[str, Any]:
    after = measure_memory(server)
    told = {
        "warm_mb": round(before / 1e6, 1),
        "end_mb": round(after / 1e6, 1),
        "growth": round(after / before - 1, 4),
    }
    return {"memory": told, "lying": count_files(server.folder)}


def main() -> None:
    many = int(sys.argv[2]) if sys.argv[1:2] == ["--jobs"] else None
    with TemporaryDirectory(prefix="sweetspot-load-") as at:
        server = Server(Path(at))
        cell_cache.FOLDER, runs.RUNS, constants.HF_HUB_CACHE = (
            server.folder / "cells",
            server.folder / "runs",
            str(server.folder / "hub"),
        )
        begin, loaded = time.monotonic(), os.getloadavg()
        try:
            found = (
                run_soak(server, many, NANO_SIZE)
                if many
                else run_load(server, CLIENT_COUNT, JOBS_PER_CLIENT, SLOW_READERS, NANO_SIZE)
            )
            alive = server.process.poll() is None
        finally:
            server.stop()
        os.environ["SPACE_ID"] = "somebody/studio"  # the ages of a hosted Space: at home runs stay
        found |= {"swept": count_after_cleanup(server.folder), "took": round(time.monotonic() - begin)}
    average = [round(each, 1) for each in loaded]
    save_report("soak" if many else "load", {"load_average": average, **found})
    if not alive or found["errors"] or found["cross_talk"] or found["memory"]["growth"] >= MAX_GROWTH:
        sys.exit("The bar was missed.")


if __name__ == "__main__":
    main()
