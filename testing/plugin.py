"""pytest fixtures: a real broker for each test.

``tailrace_broker`` is a broker of its own for each test, ``tailrace_broker_session`` one for the
whole session (with pytest-xdist: one per worker; take topic names from ``broker.name``),
``tailrace_cluster`` three brokers that replicate, or ``@pytest.mark.tailrace(brokers=5)`` of them.
With ``--tailrace-url URL`` the same tests run on that cluster; one that needs the broker's process
(faults, clock, kill, restart) is skipped, saying so.

Loaded by every pytest run on the machine: nothing is imported before a fixture is used.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tailrace.client.records import ConfigValue
    from tailrace.testing.broker import Broker
    from tailrace.testing.cluster import Cluster


class _AsInstalled:
    """Finds our modules as Python itself does, before pytest does.

    Pytest rewrites the assertions of every module in a package that has a plugin. The broker has
    hundreds of those and nothing to show for it, and the first test of a newcomer took seconds.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path, target) if name.startswith("tailrace.") else None


sys.meta_path.insert(0, _AsInstalled)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tailrace")
    group.addoption(
        "--tailrace-url",
        metavar="URL",
        default=None,
        help="run tests that use tailrace_broker on this cluster (tailrace://host:port)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "tailrace(brokers=3, config=None): how many brokers tailrace_cluster has, and settings of"
        " theirs",
    )


@pytest.fixture
def tailrace_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker for this test alone, its log in memory."""
    yield from _broker(request.config)


@pytest.fixture(scope="session")
def tailrace_broker_session(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """One broker for all tests of this process; use ``broker.name("orders")`` for topics."""
    yield from _broker(request.config)


@pytest.fixture
def tailrace_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Brokers that replicate to each other, for this test alone, their logs in memory."""
    url = request.config.getoption("--tailrace-url")
    if url is not None:
        from tailrace.testing.remote import RemoteCluster

        remote = RemoteCluster(url)
        try:
            yield remote
        finally:
            remote.stop()
        return
    with _uncollected():
        from tailrace.testing.cluster import Cluster
    _freeze_at_exit()
    brokers, config = _asked(request)
    with Cluster(brokers, config=config) as cluster:
        yield cluster


def _asked(request: pytest.FixtureRequest) -> tuple[int, dict[str, ConfigValue] | None]:
    """What the marker of a test says of its cluster."""
    node: pytest.Item = request.node
    marker = node.get_closest_marker("tailrace")
    options = {} if marker is None else dict(marker.kwargs)
    asked = options.pop("brokers", 3), options.pop("config", None)
    if options or (marker is not None and marker.args):
        raise pytest.UsageError(f"{node.nodeid}: tailrace() takes brokers= and config= only")
    return asked


def _freeze_at_exit() -> None:
    """Python's last collection takes 0.2 s to free what ends with the process anyway."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


@contextmanager
def _uncollected() -> Generator[None]:
    """Without garbage collection, which looks in vain through what is imported."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _broker(config: pytest.Config) -> Iterator[Broker]:
    url = config.getoption("--tailrace-url")
    if url is None:
        with _uncollected():
            from tailrace.testing.broker import Broker

        _freeze_at_exit()
        with Broker() as broker:
            yield broker
    else:
        from tailrace.testing.remote import RemoteBroker

        remote = RemoteBroker(url)
        try:
            yield remote
        finally:
            remote.stop()
