"""S32: a crash at any disk operation leaves a log that opens again.

Each script is run once for every operation on the disk, dying at it. Where at most three
operations are then pending, every outcome of a power cut is visited, else a sample by seed. The
log that is recovered must be a prefix of what was appended and hold everything that was synced,
and recovering again, also after a second crash in the midst of recovery, must not change it.
"""

import itertools
from collections.abc import Callable
from random import Random

import pytest

from tailrace.protocol.batch import encode_batch, header_seed
from tailrace.simulation.chance import Pick, every_world, random_pick
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life, NodeDead
from tailrace.storage.log import Appended, Log, LogConfig

TOPIC_ID = bytes(range(16))
DIRECTORY = "/data/topics/p"
SEED = header_seed(TOPIC_ID, 0)
CONFIG = LogConfig(segment_bytes=1024)
PENDING_MAX = 3
SAMPLES = 6
RECOVERY_CRASHES = (0, 1, 3, 6)


class Script:
    """One process that uses the log, and what it may rely on."""

    def __init__(self, platter: Platter, *, dies_at_step: int | None = None) -> None:
        self.life = Life("n1")
        self.life.dies_at_step = dies_at_step
        self.disk = SimDisk(platter, self.life)
        self.appended: list[bytes] = []
        self.synced = 0  # batches
        self.dropped = 0  # batches below the log start
        self.cut_to: int | None = None
        self.log: Log | None = None
        self._number = 0

    def open(self, *, clean: bool = False) -> None:
        self.log = open_log(self.disk, clean=clean)

    def append(self, records: int = 1, size: int = 150) -> None:
        assert self.log is not None
        self._number += 1
        values: list[bytes | None] = [bytes([self._number]) * size for _ in range(records)]
        entry = memoryview(
            bytearray(
                encode_batch(
                    SEED,
                    values=values,
                    keys=None,
                    timestamps=1000,
                    headers=None,
                    producer_id=7,
                    producer_epoch=0,
                    base_sequence=self.log.end,
                )
            )
        )
        # What dies in the midst of it may be found later, so it counts before it is tried.
        self.appended.append(bytes(entry[45:]))
        [result] = self.log.append([entry], leader_epoch=0, now_ms=1000 + self._number)
        assert isinstance(result, Appended)
        assert not result.duplicate

    def sync(self) -> None:
        assert self.log is not None
        written = len(self.appended)
        self.log.sync()
        self.synced = written

    def drop(self) -> None:
        """Retention: everything but the active segment goes."""
        assert self.log is not None
        before = self.log.segments()[-1].base_offset
        self.dropped = before  # one record a batch in that script
        self.log.drop_before(before)

    def close(self) -> None:
        assert self.log is not None
        written = len(self.appended)
        self.log.close(clean=True)
        self.synced = written


def open_log(disk: SimDisk, *, clean: bool = False) -> Log:
    for path in ("/data", "/data/topics"):
        if not disk.exists(path):
            disk.make_directory(path)
            disk.sync_directory(path.rpartition("/")[0] or "/")
    return Log.open(
        disk, DIRECTORY, topic_id=TOPIC_ID, partition=0, config=CONFIG, now_ms=2000, clean=clean
    )


def first_write(script: Script) -> None:
    script.open()
    script.append()


def write_and_sync(script: Script) -> None:
    script.open()
    script.append()
    script.sync()
    script.append(records=3)
    script.append(size=700)


def many_rounds(script: Script) -> None:
    script.open()
    for _ in range(3):
        script.append()
        script.sync()


def rolls(script: Script) -> None:
    script.open()
    for _ in range(3):
        script.append(size=600)
        script.append(size=300)
    script.sync()
    script.append(size=900)
    script.sync()


def larger_than_a_segment(script: Script) -> None:
    script.open()
    script.append(size=5000)
    script.sync()
    script.append(size=9000)


def reopened(script: Script) -> None:
    script.open()
    script.append()
    script.close()
    script.open(clean=True)
    script.append()
    script.sync()


def zeros_ahead(script: Script) -> None:
    script.open()
    script.append()
    script.sync()
    assert script.log is not None
    script.log.write_ahead(4096)
    script.append()
    script.sync()


def retention(script: Script) -> None:
    script.open()
    for _ in range(4):
        script.append(size=600)
    script.sync()
    script.drop()
    script.append(size=600)
    script.sync()


SCRIPTS = (
    first_write,
    write_and_sync,
    many_rounds,
    rolls,
    larger_than_a_segment,
    reopened,
    zeros_ahead,
    retention,
)


def crash_points(script: Callable[[Script], None]) -> list[tuple[Platter, Script]]:
    """The disk and the dead process for every operation the script can die at."""
    found: list[tuple[Platter, Script]] = []
    for step in itertools.count():
        platter = Platter()
        process = Script(platter, dies_at_step=step)
        try:
            script(process)
        except NodeDead:
            found.append((platter, process))
        else:
            process.life.dead = True
            return [*found, (platter, process)]
    raise AssertionError("unreachable")


def batches_of(log: Log) -> list[bytes]:
    """What a reader gets, batch by batch, as the producer encoded it."""
    found: list[bytes] = []
    offset = log.start
    while offset < log.end:
        work = log.verify_pending(offset)
        if work is not None:
            work()
        part = log.read(offset, 1, log.end)
        data = b"".join(bytes(each.view()) for each in part.ranges)
        found.append(data[45:])
        offset = part.next_offset
    return found


def check(platter: Platter, process: Script) -> None:
    """Recover, twice, and hold the result against what the dead process did."""
    log = open_log(SimDisk(platter, Life("next")))
    found = batches_of(log)
    assert not log.quarantined
    skipped = process.dropped if log.start else 0
    assert found == process.appended[skipped : skipped + len(found)], "not a prefix"
    assert skipped + len(found) >= process.synced, "synced batches are gone"
    again = open_log(SimDisk(platter.crashed(lambda options: 0), Life("third")))
    assert (again.start, again.end, batches_of(again)) == (log.start, log.end, found)


def check_interrupted(platter: Platter, process: Script, pick: Pick) -> int:
    """The same when recovery itself dies at some of its operations, and power fails again."""
    for step in RECOVERY_CRASHES:
        copy = platter.crashed(lambda options: min(1, options - 1))
        life = Life("second")
        life.dies_at_step = step
        try:
            open_log(SimDisk(copy, life))
        except NodeDead:
            check(copy.crashed(pick), process)
    return len(RECOVERY_CRASHES)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_crash_leaves_a_prefix_with_all_that_was_synced(
    script: Callable[[Script], None],
) -> None:
    rng = Random(script.__name__)
    states = 0

    def run(pick: Pick) -> None:
        check(platter.crashed(pick), process)

    for platter, process in crash_points(script):
        if platter.root.pending_count() <= PENDING_MAX:
            states += sum(1 for _ in every_world(run))
        else:
            for _ in range(SAMPLES):
                run(random_pick(rng))
            states += SAMPLES
        states += check_interrupted(platter, process, random_pick(rng))
    print(f"{script.__name__}: {states} states")
