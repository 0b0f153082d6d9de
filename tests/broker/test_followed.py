"""What a link copies: when a partition that cannot go on is asked for again."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from tailrace.broker.catalog import Leadership
from tailrace.broker.followed import REST_MAX_S, TOLD_AFTER, Followed, FollowedSet
from tailrace.broker.timers import Timer, Timers
from tests.broker.partition_bench import Bench


class HandTimers(Timers):
    """Keeps what is to come."""

    def __init__(self) -> None:
        super().__init__()
        self.rests_s: list[float] = []

    def at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        self.rests_s.append(deadline - trio.current_time())
        return Timer(self, callback)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.partition.follow(Leadership("n2", 2, ("n1", "n2")))
    return bench


def taken_up(bench: Bench, timers: HandTimers, asks: list[None]) -> tuple[FollowedSet, Followed]:
    found = FollowedSet("n2", timers, Random(1), news=lambda: asks.append(None))
    found.add(bench.partition)
    return found, next(iter(found.by_place.values()))


def test_who_cannot_go_on_rests_briefly_at_first_and_is_told_of_when_it_lasts(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    timers = HandTimers()

    async def main() -> None:
        found, one = taken_up(bench, timers, [])
        for _ in range(TOLD_AFTER - 1):
            found.stuck(one, "it does not lead", "T032")
        assert caplog.records == []
        for _ in range(5):
            found.stuck(one, "it does not lead", "T032")

    trio.run(main, clock=trio.testing.MockClock())
    assert timers.rests_s[0] <= 0.01
    assert timers.rests_s[:8] == sorted(timers.rests_s[:8])
    assert max(timers.rests_s) <= REST_MAX_S
    assert [record.getMessage() for record in caplog.records] == [
        "orders[0] cannot be copied from n2 for now: it does not lead"
    ]


def test_what_is_asked_for_is_not_named_again_for_an_answer_that_was_overtaken(
    bench: Bench,
) -> None:
    asks: list[None] = []
    found, one = taken_up(bench, HandTimers(), asks)
    assert list(found.names) == [one]
    assert len(asks) == 1
    found.names.clear()
    one.unanswered, one.asked_from = 1, bench.log.end
    assert not one.overtaken
    found.name_again(one)
    assert not found.names
    one.unanswered = 0
    found.name_again(one)
    assert list(found.names) == [one]
    one.begin_anew()
    assert one.overtaken


def test_what_was_left_is_named_no_more(bench: Bench) -> None:
    found, one = taken_up(bench, HandTimers(), [])
    assert found.mine(one)
    found.leave(one)
    found.name(one)
    assert not found.names
    assert not found.mine(one)
