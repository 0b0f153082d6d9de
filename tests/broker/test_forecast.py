"""Forecasts of loss, held against a log that retention really trims."""

from dataclasses import dataclass, field

import pytest

from tailrace.broker.forecast import Aged, Keeping, Pressure, margin_s
from tailrace.storage.retention import RetentionPolicy, SegmentFacts, segments_to_drop

RECORD_BYTES = 100
LATE_S = 0.5  # of the simulated looks


@dataclass
class World:
    """A log that is written at a rate, rolled by age or size, and trimmed each half second."""

    retention_s: float = 60.0
    retention_bytes: int | None = None
    segment_age_s: float = 7.5
    segment_bytes: int = 1 << 30
    write_rate: float = 40.0
    now: float = 0.0
    end: float = 0.0
    segments: list[list[float]] = field(
        default_factory=list[list[float]]
    )  # base, next, first, last

    def step(self) -> None:
        self.now += LATE_S
        before, self.end = self.end, self.end + self.write_rate * LATE_S
        if not self.segments:
            self.segments.append([0, 0, self.now, self.now])
        active = self.segments[-1]
        full = (self.end - active[0]) * RECORD_BYTES > self.segment_bytes
        if active[1] > active[0] and (full or self.now - active[2] >= self.segment_age_s):
            self.segments.append([int(before), int(before), self.now, self.now])
            active = self.segments[-1]
        if int(self.end) > active[1]:
            active[1:] = [int(self.end), active[2], self.now]
        gone = segments_to_drop(
            self.facts(),
            RetentionPolicy(
                int(self.retention_s * 1000) if self.retention_s < 1e9 else None,
                self.retention_bytes,
            ),
            age_ms=lambda one: int(self.now * 1000) - (one.last_append_time or 0),
            high_watermark=int(self.end),
        )
        del self.segments[:gone]

    def facts(self) -> list[SegmentFacts]:
        last = len(self.segments) - 1
        return [
            SegmentFacts(
                int(base),
                int(following),
                int(following - base) * RECORD_BYTES,
                int(first * 1000),
                int(final * 1000),
                at < last,
            )
            for at, (base, following, first, final) in enumerate(self.segments)
        ]

    @property
    def start(self) -> int:
        return int(self.segments[0][0])

    def forecast(self, position: float, rate: float) -> float | None:
        aged = [
            Aged(
                one,
                self.now - (one.first_append_time or 0) / 1000,
                self.now - (one.last_append_time or 0) / 1000,
            )
            for one in self.facts()
            if one.next_offset > position or not one.sealed
        ]
        keeping = Keeping(
            self.retention_s,
            self.retention_bytes,
            self.segment_age_s,
            self.segment_bytes,
            self.write_rate,
            self.write_rate * RECORD_BYTES,
        )
        held_bytes = sum(one.facts.size_bytes for one in aged)
        return margin_s(
            int(position), rate, aged, keeping, end=int(self.end), held_bytes=held_bytes
        )

    def lost_after(self, position: float, rate: float, at_most_s: float) -> float | None:
        """How long it really takes until the log starts behind the group."""
        began = self.now
        while self.now - began < at_most_s:
            self.step()
            position = min(position + rate * LATE_S, self.end)
            if position < self.start:
                return self.now - began
        return None


def grown(world: World, seconds: float) -> World:
    for _ in range(int(seconds / LATE_S)):
        world.step()
    return world


@pytest.mark.parametrize("back", [1, 100, 300, 1_000, 2_000, 2_300])
@pytest.mark.parametrize("age", [3.0, 31.0, 200.0])
def test_stalled_group_loses_its_records_when_it_was_said(age: float, back: int) -> None:
    world = grown(World(), age)
    position = world.end - back
    if position < world.start:
        return
    said = world.forecast(position, 0)
    really = world.lost_after(position, 0, 200)
    assert said is not None
    assert really is not None
    assert -0.1 <= really - said <= 2 * LATE_S


@pytest.mark.parametrize(
    ("rate", "write_rate"), [(39.0, 40.0), (20.0, 40.0), (35.0, 40.0), (5.0, 40.0), (4.0, 5.0)]
)
def test_slow_group_loses_records_when_it_was_said(rate: float, write_rate: float) -> None:
    world = grown(World(write_rate=write_rate), 100)
    position = world.end - 200 * write_rate / 40
    said = world.forecast(position, rate)
    really = world.lost_after(position, rate, 5_000)
    assert said is not None
    assert really is not None
    assert abs(really - said) <= world.segment_age_s + 0.02 * really


