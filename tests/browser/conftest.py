"""The page as a person opens it, in Chromium."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def page(studio: str, chromium: Any) -> Iterator[Any]:
    """The page on a desktop screen, with its first tab open; the tests of another tab go on from here."""
    context = chromium.new_context(viewport={"width": 1280, "height": 960})
    page = context.new_page()
    page.goto(studio)
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    yield page
    context.close()
