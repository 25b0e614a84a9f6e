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
os.environ["SWEETSPOT_MEASURED"] = tempfile.mkdtemp(prefix="sweetspot-tests-")
os.environ["SWEETSPOT_OUTPUTS"] = tempfile.mkdtemp(prefix="sweetspot-tests-")
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="sweetspot-tests-")  # a Space sweeps it
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

if ON_ZERO := os.environ.get("SWEETSPOT_ZERO") == "1":
    # Before `core.runtime.gpu` decorates anything. Threads started before a fork are gone after it.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("SPACES_ZERO_GPU", None)  # xdist hands it on, and `spaces` would want a card
    from tests import zero

    zero.enable_zero_gpu()
    os.environ["SPACES_ZERO_GPU"] = "true"

# One team of threads computes, the app's own: a second one, of the tests' thread, would slow both
# down (see core/runtime/torch_thread.py).
from core.runtime import gpu, torch_thread  # isort: skip
from core.models import bases  # isort: skip
from core.schema import presets  # isort: skip
import torch  # isort: skip
from gradio_client import Client  # isort: skip

pytest_plugins = ["tests.hub.fixtures", "tests.models.library"]

for place in (
    "GRADIO_TEMP_DIR",
    "SWEETSPOT_CELLS",
    "SWEETSPOT_RUNS",
    "SWEETSPOT_MEASURED",
    "SWEETSPOT_OUTPUTS",
    "HF_HUB_CACHE",
):
    atexit.register(shutil.rmtree, os.environ[place], ignore_errors=True)

torch_thread.run_on_torch_thread(lambda: torch.ones(256, 256) @ torch.ones(256, 256))
torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    """Choose the process of each test on ZeroGPU.

    A test that goes through the app finds a page's process without weights, and workers that are
    kept. A test with calls of its own is a visitor, and has the weights.
    """
    if not ON_ZERO:
        return (yield)
    scheduler = zero.SCHEDULERS[0]
    scheduler.reset_limits()
    zero.act_as_visitor()
    if "studio" in item.fixturenames:
        return (yield)
    packed = zero.is_packed()
    zero.unpack_weights()
    scheduler.retire_workers()
    try:
        return (yield)
    finally:
        scheduler.retire_workers()
        if packed:
            zero.pack_weights()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of six steps, for tests that do not look at what is in the pictures."""
    quick = {name: replace(recipe, steps=6) for name, recipe in presets.get_prompt_presets().items()}
    monkeypatch.setattr(presets, "get_prompt_presets", lambda: quick)


@pytest.fixture(scope="module")
def zero_scheduler() -> Iterator[Any]:
    """The scheduler: the whole suite's, or one for this module.

    One for this module decorates the functions of `core.runtime.gpu` that ask for a GPU again.
    """
    from tests import zero

    if ON_ZERO:
        yield zero.SCHEDULERS[0]
        return
    import spaces
    from spaces.config import Config

    bases.load_model("nano")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "zero_gpu", False)
        lender = zero.enable_zero_gpu(launch=False)
        patch.setenv("SPACES_ZERO_GPU", "true")
        patch.setattr(
            gpu,
            "_generate_on_lent_gpu",
            spaces.GPU(duration=gpu.estimate_duration)(gpu._generate_on_lent_gpu),
        )
        patch.setattr(
            gpu,
            "_train_on_lent_gpu",
            spaces.GPU(duration=gpu.estimate_slice_duration)(gpu._train_on_lent_gpu),
        )
        yield lender


@pytest.fixture
def zero_gpu(zero_scheduler: Any) -> Iterator[Any]:
    """The scheduler with a visitor's request and no worker yet."""
    from gradio.context import LocalContext

    from tests import zero

    zero_scheduler.reset_limits()
    zero_scheduler.requested_seconds.clear()
    zero_scheduler.retire_workers()
    visitor = LocalContext.request.set(zero.VISITOR_REQUEST)  # type: ignore[arg-type]
    yield zero_scheduler
    LocalContext.request.reset(visitor)
    zero_scheduler.retire_workers()


@pytest.fixture(scope="session")
def studio() -> Iterator[str]:
    """The address of the app, running in this process."""
    import app

    page = app.build_page()
    _, url, _ = page.launch(
        prevent_thread_lock=True,
        quiet=True,
        server_name="127.0.0.1",
        app_kwargs=app.make_app_kwargs(page),
        **app.LAUNCH_OPTIONS,
    )
    yield url
    page.close()
    shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def client(studio: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of the app, as a script uses it."""
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
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # as long as every other wait; beside other tests all is slow

    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=quiet)
        yield browser
        browser.close()
        # Those of ZeroGPU hold the driver's pipe open, too, and the driver waits for its end.
        for worker in multiprocessing.active_children():
            worker.kill()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """The folder where browser tests save what they saw."""
    folder = Path(__file__).parent.parent / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
