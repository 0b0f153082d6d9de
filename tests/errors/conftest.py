"""A real broker for the tests of a file; those that break it make one of their own."""

import os
from collections.abc import Iterator

import pytest

from tailrace.testing import Broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@pytest.fixture
def topic(broker: Broker) -> str:
    """A topic of one partition that no other test uses."""
    name = broker.name("orders")
    broker.create_topic(name, 1)
    return name


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TAILRACE")]:
        monkeypatch.delenv(name)
