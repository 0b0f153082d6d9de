"""A log is a list: any sequence of operations and restarts gives what the list gives."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tailrace.protocol.batch import parse_header
from tailrace.protocol.errors import TailraceError
from tailrace.storage.log import Appended
from tailrace.storage.producers import WINDOW
from tests.storage.logs import EPOCH, append, batch, entries, open_log

PRODUCERS = st.integers(1, 3)


@dataclass(frozen=True)
class Written:
    """One batch of the model."""

    base: int
    values: tuple[bytes, ...]
    time: int
    producer: tuple[int, int]  # id, base sequence; -1: none

    @property
    def next(self) -> int:
        return self.base + len(self.values)


class LogModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.log = open_log(self.path)
        self.model: list[Written] = []
        self.removed: list[Written] = []  # below the start; their sequences are still known
        self.start = 0
        self.now = 1000
        self.counter = 0

    def teardown(self) -> None:
        self.log.close(clean=False)
        shutil.rmtree(self.path)

    def values(self, count: int, size: int) -> tuple[bytes, ...]:
        self.counter += 1
        return tuple(f"{self.counter}.{at}".encode().ljust(size, b"-") for at in range(count))

    def sent(self, producer: int) -> list[Written]:
        return [one for one in self.removed + self.model if one.producer[0] == producer]

    def next_sequence(self, producer: int) -> int:
        sent = self.sent(producer)
        return sent[-1].producer[1] + len(sent[-1].values) if sent else 0

    @property
    def end(self) -> int:
        return self.model[-1].next if self.model else self.log.end

    @rule(count=st.integers(1, 4), size=st.integers(0, 900), later=st.integers(-5, 20))
    def append_plain(self, count: int, size: int, later: int) -> None:
        self.now += later
        values = self.values(count, size)
        (got,) = append(self.log, batch(*values), now_ms=self.now)
        self.model.append(Written(got.base_offset, values, got.append_time, (-1, -1)))

    @rule(producer=PRODUCERS, counts=st.lists(st.integers(1, 3), min_size=1, max_size=7))
    def append_in_sequence(self, producer: int, counts: list[int]) -> None:
        sequence = self.next_sequence(producer)
        planned: list[tuple[int, tuple[bytes, ...]]] = []
        for count in counts:
            planned.append((sequence, self.values(count, 40)))
            sequence += count
        batches = [batch(*values, producer=(producer, 0, at)) for at, values in planned]
        results = append(self.log, *batches, now_ms=self.now)
        for (at, values), got in zip(planned, results, strict=True):
            assert not got.duplicate
            self.model.append(Written(got.base_offset, values, got.append_time, (producer, at)))

    @rule(producer=PRODUCERS, back=st.integers(1, WINDOW))
    def append_again(self, producer: int, back: int) -> None:
        sent = self.sent(producer)
        if len(sent) < back:
            return
        one = sent[-back]
        entry = batch(*one.values, producer=(producer, 0, one.producer[1]))
        (got,) = append(self.log, entry, now_ms=self.now)
        assert got == Appended(one.base, one.next, one.time, duplicate=True)

    @rule(producer=PRODUCERS, gap=st.integers(1, 5))
    def append_with_a_gap(self, producer: int, gap: int) -> None:
        sequence = self.next_sequence(producer)
        entry = batch(b"gap", producer=(producer, 0, sequence + gap))
        (got,) = self.log.append([entry], leader_epoch=EPOCH, now_ms=self.now)
        assert isinstance(got, TailraceError)
        assert got.code == ("T038" if self.sent(producer) else "T039")

    @rule()
    def sync(self) -> None:
        self.log.sync()
        assert self.log.flushed == self.log.end

    @rule(clean=st.booleans(), full=st.booleans())
    def restart(self, clean: bool, full: bool) -> None:
        self.log.close(clean=clean)
        self.log = open_log(self.path, clean=clean, full=full)
        report = self.log.recovery
        assert (report.cuts, report.quarantined) == ([], [])
        # A kill between a roll and the next sync round leaves the sealed segment without one.
        assert all(name.endswith(".index") and not clean for name in report.rebuilt)
        assert report.clean == (clean and not full)
        assert self.log.flushed == self.log.end

    @rule(share=st.floats(0, 1))
    def truncate(self, share: float) -> None:
        offset = self.start + int(share * (self.end - self.start))
        holder = next((one for one in self.model if one.base <= offset < one.next), None)
        if offset < self.start or (holder is not None and holder.base < self.start):
            return
        self.log.truncate_to(offset)
        # Sequences of removed batches are forgotten with them; those below the start may be known
        # from a snapshot or not, so the model stops asking for them.
        self.model = [one for one in self.model if one.next <= offset]
        if self.removed:
            self.abandon_producers()

    def abandon_producers(self) -> None:
        """Begin anew with producers nobody knows."""
        self.log.close(clean=False)
        shutil.rmtree(self.path / "log")
        self.log = open_log(self.path)
        self.model, self.removed, self.start = [], [], 0

    @precondition(lambda self: self.model)
    @rule(share=st.floats(0, 1))
    def drop(self, share: float) -> None:
        self.log.drop_before(int(share * self.end))
        assert self.log.start == self.start or self.start < self.log.start <= share * self.end
        self.move_start()

    @precondition(lambda self: self.model)
    @rule(share=st.floats(0, 1))
    def set_start(self, share: float) -> None:
        self.log.sync()
        self.log.set_start(int(share * self.end))
        self.move_start()

    def move_start(self) -> None:
        self.start = self.log.start
        gone = [one for one in self.model if one.next <= self.start]
        # The last batch stays in the model, as it tells the end.
        self.removed += [one for one in gone if one is not self.model[-1]]
        self.model = [one for one in self.model if one not in gone or one is self.model[-1]]

    @rule()
    def roll(self) -> None:
        self.log.roll_if_old(1 << 60)

    @rule(ahead=st.integers(1, 3000))
    def write_ahead(self, ahead: int) -> None:
        assert 0 <= self.log.write_ahead(ahead) <= ahead

    @rule(share=st.floats(0, 1), bytes_max=st.integers(0, 5000), bound=st.floats(0, 1))
    def read(self, share: float, bytes_max: int, bound: float) -> None:
        offset = self.start + int(share * (self.end - self.start))
        up_to = offset + int(bound * (self.end - offset))
        part = self.log.read(offset, bytes_max, up_to)
        data = b"".join(bytes(piece.view()) for piece in part.ranges)
        wanted = [one for one in self.model if one.next > offset and one.next <= up_to]
        position = 0
        for one in wanted:
            if position == len(data):
                break
            header = parse_header(data, position)
            assert (header.base_offset, header.next_offset) == (one.base, one.next)
            position += header.size_bytes
        assert position == len(data) == part.length
        assert len(part.ranges) > 0 or not wanted
        assert part.length <= bytes_max or part.next_offset == wanted[0].next

    @rule(time=st.integers(990, 1300))
    def find_time(self, time: int) -> None:
        found = next((w for w in self.model if w.time >= time and w.next > self.start), None)
        expected = None if found is None else (max(found.base, self.start), found.time)
        assert self.log.offset_for_time(time, self.log.end) == expected

    @invariant()
    def log_equals_model(self) -> None:
        assert (self.log.start, self.log.end) == (self.start, self.end)
        found = entries(self.log, bytes_max=700)
        expected = [one for one in self.model if one.next > self.start]
        assert sorted(found) == [one.base for one in expected]
        for one in expected:
            for value in one.values:
                assert value in found[one.base]


LogModel.TestCase.settings = settings(stateful_step_count=25)
TestLogModel = LogModel.TestCase
