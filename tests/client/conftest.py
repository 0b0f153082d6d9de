"""Fixtures of the client's tests: both event loops, and a broker in memory shared by a file."""

from collections.abc import Iterator

import pytest

from tailrace.testing import Broker


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    """Which event loop the body runs on."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A real broker; tests that break it make one of their own."""
    with Broker() as running:
        yield running
