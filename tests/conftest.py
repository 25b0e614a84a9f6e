"""What several tests need: the embedded model, the running app, a browser."""

import atexit
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="sweetspot-tests-")
os.environ["SWEETSPOT_CELLS"] = tempfile.mkdtemp(prefix="sweetspot-tests-")
os.environ["SWEETSPOT_RUNS"] = tempfile.mkdtemp(prefix="sweetspot-tests-")
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="sweetspot-tests-")  # a Space sweeps it
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

if ON_ZERO := os.environ.get("SWEETSPOT_ZERO") == "1":
    # Before `core.gpu` decorates anything. A team of threads that was started before a fork is not there behind it.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("SPACES_ZERO_GPU", None)  # xdist hands it on, and `spaces` would want a card
    from tests import zero

    zero.switched_on()
    os.environ["SPACES_ZERO_GPU"] = "true"

# One team of threads computes, the app's own: a second one, of the tests' thread, would slow both down (see core/gpu.py).
from core import gpu, models, presets  # isort: skip
import torch  # isort: skip
from gradio_client import Client  # isort: skip

for place in ("GRADIO_TEMP_DIR", "SWEETSPOT_CELLS", "SWEETSPOT_RUNS", "HF_HUB_CACHE"):
    atexit.register(shutil.rmtree, os.environ[place], ignore_errors=True)

gpu.lane(lambda: torch.ones(256, 256) @ torch.ones(256, 256))
torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    """On ZeroGPU: what goes through the app finds a page's process and workers that are kept; a test of its own calls is a visitor, and has the weights."""
    if not ON_ZERO:
        return (yield)
    scheduler = zero.LENDERS[0]
    scheduler.easy()
    zero.visit()
    if "studio" in item.fixturenames:
        return (yield)
    packed = zero.is_packed()
    zero.unpack()
    scheduler.retire()
    try:
        return (yield)
    finally:
        scheduler.retire()
        if packed:
            zero.pack()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of six steps, for what does not look at what is in the pictures."""
    quick = {name: replace(recipe, steps=6) for name, recipe in presets.recipes().items()}
    monkeypatch.setattr(presets, "recipes", lambda: quick)


@pytest.fixture(scope="module")
def switched() -> Iterator[Any]:
    """The scheduler: the whole suite's, or one for these tests, which then decorate the door's functions anew."""
    from tests import zero

    if ON_ZERO:
        yield zero.LENDERS[0]
        return
    import spaces
    from spaces.config import Config

    models.load("nano")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "zero_gpu", False)
        lender = zero.switched_on(launch=False)
        patch.setenv("SPACES_ZERO_GPU", "true")
        patch.setattr(gpu, "_run", spaces.GPU(duration=gpu.duration)(gpu._run))
        patch.setattr(gpu, "_lesson", spaces.GPU(duration=gpu.slice_duration)(gpu._lesson))
        yield lender


@pytest.fixture
def lender(switched: Any) -> Iterator[Any]:
    """A visitor, and no worker yet."""
    from gradio.context import LocalContext

    from tests import zero

    switched.easy()
    switched.asked.clear()
    switched.retire()
    visitor = LocalContext.request.set(zero.VISITOR)  # type: ignore[arg-type]
    yield switched
    LocalContext.request.reset(visitor)
    switched.retire()


@pytest.fixture(scope="session")
def studio() -> Iterator[str]:
    """The address of the app, running in this process."""
    import app

    page = app.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", app_kwargs=app.beside(page), **app.LAUNCH)
    yield url
    page.close()
    shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def client(studio: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """The app as a script uses it."""
    return Client(studio, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """Debian's Chromium under playwright; without one a skip, in CI a failure."""
    binary = shutil.which("chromium")
    if binary is None:
        message = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=quiet)
        yield browser
        browser.close()
        for worker in multiprocessing.active_children():  # those of ZeroGPU have the driver's pipe open, too, and the driver waits for its end
            worker.kill()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where browser tests leave what they saw."""
    folder = Path(__file__).parent.parent / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
