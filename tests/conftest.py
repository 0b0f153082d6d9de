"""How the tests share a machine when several processes run them (``make test``: pytest-xdist).

Long tests come first, so that no process is left with one at the end. A test marked ``alone``
measures the machine, in seconds say: no other test of the run is under way then.

Every property is tried with ``HYPOTHESIS_EXAMPLES`` examples (200; a night has 20,000).
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile(
    "tailrace", max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "200")), deadline=None
)
settings.load_profile("tailrace")

LOCKS = pytest.StashKey[Path]()  # a folder that the processes of a run share; only there if many


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the process that leads the others, for each of them."""
    if LOCKS not in node.config.stash:
        node.config.stash[LOCKS] = Path(tempfile.mkdtemp(prefix="tailrace-tests-"))
    node.workerinput["locks"] = str(node.config.stash[LOCKS])


def pytest_configure(config: pytest.Config) -> None:
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    if told is not None:
        config.stash[LOCKS] = Path(told["locks"])


def pytest_unconfigure(config: pytest.Config) -> None:
    if LOCKS in config.stash and not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[LOCKS])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort stably: tests of a module share what its fixtures make."""
    if LOCKS in config.stash:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait until it may run. Whoever waits to be alone lets nobody pass."""
    if LOCKS not in item.config.stash:
        return (yield)
    folder = item.config.stash[LOCKS]
    alone = item.get_closest_marker("alone") is not None
    with (folder / "running").open("a") as running:  # closing it ends the lock
        with (folder / "gate").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
