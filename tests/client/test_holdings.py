"""What a member does with partitions that come and go, as a coordinator in memory says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.client import holdings
from tailrace.client.commits import CommitPoint
from tailrace.client.membership import Assignment
from tailrace.protocol import texts_client, texts_group
from tailrace.protocol.errors import (
    PartitionLost,
    RequestTimeout,
    UsageError,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_member import FakeMember
from tests.client.fetch_broker import FetchWorld
from tests.client.world import Run, until
from tests.hand_clock import HandClock

ZERO, ONE = TopicPartition("orders", 0), TopicPartition("orders", 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """See ``two_times_ten``."""
    return two_times_ten(monkeypatch)


def two_times_ten(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """A topic of two partitions with ten records each."""
    monkeypatch.setattr(holdings, "Member", FakeMember)
    world = FetchWorld(monkeypatch)
    topic = world.fetch.create("orders", 2)
    for partition in range(2):
        for number in range(10):
            world.fetch.append(topic, [b"%d" % number], partition)
    return world


class Joined:
    """A consumer and the other side of its membership."""

    def __init__(self, here: FetchWorld, consumer: tailrace.Consumer[Any, Any]) -> None:
        self.consumer = consumer
        self.member = FakeMember.last
        self._topic = here.fetch.topics["orders"]

    def assign_soon(self, *partitions: int, later: bool = False) -> list[Assignment]:
        made = [self.member.assignment(self._topic, p, later=later) for p in partitions]
        self.member.listener.assigned(made)
        return made

    async def assign(self, *partitions: int, later: bool = False) -> None:
        made = self.assign_soon(*partitions, later=later)
        await until(lambda: all(one.at in self.consumer.assignment for one in made))

    async def take(self, count: int) -> list[tuple[int, int]]:
        records = self.consumer.__aiter__()
        found = [await records.__anext__() for _ in range(count)]
        return [(record.partition, record.offset) for record in found]

    @property
    def committable(self) -> dict[TopicPartition, int]:
        points = self.member.listener.committable()
        return {at: point.offset for at, point in points.items()}


@asynccontextmanager
async def joined(here: FetchWorld, **options: Any) -> AsyncIterator[Joined]:
    async with here.client() as client:
        async with client.consumer("orders", group="g", **options) as consumer:
            yield Joined(here, consumer)


def too_late() -> RequestTimeout:
    return texts_client.request_timeout("commit offsets", address="n1", waited_s=1.0)


# ── giving up ────────────────────────────────────────────────────────────────────────────────


def test_withdrawn_partition_is_released_when_the_next_record_is_asked_for(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            assert await own.take(3) == [(0, 0), (0, 1), (0, 2)]
            assert own.committable == {ZERO: 2}
            own.member.listener.withdrawn([ZERO])
            assert own.consumer.assignment == frozenset()
            assert (own.committable, own.member.released_ones) == ({ZERO: 2}, [])
            with anyio.move_on_after(0.01):
                await own.take(1)
            assert own.member.released_ones == [ZERO]
            assert own.member.stored[ZERO].offset == 3
            assert own.committable == {}

    run(main)


def test_commit_of_what_is_in_hand_releases_too(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            await own.take(3)
            own.member.listener.withdrawn([ZERO])
            await own.consumer.commit()
            assert own.member.released_ones == [ZERO]
            assert own.member.stored[ZERO].offset == 3

    run(main)


def test_manual_partition_waits_for_the_commit_of_who_commits(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, commit="manual") as own:
            await own.assign(0)
            await own.take(3)
            await own.consumer.commit()
            await own.take(2)
            own.member.listener.withdrawn([ZERO])
            with anyio.move_on_after(0.01):
                await own.take(1)
            assert own.member.released_ones == []
            await own.consumer.commit()
            assert own.member.released_ones == [ZERO]
            assert own.member.stored[ZERO].offset == 5

    run(main)


def test_manual_partition_of_who_never_commits_goes_at_once(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, commit="manual") as own:
            await own.assign(0)
            await own.take(3)
            own.member.listener.withdrawn([ZERO])
            with anyio.move_on_after(0.01):
                await own.take(1)
            assert own.member.released_ones == [ZERO]
            assert own.member.stored == {}
            with pytest.raises(PartitionLost, match="withdrawn before the first commit"):
                await own.consumer.commit()
            await own.consumer.commit()

    run(main)


def test_buffered_records_of_others_are_kept(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0, 1)
            await own.take(12)
            assert (own.consumer.position(ZERO), own.consumer.position(ONE)) == (6, 6)
            fetched = len(here.fetch.fetched)
            own.member.listener.withdrawn([ONE])
            assert await own.take(4) == [(0, 6), (0, 7), (0, 8), (0, 9)]
            asked = [p for fetch in here.fetch.fetched[fetched:] for p in fetch.partitions]
            again = {p.offset for p in asked if p.partition == 0}
            assert again <= {10}, "nothing comes twice"

    run(main)


# ── losing ───────────────────────────────────────────────────────────────────────────────────


def test_loss_is_raised_once_by_the_next_call(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0, 1)
            ((partition, offset),) = await own.take(1)
            at = TopicPartition("orders", partition)
            own.member.listener.lost([at], "it was too late")
            with pytest.raises(PartitionLost, match=r"T040: .*: it was too late") as caught:
                await own.take(1)
            assert caught.value.offsets == {at: offset + 1}
            assert (await own.take(1))[0][0] == 1 - partition

    run(main)


def test_loss_is_raised_to_whoever_waits(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            await own.take(10)

            async def wait() -> None:
                with pytest.raises(PartitionLost):
                    await own.take(1)
                done.set()

            done = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(0.01)
                own.member.listener.lost([ZERO], "the session timed out")
                await done.wait()

    run(main)


def test_loss_is_raised_once_by_a_commit(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            await own.take(3)
            own.member.listener.lost([ZERO], "it was too late")
            with pytest.raises(PartitionLost) as caught:
                await own.consumer.commit()
            assert caught.value.offsets == {ZERO: 3}
            await own.consumer.commit()
            with pytest.raises(UsageError, match="T055"):
                await own.consumer.commit({ZERO: 3})

    run(main)


def test_commit_that_tells_a_loss_stores_the_rest(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0, 1)
            await own.take(4)
            own.member.listener.lost([ZERO], "it was too late")
            with pytest.raises(PartitionLost) as caught:
                await own.consumer.commit()
            assert (caught.value.offsets, own.member.stored[ONE].offset) == ({ZERO: 2}, 2)
            await own.take(1)
            own.member.listener.lost([ONE], "it was too late")
            with pytest.raises(PartitionLost):
                await own.consumer.commit({ONE: 3})

    run(main)


def test_refused_commit_is_raised_once(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            await own.take(3)
            lost = texts_group.partition_lost({ZERO: 3}, group="g", reason="it was too late")
            own.member.refuse_with = [lost]
            with pytest.raises(PartitionLost):
                await own.consumer.commit()
            own.member.listener.lost([ZERO], "it was too late")
            with anyio.move_on_after(0.01):
                await own.take(1)

    run(main)


@pytest.mark.parametrize("committed", [0, 2, 3])
def test_what_was_committed_is_no_loss(run: Run, here: FetchWorld, committed: int) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            await own.take(3)
            with anyio.move_on_after(0.001):
                await own.take(0 if committed < 3 else 8)
            own.member.stored[ZERO] = CommitPoint(own.consumer.position(ZERO))
            own.member.listener.lost([ZERO], "the session timed out")
            with anyio.move_on_after(0.01):
                await own.take(1)

    run(main)


def test_close_tells_of_what_was_processed_and_lost(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async def lose() -> None:
            async with joined(here) as own:
                await own.assign(0)
                await own.take(3)
                own.member.listener.lost([ZERO], "the session timed out")

        with pytest.raises(PartitionLost) as caught:
            await lose()
        assert caught.value.offsets == {ZERO: 3}
        async with joined(here) as own:
            await own.assign(0)
            await own.take(1)
            own.member.listener.lost([ZERO], "only in hand: it comes again")

    run(main)


def test_error_of_the_body_is_kept_when_something_was_lost(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async def fail() -> None:
            async with joined(here) as own:
                await own.assign(0)
                await own.take(3)
                own.member.listener.lost([ZERO], "the session timed out")
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            await fail()
        assert "PartitionLost" in caught.value.__notes__[0]

    run(main)


def test_manual_loop_without_commits_hears_of_no_loss(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, commit="manual") as own:
            await own.assign(0)
            await own.take(3)
            own.member.listener.lost([ZERO], "the session timed out")
            with anyio.move_on_after(0.01):
                await own.take(1)
            with pytest.raises(PartitionLost):
                await own.consumer.commit()

    run(main)


def test_lost_stream_raises_and_ends_alone(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0, 1)
            streams = own.consumer.partitions()
            first, second = await streams.__anext__(), await streams.__anext__()
            await first.__anext__()
            await second.__anext__()
            own.member.listener.lost([TopicPartition("orders", first.partition)], "too late")
            assert (await second.__anext__()).offset == 1
            with pytest.raises(PartitionLost):
                await first.__anext__()
            with pytest.raises(StopAsyncIteration):
                await first.__anext__()
            with pytest.raises(UsageError, match="T055"):
                await first.commit()
            assert (await second.__anext__()).offset == 2

    run(main)


def test_old_batch_does_not_commit_under_a_new_assignment(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            await own.assign(0)
            batches = own.consumer.batches(max_records=4)
            old = await batches.__anext__()
            own.member.listener.lost([ZERO], "the session timed out")
            await own.assign(0)
            with pytest.raises(PartitionLost):
                await old.commit()
            with pytest.raises(UsageError, match="T055"):
                await old.commit()
            new = await batches.__anext__()
            assert new.first_offset == 0
            await new.commit()
            assert own.member.stored[ZERO].offset == new.next_offset

    run(main)


def test_failed_membership_ends_the_reading(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            fenced = texts_group.group_fenced("g", "m", reason="another has its instance id")
            own.member.listener.failed(fenced)
            with pytest.raises(tailrace.GroupFenced, match="T042"):
                await own.take(1)
            assert own.consumer.health().state == "stalled"

    run(main)


# ── commit_interval=0, and a record that takes too long ──────────────────────────────────────


def test_commit_before_the_next_record_waits_through_outages(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, commit_interval=0.0) as own:
            await own.assign(0)
            await own.take(1)
            own.member.refuse_with = [too_late(), too_late()]
            assert await own.take(1) == [(0, 1)]
            assert own.member.stored[ZERO].offset == 1

    run(main)


def test_partition_whose_place_is_looked_up_goes_with_those_that_are_handed_back(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        async with joined(here) as own:
            group = own.consumer.feed.group
            assert group is not None
            own.assign_soon(0)
            group.pause_all()
            own.assign_soon(0)
            await group.step_out("it was in hand for too long")
            await group.step_in()
            await own.assign(1)
            assert own.consumer.assignment == {ONE}
            assert group.settled

    run(main)


def test_record_in_hand_for_too_long_hands_its_partition_back(
    run: Run, here: FetchWorld, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()

    async def main() -> None:
        async with joined(here, max_processing=0.04) as own:
            own.consumer.feed.client.clock = clock
            await own.assign(0, 1)
            for _ in range(4):  # each takes less than that
                ((partition, offset),) = await own.take(1)
                clock.move(0.015)
                await anyio.sleep(0.02)  # one look of the watch
            clock.move(0.03)
            at, other = ZERO if partition == 0 else ONE, ONE if partition == 0 else ZERO
            await until(lambda: own.member.joined == 2)
            assert own.member.left == 1
            assert own.member.stored[at].offset == offset, "it is not processed"
            assert own.member.stored[other].offset == 4 - offset - 1
            await own.assign(other.partition)
            with pytest.raises(PartitionLost, match="max_processing"):
                await own.take(1)
            assert (await own.take(1))[0][0] == other.partition

    run(main)
    assert "handing back orders[" in caplog.text
