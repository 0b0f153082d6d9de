"""Random lives of a log: operations, deaths at any disk operation, power cuts, and again.

After every start the log must be a prefix of what was appended and hold all that was synced, but
for batches that were rewritten away, all of one rewriting or none; nothing may be quarantined, and
the last batches of every producer must be known as duplicates at their offsets, also those that
are gone. A failure names the seed. (Every crash point of short scripts is visited by
tests/simulation/test_log_crashes.py; this one mixes the operations.)
"""

from dataclasses import dataclass
from random import Random

import pytest

from tailrace.protocol.batch import decode_columns, encode_batch, header_seed, parse_header
from tailrace.simulation.chance import random_pick
from tailrace.simulation.disk import TOTAL_BYTES, Platter, SimDisk
from tailrace.simulation.life import Life, NodeDead
from tailrace.storage.log import Appended, Log, LogConfig
from tailrace.storage.producers import WINDOW
from tailrace.storage.rewrite import rewrite
from tests.storage.rewriting import Without

TOPIC_ID = bytes(range(16))
SEED = header_seed(TOPIC_ID, 0)
CONFIG = LogConfig(segment_bytes=1500, index_interval_bytes=300)
STARTS = 5
PRODUCERS = (1, 2)


@dataclass(frozen=True)
class Sent:
    """A batch that may be in the log at its offset."""

    payload: bytes
    count: int
    producer: int  # 0: none
    sequence: int


