"""What the trust tests share."""

import pytest

from tests.trust.raw import RawClient


@pytest.fixture(scope="session")
def raw(studio: str) -> RawClient:
    """Return a client that speaks plain HTTP to the running app."""
    return RawClient(studio)
