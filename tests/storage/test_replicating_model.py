"""Three logs that follow each other through elections, crashes and power cuts become equal.

Elections here fall on anybody, also on one that lacks what others have: which log wins is not the
logs' business. But a follower gives up nothing that its leader has, a crash anywhere in the midst
of it leaves a log that goes on, and in the end all hold the same bytes, epochs and producers.
"""

from collections.abc import Callable
from random import Random

from hypothesis import HealthCheck, given, settings, strategies as st

from tailrace.simulation.chance import random_pick
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life, NodeDead
from tailrace.storage.log import Log, LogConfig
from tailrace.storage.replicating import BeginsBelow
from tests.storage.logs import PARTITION, TOPIC_ID, batch, entries

CONFIG = LogConfig(segment_bytes=1500, index_interval_bytes=300)
EXCHANGES_MAX = 200


class Copy:
    """One log on a disk of its own, over several processes."""

    def __init__(self) -> None:
        self.platter = Platter()
        self.log = self.open()

    def open(self) -> Log:
        self.life = Life("n1")
        disk = SimDisk(self.platter, self.life)
        disk.make_directory("/data")
        disk.sync_directory("/")
        return Log.open(
            *(disk, "/data/log"),
            topic_id=TOPIC_ID,
            partition=PARTITION,
            config=CONFIG,
            now_ms=1,
            clean=False,
        )

    def die(self, power: Random | None) -> None:
        self.life.dead = True
        if power is not None:
            self.platter.power_cut(random_pick(power))
        self.log = self.open()

    def survive(self, step: int | None, work: Callable[[], None], power: Random | None) -> None:
        """Do it, and die at so many disk operations from now, if there are so many."""
        if step is not None:
            self.life.dies_at_step = self.life.steps + step
        try:
            work()
        except NodeDead:
            self.die(power)
        self.life.dies_at_step = None


class Copies:
    """Three of them, one of which leads."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.copies = [Copy(), Copy(), Copy()]
        self.epoch = 0
        self.leader = self.copies[0]
        self.sequences = dict.fromkeys((1, 2), 0)
        self.trimmed = False
        self.lead()

    def lead(self) -> None:
        self.leader = self.random.choice(self.copies)
        self.epoch += 1
        self.leader.log.begin_epoch(self.epoch)
        for producer in self.sequences:  # as producers do that lost their place
            self.sequences[producer] = -1

    def write(self) -> None:
        log = self.leader.log
        batches: list[memoryview] = []
        for _ in range(self.random.randrange(1, 4)):
            values = [self.random.randbytes(self.random.choice((1, 60, 400)))] * 2
            producer = self.random.choice((0, 1, 2))
            identity = (-1, -1, -1)
            if producer:
                if self.sequences[producer] < 0:
                    self.sequences[producer] = 0
                identity = (producer, self.epoch, self.sequences[producer])
                self.sequences[producer] += 2
            batches.append(batch(*values, producer=identity))
        log.append(batches, leader_epoch=self.epoch, now_ms=self.random.randrange(50))

    def trim(self) -> None:
        """What all hold durably, and alike, may go from the leader."""
        common = min(self.common(one.log) for one in self.copies)
        limit = min([common, *(one.log.flushed for one in self.copies)])
        if limit > self.leader.log.start:
            self.trimmed |= self.leader.log.drop_before(limit) > 0

    def common(self, log: Log) -> int:
        """Up to where a log holds the leader's batches."""
        mine, theirs = entries(log), entries(self.leader.log)
        at = max(log.start, self.leader.log.start)
        for base, data in sorted(mine.items()):
            if base >= at and theirs.get(base) != data:
                return base
        return log.end

    def exchange(self, log: Log) -> bool:
        """One question and its answer (R1, R8); whether the log is the leader's by now."""
        leader, before = self.leader.log, self.common(log)
        found = leader.end_of_epoch(log.last_epoch)
        fits = found.epoch == log.last_epoch and found.start_offset >= log.end
        if log.end < leader.start or (log.last_epoch < 0 and log.end > leader.end):
            log.reset_to(leader.start)
        elif log.last_epoch >= 0 and not fits:
            log.truncate_for(*found)
            assert log.end >= min(before, leader.end), "it gave up what its leader has"
        elif log.end < leader.end:
            piece = leader.read(log.end, self.random.choice((1, 500, 3000)), leader.end)
            data = memoryview(b"".join(bytes(one.view()) for one in piece.ranges))
            try:
                plan = log.plan_replica(data, leader_epoch=self.epoch)
            except BeginsBelow as below:
                log.cut_back(below.base_offset)
                plan = log.plan_replica(data, leader_epoch=self.epoch)
            log.append_replica(plan)
        else:
            return True
        return False

    def follow(self, copy: Copy, step: int | None, power: Random | None) -> None:
        if copy is not self.leader:
            copy.survive(step, lambda: self._some(copy), power)

    def _some(self, copy: Copy) -> None:
        for _ in range(3):
            if self.exchange(copy.log):
                return
            if self.random.random() < 0.3:
                copy.log.sync()

    def check(self) -> None:
        """They become equal."""
        self.write()
        for one in self.copies:
            for _ in range(EXCHANGES_MAX):
                if one is self.leader or self.exchange(one.log):
                    break
            one.log.sync()
        leader = self.leader.log
        for log in [one.log for one in self.copies]:
            assert log.quarantined == []
            mine, theirs = entries(log), entries(leader)
            assert {b: d for b, d in mine.items() if b >= leader.start} == theirs
            for base in theirs:
                assert log.end_of_epoch(self.epoch) == leader.end_of_epoch(self.epoch)
                assert _epoch_at(log, base) == _epoch_at(leader, base)
            if not self.trimmed:
                assert dict(log.producers) == dict(leader.producers)


def _epoch_at(log: Log, offset: int) -> int:
    return max(one.epoch for one in log.epochs if one.start_offset <= offset)


OPERATION = st.tuples(
    st.sampled_from("wwwwwfffffffflsstcC"),
    st.integers(0, 2),
    st.one_of(st.none(), st.integers(0, 25)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATION, min_size=5, max_size=40), st.integers(0, 1 << 32))
def test_logs_that_follow_each_other_become_equal(
    operations: list[tuple[str, int, int | None]], seed: int
) -> None:
    random = Random(seed)
    copies = Copies(random)
    for kind, which, step in operations:
        copy = copies.copies[which]
        if kind == "w":
            copies.write()
        elif kind == "f":
            copies.follow(copy, step, random if random.random() < 0.5 else None)
        elif kind == "l":
            copies.lead()
        elif kind == "s":
            copy.log.sync()
        elif kind == "t":
            copies.trim()
        else:
            copy.die(random if kind == "C" else None)
            if copy is copies.leader:
                copies.lead()
    copies.check()