class History:
    """One log over several starts, and what is known of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.platter = Platter()
        self.sent: dict[int, Sent] = {}  # by base offset; may reach beyond what survives
        self.gone: set[int] = set()  # of those: rewritten away
        self.going: set[int] = set()  # by a rewriting that may have died
        self.rewritten = False  # then what was ever durable counts as committed: no cut below
        self.durable = 0
        self.epoch = 0
        self.clean = False

    def open(self, disk: SimDisk) -> Log:
        disk.make_directory("/data")
        disk.sync_directory("/")
        log = Log.open(
            disk,
            "/data/log",
            topic_id=TOPIC_ID,
            partition=0,
            config=CONFIG,
            now_ms=1,
            clean=self.clean,
        )
        self.clean = False
        return log

    def check(self, log: Log) -> None:
        """What a start must find."""
        assert log.quarantined == []
        assert log.end >= self.durable
        self.sent = {base: one for base, one in self.sent.items() if base < log.end}
        found = payloads(log)
        if found != self.readable(log):
            self.gone |= self.going
        self.going = set()
        assert found == self.readable(log)
        self.durable = log.end
        self.epoch = max([self.epoch, *(one.epoch for one in log.epochs)]) + 1
        for producer in PRODUCERS:
            for base, one in self.of(producer)[-WINDOW:]:
                [again] = log.append([encoded(one)], leader_epoch=self.epoch, now_ms=1)
                assert isinstance(again, Appended)
                assert (again.base_offset, again.duplicate) == (base, True)

    def of(self, producer: int) -> list[tuple[int, Sent]]:
        return [(base, one) for base, one in sorted(self.sent.items()) if one.producer == producer]

    def readable(self, log: Log) -> dict[int, bytes]:
        return {
            base: one.payload
            for base, one in self.sent.items()
            if base + one.count > log.start and base not in self.gone
        }

    def step(self, disk: SimDisk, log: Log) -> None:
        """One random operation."""
        roll = self.random.randrange(100)
        if roll < 60:
            self.append(log)
        elif roll < 80:
            log.sync()
            self.durable = log.end
        elif roll < 85:
            log.roll_if_old(1 << 50)
        elif roll < 90:
            log.drop_before(self.random.randrange(log.start, log.flushed + 1))
        elif roll < 93:
            log.set_start(self.random.randrange(log.start, log.flushed + 1))
        elif roll < 96 and log.start == 0 and self.cuts(log):
            offset = self.random.choice(self.cuts(log))
            self.durable = min(self.durable, offset)
            log.truncate_to(offset)
            self.durable = offset
            self.sent = {base: one for base, one in self.sent.items() if base < offset}
        else:
            log.write_ahead(self.random.randrange(1, 3000))
        if self.random.random() < 0.1:
            self.rewrite(disk, log)
        assert payloads(log) == self.readable(log)

    def cuts(self, log: Log) -> list[int]:
        """Where the log may be truncated."""
        committed = log.flushed if self.rewritten else 0
        return [base for base in self.sent if base >= committed]

    def rewrite(self, disk: SimDisk, log: Log) -> None:
        """Some neighbouring segments without some of their batches, and parts of others."""
        found = log.rewritable(log.end)
        if not found:
            return
        first = self.random.randrange(len(found))
        last = first + 1
        while last < len(found) and last < first + 3:
            if found[last - 1].next_offset != found[last].base_offset:
                break
            last += 1
        sources = found[first:last]
        base, following = sources[0].base_offset, sources[-1].next_offset
        here = [at for at in self.sent if base <= at < following and at not in self.gone]
        self.going = {at for at in here if self.random.random() < 0.4}
        drop = {at + n for at in self.going for n in range(self.sent[at].count)}
        drop |= {at + 1 for at in here if self.random.random() < 0.2 and self.sent[at].count > 1}
        made = rewrite(
            *(disk, log.path, sources, SEED, Without(drop)),
            index_interval=300,
            pace=lambda _: None,
        )
        if made.changed:
            self.rewritten = True
            job = log.swap(made)
            job.publish()
            log.replace(job)
            job.finish()
            log.replaced(job)
            self.gone |= self.going
        self.going = set()

    def append(self, log: Log) -> None:
        """Up to three batches, now and then on a full disk."""
        batches: list[memoryview] = []
        end = log.end
        before = dict(self.sent)
        for _ in range(self.random.randrange(1, 4)):
            producer = self.random.choice([0, *PRODUCERS])
            last = self.of(producer)[-1:]
            sequence = last[0][1].sequence + last[0][1].count if last else 0
            count, size = self.random.randrange(1, 4), self.random.choice([1, 50, 300, 1200])
            one = Sent(self.random.randbytes(size), count, producer, sequence)
            batches.append(encoded(one))
            # What dies in the midst of it may be found later, so it counts before it is tried.
            self.sent[end] = one
            end += count
        if self.random.random() < 0.1:
            self.platter.size_bytes = self.platter.used_bytes + self.random.choice([0, 4096])
        try:
            log.append(batches, leader_epoch=self.epoch, now_ms=self.random.randrange(100))
        except OSError:
            self.sent = before
        finally:
            self.platter.size_bytes = TOTAL_BYTES

    def live(self) -> None:
        """One start, some operations, one end."""
        life = Life("n1")
        life.dies_at_step = self.random.choice([None, self.random.randrange(1, 60)])
        try:
            disk = SimDisk(self.platter, life)
            log = self.open(disk)
            self.check(log)
            for _ in range(self.random.randrange(1, 25)):
                self.step(disk, log)
            if self.random.random() < 0.3:
                log.close(clean=True)
                self.durable, self.clean = log.end, True
        except NodeDead:
            pass
        life.dead = True
        if self.random.random() < 0.7:
            self.platter.power_cut(random_pick(self.random))


def encoded(one: Sent) -> memoryview:
    numbers = (one.producer, 0, one.sequence) if one.producer else (-1, -1, -1)
    data = encode_batch(
        SEED,
        values=[one.payload] * one.count,
        timestamps=1,
        producer_id=numbers[0],
        producer_epoch=numbers[1],
        base_sequence=numbers[2],
    )
    return memoryview(bytearray(data))


def payloads(log: Log) -> dict[int, bytes]:
    """The first value of every readable batch, by base offset."""
    found: dict[int, bytes] = {}
    at = log.start
    while at < log.end:
        part = log.read(at, 700, log.end)
        data = b"".join(bytes(piece.view()) for piece in part.ranges)
        while data:
            header = parse_header(data)
            columns = decode_columns(data, header)
            assert len(set(columns.values)) == min(1, header.record_count)
            if columns.values:
                found[header.base_offset] = columns.values[0] or b""
            data = data[header.size_bytes :]
        at = part.next_offset
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_log_survives_any_life(seed: int) -> None:
    history = History(seed)
    for _ in range(STARTS):
        history.live()
