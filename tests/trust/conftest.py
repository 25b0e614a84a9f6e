"""What the tests of trust share."""

import pytest

from tests.trust.raw import Raw


@pytest.fixture(scope="session")
def raw(studio: str) -> Raw:
    """The running app, by plain HTTP."""
    return Raw(studio)
