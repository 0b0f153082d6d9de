"""``tailrace`` as a process, with faults planted.

Run it as ``python -m tests.broker.planted [FAULT=SECONDS]… -- ARGUMENTS``:

- ``sync``: a sync of files takes so much longer, as long as there is a file ``./slow``;
- ``start``: opening the logs takes so much longer, and is logged as ``planted.start``;
- ``skew``: the wall clock is so far ahead;
- and always: SIGUSR2 blocks the event loop, for good.
"""

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.keeper import Keeper
from tailrace.broker.system import SystemClock
from tailrace.cli import main
from tailrace.storage.disk import File, OsDisk

log = logging.getLogger("tailrace.planted")


def plant_sync(seconds: float) -> None:
    sync = OsDisk.sync

    def slow(self: OsDisk, files: Sequence[File]) -> None:
        if Path("slow").exists():
            time.sleep(seconds)
        sync(self, files)

    OsDisk.sync = slow  # type: ignore[method-assign]


def plant_start(seconds: float) -> None:
    begin = Keeper.start

    async def slow(self: Keeper, view: ClusterView, *, clean: bool, suspect: bool) -> None:
        log.info("opening the logs takes its time", extra={"event": "planted.start"})
        await trio.to_thread.run_sync(time.sleep, seconds)  # nor can it be cancelled
        await begin(self, view, clean=clean, suspect=suspect)

    Keeper.start = slow  # type: ignore[method-assign]


def plant_skew(seconds: float) -> None:
    wall_ms = SystemClock.wall_ms
    ahead_ms = round(seconds * 1000)
    SystemClock.wall_ms = lambda self: wall_ms(self) + ahead_ms  # type: ignore[method-assign]


def block(*_: Any) -> None:
    """In the main thread, which is the event loop's."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(3600)


FAULTS: dict[str, Callable[[float], None]] = {
    "sync": plant_sync,
    "start": plant_start,
    "skew": plant_skew,
}

if __name__ == "__main__":
    at = sys.argv.index("--")
    for fault in sys.argv[1:at]:
        name, _, value = fault.partition("=")
        FAULTS[name](float(value))
    signal.signal(signal.SIGUSR2, block)
    main(sys.argv[at + 1 :])
