"""A real broker is killed, or has a system call fail, at every call there is (S32).

    python -m tests.proofs.syscalls --kills 40 --errors 20        # a sample, spread evenly
    python -m tests.proofs.syscalls --kills all --errors all

``--errors``: so many points each for EIO and ENOSPC. One broker after another runs on the same
directory, each is hit at another call; so the start after a hit is the check of that hit, and is
itself hit. In every case all that was acknowledged is read back, once, unchanged.

After EIO from a sync the process ends with exit code 7 and acknowledges nothing any more (R21). It
may live only where nobody was promised anything: the metadata store's files (SQLite undoes the
transaction, T100, or tries its checkpoint again), the ``clean`` file at the end of a stop, the
ballast. After ENOSPC from a sync of appends it ends likewise; a topic that was to be made, opened
or removed waits for room (T031, T033), a start may fail and says why. With ENOSPC from any other
call it lives, or could not start and says why.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from tailrace.protocol.errors import TailraceError
from tests.proofs.session import Ledger, read_back, session
from tests.proofs.strace import CALLS, Hit, Injection, TracedBroker, missing

KILL = "signal=SIGKILL"
KILLED = -9
READ_SECONDS = 0.1  # an answer may be read that much later than it was sent
STORAGE_FAILED = 7
CHAIN_MAX = 40  # points on one directory
TOGETHER = 2  # brokers at a time
SYNCS = ("fdatasync", "fsync", "syncfs")
EIO, ENOSPC = "error=EIO", "error=ENOSPC"
FAULTS: dict[str, tuple[str, ...]] = {  # and the calls they happen to
    KILL: CALLS,
    EIO: (*SYNCS, "pwritev2", "rename", "pwrite64", "unlink", "ftruncate"),
    ENOSPC: (*SYNCS, "pwritev2", "pwrite64", "rename", "openat", "mkdir", "ftruncate"),
}
METADATA = "/metadata.sqlite"
FORGIVEN = ("metadata", "clean", "ballast")  # what a sync may fail of, and the broker live
NOT_CLEAN = "the clean file could not be written"
WAITS_FOR_ROOM = re.compile(r"T03[13]")


@dataclass
class Result:
    """What a chain of hits did."""

    tried: int = 0
    hits: Counter[str] = field(default_factory=Counter[str])
    exits: Counter[str] = field(default_factory=Counter[str])
    syncs: Counter[str] = field(default_factory=Counter[str])  # that failed, and what came of it
    acked: int = 0
    failures: list[str] = field(default_factory=list[str])

    def add(self, other: "Result") -> None:
        self.tried += other.tried
        self.hits += other.hits
        self.exits += other.exits
        self.syncs += other.syncs
        self.acked += other.acked
        self.failures += other.failures


@dataclass
class Baseline:
    """What an undisturbed start, session and stop does: how often each call is made by a thread."""

    calls: dict[str, int]
    imports: int  # files opened before the data directory is

    def injections(self, calls: Sequence[str], fault: str) -> list[Injection]:
        return [
            Injection(call, number, fault)
            for call in calls
            for number in range(
                self.imports + 1 if call == "openat" else 1, self.calls.get(call, 0) + 1
            )
        ]


def baselines(folder: Path, *, erasing: bool) -> tuple[Baseline, Baseline]:
    """On a directory that is new, and on one that was used."""
    ledger, found = Ledger(erasing=erasing), list[Baseline]()
    for _ in range(2):
        broker = TracedBroker(folder / "watched")
        assert broker.ready(), broker.last_words()
        assert trio.run(session, broker.url, ledger)
        broker.stop()
        assert broker.wait() == 0, broker.last_words()
        found.append(Baseline(broker.points(), broker.imports()))
    assert not ledger.refusals.keys() - {"T010"}, ledger.refusals
    return found[0], found[1]


def spread(points: Sequence[Injection], count: int | None) -> list[Injection]:
    """So many of the points, evenly; None: all."""
    if count is None or count >= len(points):
        return list(points)
    return [points[at * len(points) // count] for at in range(count)]


def run_all(points: Sequence[Injection], folder: Path, *, fresh: bool, erasing: bool) -> Result:
    """Some chains at a time; ``fresh``: each point on a directory of its own."""
    count = len(points) if fresh else max(TOGETHER, -(-len(points) // CHAIN_MAX))
    chains = [chain for at in range(count) if (chain := points[at::count])]
    folders = [folder / f"{'fresh' if fresh else 'chain'}{at}" for at in range(len(chains))]
    total = Result()
    with ThreadPoolExecutor(TOGETHER) as pool:
        for result in pool.map(partial(run_chain, erasing=erasing), chains, folders):
            total.add(result)
    return total


def run_chain(points: Sequence[Injection], data: Path, *, erasing: bool) -> Result:
    """One broker after another on one directory, and at the end one that is let be."""
    result, ledger = Result(), Ledger(erasing=erasing)
    for point in points:
        result.tried += 1
        try:
            run_one(data, point, ledger, result)
        except (AssertionError, trio.TooSlowError, TailraceError) as error:
            result.failures.append(f"{point}: {error}")
            data = data.with_name(f"{data.name}-{result.tried}")  # the other is kept for a look
            ledger = Ledger(erasing=erasing)
    result.acked += len(ledger.acked)
    broker = TracedBroker(data, watched=False)
    try:
        assert broker.ready(), broker.last_words()
        if ledger.acked:
            trio.run(read_back, broker.url, ledger)
        broker.stop()
        assert broker.wait() == 0, broker.last_words()
    except AssertionError as error:
        result.failures.append(f"after {points[-1]}: {error}")
    finally:
        broker.end()
    return result


def run_one(data: Path, point: Injection, ledger: Ledger, result: Result) -> None:
    """Start, use, hit; AssertionError with what is wrong."""
    broker, unreadable = TracedBroker(data, point), ledger.unreadable
    try:
        ready = broker.ready()
        there = ready and trio.run(session, broker.url, ledger)
        if there:
            broker.stop()
        code = broker.wait()
    finally:
        broker.end()
    hits = broker.hits()
    was_hit = code == KILLED if point.fault == KILL else bool(hits)
    result.hits[point.call] += was_hit
    result.exits[f"{code}{'' if ready else ' at start'}"] += was_hit
    if not hits:
        assert ledger.unreadable == unreadable, f"offline for no reason: {broker.last_words()}"
    if not was_hit:
        assert there, f"it ended by itself: {broker.last_words()}"
        assert code == 0, f"exit code {code}: {broker.last_words()}"
    elif hits:
        if point.call in SYNCS:
            files = sorted({kind(data, hit) for hit in hits})
            result.syncs[f"{' + '.join(files)}: {code}{'' if ready else ' at start'}"] += 1
        judge(broker, hits, code, ready=ready, ledger=ledger)


def kind(data: Path, hit: Hit) -> str:
    """What was to be synced."""
    below = hit.path.removeprefix(str(data)).removesuffix(".tmp")
    if below.startswith("/topics") or hit.call == "syncfs":
        return "logs"
    if below == hit.path:
        return "a directory above"
    if below.startswith(METADATA) or (not below and hit.call == "fdatasync"):
        return "metadata"  # SQLite syncs also the directory so, ourselves by fsync
    return below.removeprefix("/") or "directory"


def judge(
    broker: TracedBroker, hits: Sequence[Hit], code: int, *, ready: bool, ledger: Ledger
) -> None:
    """What a process may do whose call failed."""
    stderr, last = broker.stderr(), broker.last_words()
    what = ", ".join(f"{hit.call} of {hit.path}" for hit in hits) + f": exit code {code}"
    assert "Traceback" not in stderr, f"{what}: {last}"
    assert broker.injection is not None
    assert code in (0, 1, STORAGE_FAILED), f"{what}: {last}"  # 2 would keep systemd from restarting
    assert code == 0 or re.search(r"T[01]\d\d", stderr), f"{what}, and no word why: {last}"
    syncs = [hit for hit in hits if hit.call in SYNCS]
    final = [hit for hit in syncs if not forgiven(broker, hit, stderr)]
    if broker.injection.fault == ENOSPC:
        if code == STORAGE_FAILED:
            assert final, f"{what}: it must live on a full disk; {last}"
        elif final and not WAITS_FOR_ROOM.search(stderr):
            assert not ready, f"{what}, not {STORAGE_FAILED}: {last}"
        assert not ready or code in (0, STORAGE_FAILED), f"{what}: {last}"
    elif final:
        assert code == STORAGE_FAILED, f"{what}, not {STORAGE_FAILED}: {last}"
    for failed_at in broker.logged("storage.failed"):
        assert code == STORAGE_FAILED, f"{what}, not {STORAGE_FAILED}: {last}"
        later = [ack for ack in ledger.acked.values() if ack.acked_at > failed_at + READ_SECONDS]
        assert not later, f"{what}: {len(later)} acknowledgements after it"


def forgiven(broker: TracedBroker, hit: Hit, stderr: str) -> bool:
    """Whether nobody relies on a sync: one that failed need not end the broker."""
    what = kind(broker.data, hit)
    return what in FORGIVEN or (what == "directory" and NOT_CLEAN in stderr)


def prove(
    points: Mapping[str, int | None],
    folder: Path,
    watched: tuple[Baseline, Baseline],
    *,
    erasing: bool = False,
) -> dict[str, Result]:
    """All runs; so many points of each fault, None for every point, 0 for none.

    A quarter of a sample is of starts on new directories. ``erasing``: each session has a key
    erased, which a process of its own rewrites segments for; so did those that were watched.
    """
    new, used = watched
    run = partial(run_all, erasing=erasing)
    found: dict[str, Result] = {}
    for fault, count in points.items():
        if count == 0:
            continue
        calls = FAULTS[fault]
        below = folder / fault.partition("=")[2]
        below.mkdir()
        result = found.setdefault(fault, Result())
        few = None if count is None else count // 4
        rest = None if count is None or few is None else count - few
        result.add(run(spread(new.injections(calls, fault), few), below, fresh=True))
        result.add(run(spread(used.injections(calls, fault), rest), below, fresh=False))
    return found


def number(text: str) -> int | None:
    return None if text == "all" else int(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.syscalls")
    parser.add_argument("--kills", type=number, default=0)
    parser.add_argument("--errors", type=number, default=0)
    parser.add_argument("--erasing", action="store_true", help="each session has a key erased")
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    folder, began, failed = Path(tempfile.mkdtemp(prefix="tailrace-syscalls-")), time.monotonic(), 0
    points = {KILL: options.kills, EIO: options.errors, ENOSPC: options.errors}
    watched = baselines(folder, erasing=options.erasing)
    for fault, result in prove(points, folder, watched, erasing=options.erasing).items():
        hits = ", ".join(f"{count} {call}" for call, count in sorted(result.hits.items()))
        exits = ", ".join(f"{count} x {code}" for code, count in sorted(result.exits.items()))
        print(
            f"{fault}: {result.tried} points, {result.hits.total()} hit ({hits}); exit codes"
            f" {exits}; {result.acked:,} records acknowledged and read back"
        )
        for what, count in sorted(result.syncs.items()):
            print(f"  sync of {what}: {count}")
        for failure in result.failures:
            print(f"  FAILED {failure}")
        failed += len(result.failures)
    print(f"{failed} failed, {time.monotonic() - began:.0f} s")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
