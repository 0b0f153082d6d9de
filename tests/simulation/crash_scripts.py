"""The scripts of the crash exploration: short lives of a log, each around one thing it does.

A script must be deterministic: it runs once for each of its disk operations, dying at it.
"""

from tailrace.simulation.chance import random_pick, seeded
from tests.simulation.crash_model import Process, Script, drop_all, keep_all

A, B = 1, 2  # producers


def create(process: Process) -> None:
    process.open()
    process.append()


def append_and_sync(process: Process) -> None:
    process.open()
    process.append(150, producer=A)
    process.sync()
    process.append(50, 50, 50, producer=A)
    process.append(700)
    process.append(20, producer=B, batches=2)
    process.sync()


def many_rounds(process: Process) -> None:
    process.open()
    for _ in range(4):
        process.append(producer=A)
        process.sync()


def rolls(process: Process) -> None:
    process.open()
    for _ in range(3):
        process.append(600, producer=A)
        process.append(300, producer=B)
    process.sync()
    process.append(900)
    process.append(900, producer=A, batches=2)
    process.sync()


def larger_than_a_segment(process: Process) -> None:
    process.open()
    process.append(5000)
    process.sync()
    process.append(9000, producer=A)


def snapshots(process: Process) -> None:
    """Several segments, and as many snapshots of the producers."""
    process.open()
    for size in (600, 700, 800):
        process.append(size, producer=A)
        process.append(30, producer=B, batches=3)
        process.sync()
    process.append(10, producer=B)
    process.roll()
    process.append(10, producer=A)
    process.sync()


def retention(process: Process) -> None:
    process.open()
    for _ in range(4):
        process.append(600, producer=A)
    process.sync()
    process.drop_before(process.log.end)
    process.append(600, producer=A)
    process.sync()
    process.append(600, producer=B)
    process.sync()
    process.drop_before(process.log.end)


def start_within_a_segment(process: Process) -> None:
    process.open()
    for _ in range(3):
        process.append(200, 200, producer=A)
    process.sync()
    process.set_start(1)
    process.append(300, producer=B)
    process.sync()
    process.set_start(5)
    process.append(300, producer=B)
    process.sync()
    process.set_start(process.log.end)
    process.append(20)


def truncation(process: Process) -> None:
    process.open()
    for _ in range(3):
        process.append(300, producer=A)
    process.sync()
    process.append(300, producer=B, batches=2)
    process.truncate_to(4)
    process.append(400, producer=B)
    process.sync()
    process.truncate_to(1)
    process.append(100, producer=A)
    process.sync()


def zeros_ahead(process: Process) -> None:
    process.open()
    process.append(producer=A)
    process.sync()
    process.write_ahead()
    process.append(producer=A)
    process.sync()
    process.append(600)
    process.append(500, producer=A)  # rolls: the zeros are those of an older segment
    process.write_ahead(600)
    process.append(producer=A)


def epochs(process: Process) -> None:
    process.open()
    process.append(producer=A)
    process.begin_epoch()
    process.append(600, producer=A)
    process.sync()
    process.begin_epoch(in_group=True)
    process.append(600, producer=A)  # rolls
    process.begin_epoch()
    process.begin_epoch(in_group=True)
    process.append(20)
    process.sync()


def reopened(process: Process) -> None:
    process.open()
    process.append(600, producer=A)
    process.append(600, producer=A)
    process.close()
    process.open(clean=True)
    process.append(producer=A)
    process.sync()
    process.append(600, producer=B)
    process.close()


def saved_so_far(process: Process) -> None:
    """The index and the producers of a growing segment are saved, and a start builds on them."""
    process.open()
    for _ in range(3):
        process.append(100, producer=A)
        process.append(60, producer=B)
        process.sync()
    process.die(drop_all)
    process.open()
    process.append(90, producer=A, batches=3)
    process.sync()
    process.append(90, producer=B)
    process.die(random_pick(seeded(2, "saved")))
    process.open()
    process.append(700, producer=B)  # rolls
    process.sync()


def recovery(process: Process) -> None:
    """Crashes of a recovery, with a torn tail of several writes before it, and of the next one."""
    process.open()
    process.append(300, producer=A)
    process.sync()
    process.append(5000, producer=A)  # rolls
    process.append(800, producer=B)  # rolls
    process.die(random_pick(seeded(4, "recovery")))
    process.open()
    process.append(400, producer=A)
    process.append(700, producer=A)
    process.die(random_pick(seeded(7, "recovery")))
    process.open()
    process.append(10, producer=B)


def killed(process: Process) -> None:
    """SIGKILL alone: recovery makes durable what only the page cache had."""
    process.open()
    process.append(600, producer=A)
    process.append(600, producer=A)
    process.die()
    process.open()
    process.append(600, producer=A)
    process.die()
    process.open()
    process.die(drop_all)
    process.open()


def erasure(process: Process) -> None:
    """Every segment that holds a hit is written anew, one after the other, while appends go on."""
    sealed_segments(process)
    for source in process.log.rewritable(process.log.end):
        process.rewrite({source.base_offset, source.base_offset + 3}, [source])
        process.append(40, producer=B)
    process.sync()
    process.drop_before(4)


def merging(process: Process) -> None:
    """Compaction: neighbouring segments become one, and that one is compacted again."""
    sealed_segments(process)
    sources = process.log.rewritable(process.log.end)
    first, second, third = sources[:3]
    process.rewrite(set(range(first.base_offset, second.next_offset, 2)), [first, second])
    process.sync()  # the index of the new segment
    process.append(700, producer=A)
    process.sync()
    [merged, *_] = process.log.rewritable(third.base_offset)
    process.rewrite(set(range(merged.base_offset, third.next_offset - 1)), [merged, third])
    process.sync()


def deletion_of_records(process: Process) -> None:
    sealed_segments(process)
    process.set_start(3)
    process.rewrite_from_start()
    process.append(100, producer=B)
    process.sync()
    process.set_start(7)
    process.rewrite_from_start()
    process.die(keep_all)
    process.open()


def sealed_segments(process: Process) -> None:
    """Four of them, each with several batches and their indexes, and a snapshot behind all."""
    process.open()
    for _ in range(4):
        process.append(60, 60, producer=A)
        process.append(60, 60, producer=B)
        process.append(30)
        process.sync()
        process.roll()
        process.sync()
    process.append(20, producer=A)
    process.sync()


def recreated(process: Process) -> None:
    """The directory is removed and another log made in its place (an id is never used twice, so
    that this one is the same shows that nothing of the old log is believed)."""
    process.open()
    process.append(600, producer=A)
    process.append(600, producer=A)
    process.sync()
    process.append(100)
    process.remove()
    process.open()
    process.append(300, producer=A)
    process.sync()
    process.die(keep_all)
    process.open()


def stopped(process: Process) -> None:
    """What was written between two graceful stops is all in one segment: no name tells of it."""
    process.open()
    process.append(50, producer=A)
    process.close()
    process.open(clean=True)
    process.append(50, producer=A)
    process.sync()
    process.append(50, producer=B)
    process.close()


SCRIPTS: tuple[Script, ...] = (
    merging,
    start_within_a_segment,
    create,
    append_and_sync,
    many_rounds,
    rolls,
    larger_than_a_segment,
    snapshots,
    retention,
    truncation,
    zeros_ahead,
    epochs,
    reopened,
    saved_so_far,
    recovery,
    killed,
    erasure,
    deletion_of_records,
    recreated,
    stopped,
)
