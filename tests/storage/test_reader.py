"""The reading side of a log where it meets another thread."""

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tailrace.storage.disk import OsDisk
from tailrace.storage.reader import Reader
from tailrace.storage.segment import Quarantine, Segment
from tailrace.storage.segments import Segments


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
def test_damage_found_in_a_thread_stays_fenced_while_retention_moves_the_start(
    tmp_path: Path,
) -> None:
    disk = OsDisk()
    old = [Quarantine("old", 0, 1, at, at + 1, "planted") for at in range(300)]
    new = Quarantine("new", 0, 1, 1_000, 1_001, "planted")
    segments = Segments(disk, [Segment(disk, str(tmp_path), 0)])
    for _ in range(50):
        reader = Reader(disk, segments, old, name=("orders", 0), broker="n1", seed=0)
        verifying = Thread(target=reader.fence, args=([new],))
        verifying.start()
        for start in range(50):
            reader.forget_below(start)
        verifying.join()
        assert new in reader.holes
