"""The event loop of clients that are written for asyncio: uvloop, the fastest there is."""

from collections.abc import Coroutine
from importlib import import_module
from typing import Any

from tailrace.bench.peer_job import Done


def run(work: Coroutine[Any, Any, Done]) -> Done:
    """Run it to its end."""
    uvloop: Any = import_module("uvloop")  # it is installed beside the clients, not here
    done: Done = uvloop.run(work)
    return done
