"""Known bugs, put into the product on demand: they measure the tests (safety 7.6).

A planted bug must make seeds fail; the number is the one of safety.md's table where it has one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tailrace.protocol.batch import BatchHeader
from tailrace.storage import recovery
from tailrace.storage.disk import Disk
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerPlan, Sent
from tailrace.storage.rounds import SyncPoint


def _no_fsync() -> Any:
    """8: acks leave although nothing was synced."""

    def pretend(disk: Disk, points: Sequence[SyncPoint]) -> None:
        for point in points:
            point.durable = True

    return patch("tailrace.broker.flusher.sync_round", pretend)


def _no_sequence_check() -> Any:
    """15 and more: a retry is written again."""

    def accept(self: ProducerPlan, header: BatchHeader) -> Sent | None:
        return None

    return patch.object(ProducerPlan, "check", accept)


def _cut_at_first_bad_checksum() -> Any:
    """13: recovery takes every bad batch for a torn tail, wherever it stands."""
    read_marks = recovery._Recovery._read_marks

    def forget(self: Any, names: list[str], bases: list[int]) -> None:
        read_marks(self, names, bases)
        self.mark = Mark(self.start, -1, 0)

    return patch.object(recovery._Recovery, "_read_marks", forget)


BUGS: dict[str, Callable[[], Any]] = {
    "no-fsync": _no_fsync,
    "no-sequence-check": _no_sequence_check,
    "cut-at-first-bad-checksum": _cut_at_first_bad_checksum,
}


@contextmanager
def plant(name: str | None) -> Iterator[None]:
    """Put a bug in for the time of the block; None: none."""
    if name is None:
        yield
    else:
        with BUGS[name]():
            yield
