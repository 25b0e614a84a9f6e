"""Case 28: no Hub, no GPU, no token, no authlib and read-only site-packages.

The app starts, says what is missing, and every tab is there.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

import app
from core.system.markdown import format_warning
from tests.server import Server

TABS = {
    "Generate": "#generate",
    "Sweep": "#sweep",
    "Train": "#train",
    "Transfer": "#transfer",
    "Publish": "#publish-preview",
}
SITE_PACKAGES = Path(gr.__file__).parent.parent
READ_ONLY_COMMAND = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/probe" 2>/dev/null && exec "$@"',
    str(SITE_PACKAGES),
]
"""Runs the command that follows with read-only site-packages; other processes see no change."""


def build_read_only_prefix() -> list[str]:
    """Return `READ_ONLY_COMMAND`, or an empty list where this machine allows no mount."""
    allowed = (
        shutil.which("unshare")
        and subprocess.run([*READ_ONLY_COMMAND, "true"], capture_output=True).returncode == 0
    )
    return READ_ONLY_COMMAND if allowed else []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(
        tmp_path_factory.mktemp("offline"), command_prefix=build_read_only_prefix(), hidden_packages="authlib"
    )
    yield started
    started.stop()


def test_case_28_it_starts_and_says_what_is_missing_and_why(server: Server) -> None:
    health = server.read_health()
    assert (health["status"], health["model"]) == ("ok", "nano")
    assert health["queue"] == {"waiting": 0, "limit": 32}
    assert health["runs"] == {"training": 0, "waiting": 0, "limit": 8}
    assert health["disk"]["free"] > health["disk"]["floor"] > 0
    assert health["machine"].startswith("Running on: CPU")
    assert str(server.folder) not in str(health), "a path"
    start = server.read_log()[0]
    assert start["kind"] == "start"
    said = " ".join(start["missing"])
    for part in (
        "No GPU found",
        "Offline mode is on (HF_HUB_OFFLINE)",
        "Not logged in to Hugging Face",
        "Not downloaded yet: ",
        "sdxl-base",
        "WD ViT v3",
    ):
        assert part in said
    assert "wrong" not in start


@pytest.mark.parametrize("width", [1280, 390])
def test_case_28_every_tab_renders(server: Server, chromium, screenshots: Path, width: int) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.wait_for_url())
    page.locator("#lacks").get_by_text("Offline mode is on").wait_for()
    for tab, landmark in TABS.items():
        choice = page.get_by_role("tab", name=tab)
        if choice.is_visible():
            choice.click()
        else:  # on a phone the last tabs are behind a button
            page.locator(".overflow-menu button").first.click()
            page.locator(".overflow-dropdown button", has_text=tab).click()
        page.locator(landmark).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (
            f"{tab} is wider than the window"
        )
        assert page.locator(".toast-body.error").count() == 0, f"{tab} shows an error"
        page.screenshot(path=screenshots / f"offline-{tab.lower()}-{width}.png", full_page=True)
    page.locator("#limits button").click()
    page.locator("#limits").get_by_role("cell", name="32", exact=True).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not complaints
    context.close()


def test_case_28_asked_to_close_it_ends_well(server: Server) -> None:
    server.wait_for_url()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_for_exit() == 0
    assert server.read_log()[-1]["kind"] == "closed"
    assert "Traceback" not in server.err.read_text()


def test_case_28_a_package_that_is_missing_is_a_sentence(tmp_path: Path) -> None:
    """The app ends with a sentence when torchvision is missing, instead of failing later.

    Without it neither spandrel nor diffusers' pipelines import, so no picture could be made.
    """
    server = Server(tmp_path, hidden_packages="torchvision")
    assert server.wait_for_exit() == 1
    assert (
        server.err.read_text() == "Sweetspot cannot start: torchvision is not installed. "
        "`pip install -r requirements.txt` installs what is needed.\n"
    )


def test_case_28_on_a_space_without_authlib_publish_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "authlib", None)
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    page = app.build_page()
    said = [block.value for block in page.blocks.values() if isinstance(block, gr.Markdown)]
    assert (
        format_warning(
            "No login: authlib is not installed (`gradio[oauth]`), so nothing can be published from here."
        )
        in said
    )
    assert not page.expects_oauth, "Gradio would end the start"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_case_28_site_packages_were_read_only() -> None:
    if not build_read_only_prefix():
        pytest.skip("this machine lets nobody mount")
    probe = subprocess.run(
        [*READ_ONLY_COMMAND, "touch", str(SITE_PACKAGES / "probe")], capture_output=True, text=True
    )
    assert "Read-only" in probe.stderr