@pytest.mark.parametrize("rate", [40.0, 60.0])
def test_group_that_keeps_up_loses_nothing(rate: float) -> None:
    world = grown(World(), 100)
    assert world.forecast(world.end - 100, rate) is None
    assert world.lost_after(world.end - 100, rate, 500) is None


def test_fast_group_may_still_lose_what_is_about_to_expire() -> None:
    world = grown(World(), 100)
    position = float(world.start)
    said = world.forecast(position, 50.0)
    really = world.lost_after(position, 50.0, 500)
    assert said is not None
    assert really is not None
    assert abs(really - said) <= 2 * LATE_S


def test_log_that_is_not_written_any_more_expires_by_its_last_record() -> None:
    world = grown(World(), 30)
    position = world.end - 5
    world.write_rate = 0.0
    said = world.forecast(position, 0)
    assert said is not None
    assert said == pytest.approx(60, abs=0.1)
    # The simulated log closes a segment only when it is written; the janitor does so by age.
    world.segments.append([world.end, world.end, world.now, world.now])
    really = world.lost_after(position, 0, 100)
    assert really is not None
    assert really - said <= 2 * LATE_S


def test_group_at_the_end_has_nothing_to_lose() -> None:
    world = grown(World(), 30)
    assert world.forecast(world.end, 0) is None


def test_nothing_is_lost_where_nothing_is_removed() -> None:
    world = grown(World(retention_s=float("inf"), segment_age_s=86_400), 100)
    assert world.forecast(0, 0) is None
    assert world.forecast(0, 1) is None


@pytest.mark.parametrize("back", [100, 3_000])
def test_retention_by_size_goes_by_the_present_growth(back: int) -> None:
    world = World(
        retention_s=float("inf"),
        retention_bytes=400_000,
        segment_age_s=86_400,
        segment_bytes=50_000,
    )
    grown(world, 200)
    position = world.end - back
    said = world.forecast(position, 0)
    really = world.lost_after(position, 0, 1_000)
    assert said is not None
    assert really is not None
    assert abs(really - said) <= 13  # one segment is written in 12.5 s
    slow = world.forecast(world.end - 50, 30.0)
    assert slow is not None
    assert slow > 100


def test_what_lies_beyond_a_century_is_never() -> None:
    facts = SegmentFacts(0, 10, 1_000, 0, 0, sealed=True)
    keeping = Keeping(1e12, None, 86_400, 1 << 27, 0, 0)
    assert margin_s(5, 0, [Aged(facts, 10, 10)], keeping, end=10) is None


def test_pressure_drops_the_oldest_first_in_steps_of_half_the_room() -> None:
    # Ten segments of 10 bytes, 100 s to 10 s old; 200 bytes of room, 40 are made at a time.
    droppable = [(10.0 * age, 10) for age in range(1, 11)]
    pressure = Pressure(droppable, room_bytes=200, high_bytes=80, growth_rate=2.0)
    assert pressure.drops_in_s(100) == pytest.approx(80)  # 160 bytes more, and room is made
    assert pressure.drops_in_s(70) == pytest.approx(80)  # the fourth goes with them
    assert pressure.drops_in_s(60) == pytest.approx(100)
    assert pressure.drops_in_s(-5) == pytest.approx(80 + 40)
    still = Pressure(droppable, room_bytes=200, high_bytes=80, growth_rate=0.0)
    assert still.drops_in_s(100) == float("inf")
    short = Pressure(droppable, room_bytes=10, high_bytes=80, growth_rate=0.0)
    assert short.drops_in_s(100) == 0.0


def test_margin_is_the_nearer_of_retention_and_pressure() -> None:
    facts = SegmentFacts(0, 10, 1_000, 0, 0, sealed=True)
    keeping = Keeping(3_600, None, 86_400, 1 << 27, 1.0, 100.0)
    pressure = Pressure([(600.0, 1_000)], room_bytes=10_000, high_bytes=4_000, growth_rate=100.0)
    assert margin_s(5, 0, [Aged(facts, 600, 600)], keeping, end=10) == 3_000
    assert margin_s(5, 0, [Aged(facts, 600, 600)], keeping, end=10, pressure=pressure) == 80
