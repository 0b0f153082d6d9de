"""S26-S28: a cleaning that dies at any disk operation loses the newest of no key, and brings back
nothing that a tombstone had deleted; the next cleaning finishes it."""

import itertools
from contextlib import suppress
from random import Random

import pytest

from tailrace.simulation.chance import Pick, random_pick
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life, NodeDead
from tailrace.storage import cleaned as cleaned_file
from tailrace.storage.log import Log, LogConfig
from tests.storage.compacting import TOMBSTONES_MS, Cleaner, Entry, put, records, seal
from tests.storage.logs import PARTITION, TOPIC_ID

DIRECTORY = "/data/log"
CONFIG = LogConfig(segment_bytes=700, index_interval_bytes=200)
SAMPLES = 3
LATER_MS = 10 * TOMBSTONES_MS


def open_log(disk: SimDisk, *, make_parent: bool = False) -> Log:
    if make_parent:
        disk.make_directory("/data")
        disk.sync_directory("/")
    return Log.open(
        disk,
        DIRECTORY,
        topic_id=TOPIC_ID,
        partition=PARTITION,
        config=CONFIG,
        now_ms=1,
        clean=False,
    )


class Lives:
    """A log with tombstones is cleaned, and cleaned again when they may go.

    Either cleaning may die after so many operations. The first death is a killed process, which
    loses nothing that was written; what becomes of the disk after the second is for others to say.
    """

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.history: dict[int, Entry] = {}
        self.cleaner = self.started(make_parent=True)

    def started(self, *, make_parent: bool = False) -> Cleaner:
        self.life = Life("n1")
        disk = SimDisk(self.platter, self.life)
        cleaner = Cleaner(disk, open_log(disk, make_parent=make_parent), 3, segment_bytes=250)
        cleaner.cleaned = cleaned_file.read(disk, DIRECTORY, cleaner.log.end, cleaner.log.epochs)
        return cleaner

    def write(self, *entries: Entry) -> None:
        base = put(self.cleaner.log, *entries, now_ms=1).base_offset
        self.history.update(enumerate(entries, base))

    def first(self, dies_after: int | None) -> bool:
        """Whether it came to its end."""
        for number in range(12):
            key = b"k%d" % (number % 5)
            self.write((key, b"%d" % number + bytes(80)), (b"dead", b"%d" % number))
            if number % 4 == 3:
                seal(self.cleaner.log)
        self.write((b"dead", None), (b"k1", None))
        seal(self.cleaner.log)
        try:
            self.clean(0, dies_after)
        except NodeDead:
            self.cleaner = self.started()
            return False
        return True

    def second(self, dies_after: int | None) -> None:
        """Raises ``NodeDead`` if it dies."""
        for number in range(12, 20):
            self.write((b"k%d" % (number % 4), b"%d" % number + bytes(80)))
            if number % 4 == 3:
                seal(self.cleaner.log)
        self.clean(LATER_MS, dies_after)

    def clean(self, now_ms: int, dies_after: int | None) -> None:
        if dies_after is not None:
            self.life.dies_at_step = self.life.steps + dies_after
        self.cleaner.clean(now_ms)


def check(platter: Platter, history: dict[int, Entry]) -> None:
    """What is found has the newest of every key at its offset, and nothing deleted."""
    disk = SimDisk(platter, Life("next"))
    cleaner = Cleaner(disk, open_log(disk), keys_max=3, segment_bytes=250)
    cleaner.cleaned = cleaned_file.read(disk, DIRECTORY, cleaner.log.end, cleaner.log.epochs)
    assert not cleaner.log.quarantined
    assert values(records(cleaner.log)) == values(history)
    seal(cleaner.log)
    cleaner.clean(now_ms=2 * LATER_MS)  # perhaps the first that comes to the tombstones
    cleaner.clean(now_ms=3 * LATER_MS)
    found = records(cleaner.log)
    last = {key: offset for offset, (key, _) in history.items()}
    assert found == {
        offset: history[offset]
        for offset in sorted(last.values())
        if history[offset][1] is not None
    }


def values(found: dict[int, Entry]) -> dict[bytes | None, bytes]:
    """As a reader from the start ends up with them."""
    last = {key: value for _, (key, value) in sorted(found.items())}
    return {key: value for key, value in last.items() if value is not None}


@pytest.mark.slow
def test_a_cleaning_may_die_anywhere() -> None:
    states = 0
    for step in itertools.count():
        lives = Lives(Platter())
        lives.first(None)
        try:
            lives.second(step)
        except NodeDead:
            picks: list[Pick] = [lambda options: options - 1]
            picks += [random_pick(Random(step * SAMPLES + n)) for n in range(SAMPLES)]
            for pick in picks:
                check(lives.platter.crashed(pick), lives.history)
                states += 1
        else:
            break
    assert states > 160, "it dies at every one of its operations"


@pytest.mark.slow
def test_a_cleaning_that_follows_one_that_died_may_die_too() -> None:
    """A tombstone that was given its time by the first must hide what that did not come to."""
    rng, ended = Random(5), False
    for step in itertools.count():
        for _ in range(SAMPLES):
            lives = Lives(Platter())
            ended = lives.first(step)
            with suppress(NodeDead):
                lives.second(rng.randrange(60))
            check(lives.platter.crashed(lambda options: options - 1), lives.history)
        if ended:
            return
