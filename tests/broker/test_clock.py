"""The trusted time: it may lag, it never runs ahead of the true one."""

import pytest
from hypothesis import given, strategies as st

from tailrace.broker.clock import STEP_MS, TRUST_AFTER_MS, Timekeeper, TrustedTime
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life
from tailrace.storage.heartbeat import DOUBTS_MAX, Beat, Doubt

DAY = 86_400_000
HOUR = DAY // 24
START = 1_763_690_000_000


class Machine:
    """A true time, a wall clock that may be off, a monotonic clock of each process."""

    def __init__(self) -> None:
        self.true_ms = START
        self.off_ms = 0
        self.booted_ms = START - 5_000_000  # of the monotonic clock

    def now(self) -> float:
        return (self.true_ms - self.booted_ms) / 1000

    def wall_ms(self) -> int:
        return self.true_ms + self.off_ms

    def reboot(self) -> None:
        self.booted_ms = self.true_ms - 1_000


class Kept:
    """The trusted time of one broker on that machine, over its restarts."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.time = TrustedTime(None, now_s=machine.now(), wall_ms=machine.wall_ms())

    def look(self) -> int:
        self.time.observe(self.machine.now(), self.machine.wall_ms())
        return self.time.at_ms(self.machine.now(), self.machine.wall_ms())

    def age(self, stamp_ms: int) -> int:
        self.look()
        return self.time.age_ms(stamp_ms, self.machine.now(), self.machine.wall_ms())

    def run(self, ms: int) -> int:
        self.machine.true_ms += ms
        return self.look()

    def restart(self, down_ms: int) -> int:
        beat = self.time.beat(self.machine.now(), self.machine.wall_ms())
        self.machine.true_ms += down_ms
        self.machine.reboot()
        self.time = TrustedTime(beat, now_s=self.machine.now(), wall_ms=self.machine.wall_ms())
        return self.look()


@pytest.fixture
def kept() -> Kept:
    return Kept(Machine())


def test_it_goes_with_the_clocks_as_long_as_they_agree(kept: Kept) -> None:
    for _ in range(100):
        assert kept.run(HOUR) == kept.machine.true_ms


def test_a_step_forward_counts_only_after_a_day(kept: Kept) -> None:
    kept.machine.off_ms = 30 * DAY
    assert kept.look() == START
    assert kept.run(TRUST_AFTER_MS - 1) == START + TRUST_AFTER_MS - 1
    assert kept.run(1) == START + TRUST_AFTER_MS + 30 * DAY


def test_a_step_forward_that_is_mended_leaves_nothing(kept: Kept) -> None:
    kept.machine.off_ms = 30 * DAY
    kept.run(HOUR)
    kept.machine.off_ms = 0
    assert kept.look() == kept.machine.true_ms
    assert kept.run(2 * DAY) == kept.machine.true_ms


def test_a_step_back_is_believed_and_what_mends_it_is_doubted(kept: Kept) -> None:
    kept.machine.off_ms = -30 * DAY
    assert kept.look() == START - 30 * DAY
    kept.machine.off_ms = 0
    assert kept.look() == START - 30 * DAY
    assert kept.run(DAY) == START + DAY


def test_time_without_a_broker_is_doubted_like_a_step(kept: Kept) -> None:
    assert kept.restart(9 * DAY) == START
    assert kept.run(DAY - HOUR) == START + DAY - HOUR
    assert kept.restart(0) == START + DAY - HOUR  # the doubt is not forgotten, nor how old it is
    assert kept.run(HOUR) == START + 10 * DAY


def test_nights_without_a_broker_are_believed_one_after_the_other(kept: Kept) -> None:
    for _ in range(30):
        kept.run(8 * HOUR)
        kept.restart(16 * HOUR)
    behind = kept.machine.true_ms - kept.look()
    assert behind == 3 * 16 * HOUR  # a day of running later each


def test_many_steps_are_kept_in_little_room(kept: Kept) -> None:
    for step in range(1, 50):
        kept.machine.off_ms += 2 * STEP_MS
        assert kept.run(60_000) == START + step * 60_000
        beat = kept.time.beat(kept.machine.now(), kept.machine.wall_ms())
        assert len(beat.doubts) <= DOUBTS_MAX
    assert kept.run(DAY) == kept.machine.wall_ms()


def test_what_was_stamped_since_a_step_ages_as_the_wall_clock_says(kept: Kept) -> None:
    before = kept.machine.wall_ms()
    kept.restart(5 * DAY)
    assert kept.age(before) == 0
    stamp = kept.machine.wall_ms()
    kept.run(2 * HOUR)
    assert (kept.age(stamp), kept.age(before)) == (2 * HOUR, 2 * HOUR)
    assert kept.age(kept.machine.wall_ms() + HOUR) == -HOUR


Step = tuple[str, int]


@given(
    st.lists(
        st.tuples(st.sampled_from(("run", "step", "restart")), st.integers(-40 * HOUR, 40 * HOUR)),
        max_size=40,
    )
)
def test_no_record_seems_older_than_it_is(steps: list[Step]) -> None:
    """As long as no wrong clock stands for a day, whatever else happens."""
    kept = Kept(Machine())
    stamped: list[tuple[int, int]] = []  # true time, stamp; append times never fall
    wrong_since = START
    for kind, size in steps:
        stamp = max([kept.machine.wall_ms(), *(stamp for _, stamp in stamped)])
        stamped.append((kept.machine.true_ms, stamp))
        if kind == "run":
            kept.run(abs(size) // 10)
        elif kind == "restart":
            kept.restart(abs(size))
        else:
            kept.machine.off_ms = 0 if kept.machine.off_ms else size
            wrong_since = kept.machine.true_ms
            kept.look()
        if kept.machine.off_ms and kept.machine.true_ms - wrong_since >= DAY // 2:
            kept.machine.off_ms = 0  # somebody mends it in time
            kept.look()
        for true_ms, given_ms in stamped:
            assert kept.age(given_ms) <= kept.machine.true_ms - true_ms + STEP_MS
        assert kept.look() <= kept.machine.true_ms + STEP_MS


def keeper(machine: Machine, disk: SimDisk) -> Timekeeper:
    return Timekeeper(machine, disk, "/clock")


def test_the_file_carries_it_over_a_restart() -> None:
    machine, disk = Machine(), SimDisk(Platter(), Life("test"))
    keeper(machine, disk).write_beat()
    machine.off_ms = 300 * DAY
    assert keeper(machine, disk).now_ms() == START


def test_without_the_file_the_oldest_append_time_stands_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine, disk = Machine(), SimDisk(Platter(), Life("test"))
    keeper(machine, disk).write_beat()
    disk.remove("/clock")
    machine.off_ms = 300 * DAY
    time = keeper(machine, disk)
    time.begin(START - HOUR)
    assert time.now_ms() == START - HOUR
    assert "T110: broker clock is 25,923,600 s ahead of the oldest record" in caplog.text


def test_a_new_directory_believes_the_wall_clock() -> None:
    machine, disk = Machine(), SimDisk(Platter(), Life("test"))
    time = keeper(machine, disk)
    time.begin(None)
    assert time.now_ms() == START


def test_a_step_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    machine, disk = Machine(), SimDisk(Platter(), Life("test"))
    time = keeper(machine, disk)
    machine.off_ms = -HOUR
    time.now_ms()
    time.now_ms()
    assert caplog.text.count("T110: broker clock is 3,600 s behind its monotonic clock") == 1


def test_doubts_are_in_the_beat_with_their_age() -> None:
    machine = Machine()
    kept = Kept(machine)
    machine.off_ms = DAY
    kept.run(0)
    kept.run(HOUR)
    beat = kept.time.beat(machine.now(), machine.wall_ms())
    assert beat == Beat(START + HOUR, (Doubt(DAY, HOUR),))
