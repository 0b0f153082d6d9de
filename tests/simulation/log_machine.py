"""A log is a list, whatever is done to it and whenever it dies: a state machine for Hypothesis.

    python -m tests.simulation.log_machine --examples 2000

Every rule does one thing to a log on a simulated disk and to the model (``crash_model``). A death
may be planned: then some later operation on the disk is not done any more, power fails with an
outcome by chance or only the process dies, and a new process must find what the model allows.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from random import Random

from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tailrace.protocol.batch import parse_header
from tailrace.protocol.errors import BrokerError, TailraceError
from tailrace.simulation.chance import random_pick
from tailrace.simulation.disk import TOTAL_BYTES, Platter
from tailrace.simulation.life import NodeDead
from tailrace.storage.log import Appended
from tailrace.storage.producers import WINDOW
from tests.simulation.crash_checks import check_log, check_recovered
from tests.simulation.crash_model import (
    Process,
    Sent,
    batches_of,
    next_sequence,
    records_of,
    small_scale,
)

PRODUCERS = st.integers(1, 3)
SHARES = st.floats(0, 1)
STEPS = 30


def mortal(step: Callable[..., None]) -> Callable[..., None]:
    """The process may die in this rule, if its death is planned."""

    @wraps(step)
    def until_death(machine: "LogMachine", *given: object, **drawn: object) -> None:
        try:
            step(machine, *given, **drawn)
        except NodeDead:
            machine.come_back(machine.fate)

    return until_death


class LogMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.platter = Platter()
        self.process = Process(self.platter)
        self.process.open()
        self.fate: int | None = None  # of a planned death: the seed of a power cut; None: SIGKILL

    # ── death ────────────────────────────────────────────────────────────────────────────────

    @rule(steps=st.integers(0, 12), fate=st.none() | st.integers(0, 1 << 16))
    def plan_death(self, steps: int, fate: int | None) -> None:
        """Within the next rules."""
        life = self.process.life
        if life.dies_at_step is None or life.dies_at_step < life.steps:
            life.dies_at_step, self.fate = life.steps + steps, fate

    @rule(fate=st.none() | st.integers(0, 1 << 16))
    def die(self, fate: int | None) -> None:
        """Between two operations."""
        self.come_back(fate)

    def come_back(self, fate: int | None) -> None:
        """The process is dead: recover, hold it against the model, go on with what is left."""
        process, dead_inside = self.process, self.process.life.dead
        end = process.model.end
        self.platter.size_bytes = TOTAL_BYTES
        if fate is not None:
            self.platter.power_cut(random_pick(Random(fate)))
        check_recovered(self.platter, process.model)
        process.die()
        process.life.dies_at_step = None
        process.open(full=fate is not None and fate % 2 == 0)
        if fate is None and not dead_inside:
            assert process.log.end == end, "a killed process loses nothing that was written"

    @rule(full=st.booleans())
    @mortal
    def restart(self, full: bool) -> None:
        """Gracefully."""
        end = self.process.log.end
        self.process.close()
        self.process.open(clean=True, full=full)
        assert self.process.log.end == self.process.log.flushed == end
        assert not self.process.log.recovery.cuts
        assert self.process.log.recovery.clean == (not full)

    # ── appending ────────────────────────────────────────────────────────────────────────────

    @rule(
        producer=st.just(-1) | PRODUCERS,
        sizes=st.lists(st.sampled_from([4, 60, 300, 900]), min_size=1, max_size=4),
        batches=st.integers(1, WINDOW + 2),
        later=st.integers(-5, 20),
    )
    @mortal
    def append(self, producer: int, sizes: list[int], batches: int, later: int) -> None:
        self.process.append(*sizes, producer=producer, batches=batches, later=later)

    @initialize(segments=st.integers(0, 4))
    def begin(self, segments: int) -> None:
        self.fill(segments)

    @rule(segments=st.integers(1, 3))
    @mortal
    def fill(self, segments: int) -> None:
        """Sealed, synced segments with indexes and snapshots: what may be removed and rewritten."""
        for number in range(segments):
            self.process.append(60, 60, producer=1)
            self.process.append(60, 4, 4, producer=2 + number % 2, batches=2)
            self.process.sync()
            self.process.roll()
            self.process.append(30)
            self.process.sync()

    @rule(producer=PRODUCERS, size=st.integers(4, 3000), room=st.integers(0, 2))
    @mortal
    def append_to_a_full_disk(self, producer: int, size: int, room: int) -> None:
        before = records_of(self.process.log)
        self.platter.size_bytes = self.platter.used_bytes + 4096 * room
        try:
            self.process.append(size, producer=producer)
        except OSError:
            assert records_of(self.process.log) == before, "a failed append changes nothing"
        self.platter.size_bytes = TOTAL_BYTES

    @rule(producer=PRODUCERS, back=st.integers(1, WINDOW))
    @mortal
    def append_again(self, producer: int, back: int) -> None:
        sent = self.process.model.of(producer, self.process.log.end)
        if len(sent) < back:
            return
        one = sent[-back]
        [got] = self.process.log.append(
            [one.encoded()], leader_epoch=self.process.epoch, now_ms=self.process.time
        )
        expected = Appended(one.base, one.next, one.time, duplicate=True)
        assert got == expected, f"S15: {got}, not {expected}"

    @rule(producer=PRODUCERS, gap=st.integers(1, 5))
    @mortal
    def append_with_a_gap(self, producer: int, gap: int) -> None:
        log = self.process.log
        sent = self.process.model.of(producer, log.end)
        one = Sent(log.end, ((None, b"gap"),), producer, next_sequence(sent) + gap)
        [got] = log.append(
            [one.encoded()], leader_epoch=self.process.epoch, now_ms=self.process.time
        )
        assert isinstance(got, TailraceError), "S15"
        assert got.code == ("T038" if sent else "T039")

    @rule()
    @mortal
    def sync(self) -> None:
        self.process.sync()
        assert self.process.log.flushed == self.process.log.end

    @rule()
    @mortal
    def roll(self) -> None:
        self.process.roll()

    @rule(ahead=st.integers(1, 6000))
    @mortal
    def write_ahead(self, ahead: int) -> None:
        self.process.write_ahead(ahead)

    @rule()
    @mortal
    def begin_epoch(self) -> None:
        self.process.begin_epoch()

    @rule(fate=st.integers(0, 1 << 16))
    def fail_a_sync(self, fate: int) -> None:
        """The process must end. The next one is told, and power fails behind its recovery."""
        process = self.process
        process.life.dies_at_step = None
        process.append(200, producer=1)
        self.platter.failing_syncs = 1
        noticed = False
        try:
            process.sync()
        except BrokerError:
            noticed = True
        if noticed:
            process.die()
            process.open(suspect=True)
        self.come_back(fate)

    # ── trimming ─────────────────────────────────────────────────────────────────────────────

    @rule(share=SHARES)
    @mortal
    def drop_before(self, share: float) -> None:
        log = self.process.log
        self.process.drop_before(log.start + int(share * (log.flushed - log.start)))

    @rule(share=SHARES)
    @mortal
    def set_start(self, share: float) -> None:
        log = self.process.log
        self.process.set_start(log.start + int(share * (log.flushed - log.start)))

    @rule(share=SHARES)
    @precondition(lambda self: self.process.log.start == 0 and not self.process.model.gone[0])
    @mortal
    def truncate_to(self, share: float) -> None:
        # Not behind a trim, which may have relied on a snapshot of producers above the cut: until
        # there are followers nothing is ever truncated, and then the high watermark bounds both.
        log = self.process.log
        wanted = log.start + int(share * (log.end - log.start))
        bases = {one.base for one in self.process.model.sent} | {log.end}
        at = max((base for base in bases if log.start <= base <= wanted), default=None)
        if at is not None:
            self.process.truncate_to(at)
            assert log.end == at

    # ── rewriting ────────────────────────────────────────────────────────────────────────────

    @rule(share=SHARES, count=st.integers(1, 3), dropped=st.sampled_from([0.1, 0.5, 1.0]))
    @mortal
    def rewrite(self, share: float, count: int, dropped: float) -> None:
        """Compaction or erasure of neighbouring segments, without a share of their records."""
        sources = self.process.log.rewritable(self.process.log.end)
        at = int(share * len(sources))
        run = sources[at : at + count]
        while any(one.next_offset != other.base_offset for one, other in pairwise(run)):
            run.pop()
        if run:
            chance = Random(run[0].base_offset)
            offsets = range(run[0].base_offset, run[-1].next_offset)
            self.process.rewrite({o for o in offsets if chance.random() < dropped}, run)

    @rule()
    @mortal
    def rewrite_from_start(self) -> None:
        """Records below the log start leave the disk."""
        sources = self.process.log.rewritable(self.process.log.end)
        if sources and sources[0].base_offset < self.process.log.start < sources[0].next_offset:
            self.process.rewrite_from_start()

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    @rule(share=SHARES, bytes_max=st.integers(0, 5000), bound=SHARES)
    def read(self, share: float, bytes_max: int, bound: float) -> None:
        log = self.process.log
        offset = log.start + int(share * (log.end - log.start))
        up_to = offset + int(bound * (log.end - offset))
        part = log.read(offset, bytes_max, up_to)
        data = b"".join(bytes(piece.view()) for piece in part.ranges)
        within = [(end, entry) for _, end, entry in batches_of(log) if offset < end <= up_to]
        count = sum(1 for end, _ in within if end <= part.next_offset)
        assert data == b"".join(entry for _, entry in within[:count]), "whole batches, in order"
        assert len(data) == part.length, "never a byte beyond the last of them"
        assert count or not within, "there is something to read"
        assert part.length <= bytes_max or count == 1

    @rule(time=st.integers(990, 1300))
    def find_time(self, time: int) -> None:
        log = self.process.log
        headers = [parse_header(entry) for _, _, entry in batches_of(log)]
        late = [each for each in headers if each.append_time >= time and each.record_count]
        expected = (max(late[0].base_offset, log.start), late[0].append_time) if late else None
        assert log.offset_for_time(time, log.end) == expected

    @invariant()
    def log_equals_model(self) -> None:
        check_log(self.process.log, self.process.model)
        assert self.process.log.end == self.process.model.end


def run(examples: int) -> None:
    """Try so many random lives; raises what is wrong, shrunk, with the steps that lead there."""
    with small_scale():
        run_state_machine_as_test(LogMachine, settings=configured(examples))


def examples_to_failure(examples: int) -> int | None:
    """Which of the first examples, always the same, is the first that fails; None: none does."""
    tried = 0

    class Counted(LogMachine):
        def __init__(self) -> None:
            nonlocal tried
            tried += 1
            super().__init__()

    quick = settings(
        configured(examples), derandomize=True, database=None, phases=(Phase.generate,)
    )
    try:
        with small_scale():
            run_state_machine_as_test(Counted, settings=quick)
    except Exception:
        return tried
    return None


def configured(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.log_machine")
    parser.add_argument("--examples", type=int, default=20_000)
    options = parser.parse_args()
    began = time.perf_counter()
    run(options.examples)
    seconds = time.perf_counter() - began
    print(f"{options.examples:,} examples of up to {STEPS} steps, {seconds:.0f} s")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
