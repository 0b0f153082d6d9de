"""S28: a swap or a trim that dies at any disk operation leaves the log before it or after it.

Each script is run once for every operation on the disk, dying at it; where few operations are
pending every outcome of a power cut is visited, else a sample by seed. Recovery that dies in its
turn, and recovery done again, must not change what was found. (The mixed lives of
test_crashes.py and tests/simulation go further.)
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random

import pytest

from tailrace.simulation.chance import Pick, every_world, random_pick
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life, NodeDead
from tailrace.storage.log import Log, LogConfig
from tests.storage.logs import PARTITION, TOPIC_ID
from tests.storage.rewriting import make, put, records, settled, swap

DIRECTORY = "/data/log"
CONFIG = LogConfig(segment_bytes=700, index_interval_bytes=200)
PENDING_MAX = 4
SAMPLES = 8
GONE = {0, 3, *range(6, 40), 44, 61}

Records = dict[int, bytes | None]


class Script:
    """One process on a disk, and the logs that may be found after it.

    Made with a log of several segments and two leader epochs; dies so many operations later.
    """

    def __init__(self, platter: Platter, dies_after: int | None = None) -> None:
        self.life = Life("n1")
        self.disk = SimDisk(platter, self.life)
        self.log = open_log(self.disk, make_parent=True)
        for at in range(20):
            put(self.log, 1 + at % 4, epoch=1 + at // 12)
            if at % 5 == 4:
                self.log.roll()
                self.log.sync()
        settled(self.log)
        put(self.log, 2, epoch=2)
        self.log.sync()
        self.allowed = [records(self.log)]
        if dies_after is not None:
            self.life.dies_at_step = self.life.steps + dies_after

    def becomes(self, gone: set[int]) -> None:
        """From here on the log may also be found without these records."""
        last = self.allowed[-1]
        self.allowed.append({at: value for at, value in last.items() if at not in gone})

    def swap(self, gone: set[int]) -> None:
        self.becomes(gone)
        swap(self.disk, self.log, gone)

    def trim(self, offset: int, *, exact: bool) -> None:
        job = self.log.trim(offset, exact=exact)
        assert job is not None
        self.becomes(set(range(job.start)))
        job.publish()
        self.log.trimmed(job)
        job.finish()


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


def one_swap(script: Script) -> None:
    script.swap(GONE)


def one_segment(script: Script) -> None:
    made = make(script.disk, script.log, GONE, script.log.rewritable(1 << 40)[1:2])
    script.becomes({at for at in GONE if made.base_offset <= at < made.next_offset})
    job = script.log.swap(made)
    job.publish()
    script.log.replace(job)
    job.finish()
    script.log.replaced(job)


def everything_goes(script: Script) -> None:
    script.swap(set(range(script.log.rewritable(1 << 40)[-1].next_offset)))


def two_swaps(script: Script) -> None:
    script.swap(GONE)
    script.log.sync()
    script.swap(GONE | {1, 41, 45})
    script.log.sync()


def swap_and_appends(script: Script) -> None:
    """Appends go on between the steps, as they do in a broker."""
    script.becomes(GONE)
    job = script.log.swap(make(script.disk, script.log, GONE))
    steps: list[Callable[[], object]] = [
        job.publish,
        lambda: script.log.replace(job),
        job.finish,
        lambda: script.log.replaced(job),
    ]
    for step in steps:
        step()
        script.log.roll()
        script.log.sync()


def trims(script: Script) -> None:
    script.trim(script.log.segments()[1].next_offset, exact=False)
    script.trim(script.log.segments()[0].base_offset + 2, exact=True)


def start_in_a_segment(script: Script) -> None:
    """What ``delete_records`` does: the start moves, then what lies below it goes physically."""
    start = script.log.segments()[0].base_offset + 5
    script.trim(start, exact=True)
    script.swap(set(range(start)))
    script.log.sync()


SCRIPTS = (
    one_swap,
    one_segment,
    everything_goes,
    two_swaps,
    swap_and_appends,
    trims,
    start_in_a_segment,
)


def crash_points(script: Callable[[Script], None]) -> Iterator[tuple[Platter, Script]]:
    for step in itertools.count():
        platter = Platter()
        process = Script(platter, step)
        try:
            script(process)
        except NodeDead:
            yield platter, process
        else:
            process.life.dead = True
            yield platter, process
            return


def check(platter: Platter, process: Script) -> Records:
    """Recover, twice, and find a log that may be."""
    log = open_log(SimDisk(platter, Life("next")))
    found = records(log)
    assert found in process.allowed, sorted(found)
    assert not log.quarantined
    assert not log.recovery.data_loss_possible
    names = SimDisk(platter, Life("look")).list(DIRECTORY)
    assert not [name for name in names if ".swap" in name]
    again = open_log(SimDisk(platter.crashed(lambda options: 0), Life("third")))
    assert records(again) == found
    assert (again.start, again.end) == (log.start, log.end)
    put(again, 1, epoch=9)
    return found


def check_interrupted(platter: Platter, process: Script, pick: Pick) -> None:
    """Recovery dies at each of its operations, and the power fails again."""
    found: list[Records] = []
    for step in itertools.count():
        copy = platter.crashed(lambda options: min(1, options - 1))
        life = Life("second")
        life.dies_at_step = step
        try:
            open_log(SimDisk(copy, life))
        except NodeDead:
            found.append(check(copy.crashed(pick), process))
        else:
            break
    assert all(one == found[0] for one in found), "what is found depends on who looks"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_crash_leaves_the_log_before_or_after(script: Callable[[Script], None]) -> None:
    rng = Random(script.__name__)
    states, seen = 0, list[Records]()
    points = list(crash_points(script))
    platter, process = points[-1]

    def run(pick: Pick) -> None:
        found = check(platter.crashed(pick), process)
        if found not in seen:
            seen.append(found)

    for platter, process in points:
        if platter.root.pending_count() <= PENDING_MAX:
            states += sum(1 for _ in every_world(run))
        else:
            for _ in range(SAMPLES):
                run(random_pick(rng))
            states += SAMPLES
        check_interrupted(platter, process, random_pick(rng))
    print(f"{script.__name__}: {states} states")
    assert all(one in seen for one in process.allowed), "every log that may be found was found"


@pytest.mark.slow
def test_a_swap_found_by_a_restart_survives_a_power_cut_in_the_midst_of_it() -> None:
    """Killed behind the rename, its name may not be durable yet: whoever finds it syncs first."""
    rng = Random(1)
    states = 0
    for dies_after, again in itertools.product(range(4, 9), range(9)):
        platter = Platter()
        process = Script(platter, dies_after)
        with pytest.raises(NodeDead):
            one_swap(process)
        names = SimDisk(platter, Life("look")).list(DIRECTORY)
        if not any(name.endswith(".swap") for name in names):
            continue
        life = Life("second")
        life.dies_at_step = again
        with suppress(NodeDead):
            open_log(SimDisk(platter, life))
        life.dead = True
        for _ in range(4):
            check(platter.crashed(random_pick(rng)), process)
            states += 1
    assert states > 50


def test_the_mark_is_durable_behind_what_was_swapped() -> None:
    """An older one, found after a power cut, would let damage in the new file cut the log."""
    platter = Platter()
    process = Script(platter)
    process.swap(GONE)
    process.life.dead = True
    after = platter.crashed(lambda options: 0)
    disk = SimDisk(after, Life("next"))
    file = disk.open(f"{DIRECTORY}/{0:020}.log")
    damaged = file.read(1, 100)[0] ^ 1
    file.write([bytes([damaged])], 100)
    log = open_log(disk)
    assert log.end == process.log.end
    [hole] = log.quarantined
    assert (hole.first_offset, hole.next_offset) == (1, 3)
