"""What workloads share: their arguments, a broker of their own, and how figures are told.

A workload is a module with a ``main``: ``python -m tailrace.bench.NAME --round 0 --seconds 2``. It
starts its own broker in a folder of its own, which is removed at the end, and prints figures as
``results`` has them.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tailrace.bench.processes import BrokerProcess
from tailrace.bench.results import Measured, emit
from tailrace.bench.touch import touch_disk

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
WARM_S = 2.0  # of sends at a fixed rate before those that are timed, of tailrace and of peers


@dataclass(frozen=True)
class Workbench:
    """One run of a workload."""

    round: int
    seconds: float  # of each timed stretch
    folder: Path

    def tell(
        self,
        path: str,
        value: float,
        unit: str,
        *,
        size_bytes: int = 0,
        durable: bool | None = None,
        note: str = "",
        system: str = "tailrace",
    ) -> None:
        """Print a figure."""
        emit(Measured(system, path, size_bytes, durable, value, unit, self.round, note))

    @contextmanager
    def broker(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        touch_bytes: int = 0,
        name: str = "data",
    ) -> Generator[BrokerProcess]:
        """``tailrace dev``, on a disk of which so many bytes were written and freed before."""
        touch_disk(self.folder, touch_bytes)
        with BrokerProcess(self.folder / name, settings=settings, pinned=True) as broker:
            yield broker


def parser(what: str, seconds: float = 2.0) -> argparse.ArgumentParser:
    """With the arguments of all workloads."""
    made = argparse.ArgumentParser(
        description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--round", type=int, default=0, help="number of the round, for the figures")
    made.add_argument("--seconds", type=float, default=seconds, help="of each timed stretch")
    made.add_argument("--folder", type=Path, help="where to work: on the disk to be measured")
    return made


@contextmanager
def workbench(given: argparse.Namespace) -> Generator[Workbench]:
    """A folder to work in, removed at the end."""
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", dir=given.folder) as folder:
        yield Workbench(given.round, given.seconds, Path(folder))


def end_on_sigterm() -> None:
    """As by Ctrl-C: no broker outlives its bench, and what was found is kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cpu_share(pid: int, seconds: float) -> float:
    """Of a core, that a process uses while this one waits."""
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def resident_bytes(pid: int) -> int:
    """Memory of a process, with the pages of files that it has mapped."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return int(pages[1]) * PAGE_BYTES


def say(text: str) -> None:
    """Something for people; stdout is for figures."""
    print(text, file=sys.stderr, flush=True)
