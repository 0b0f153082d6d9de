"""How a member begins: it joins, learns its partitions, and finds where to read them."""

from typing import Any

import anyio
import pytest

from tailrace.client.commits import CommitPoint
from tailrace.protocol import texts_client, texts_group
from tailrace.protocol.errors import GroupConfigMismatch, OffsetOutOfRange
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_member import FakeMember
from tests.client.fetch_broker import FetchWorld
from tests.client.test_holdings import ONE, ZERO, Joined, joined, too_late, two_times_ten
from tests.client.world import Run, until


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """A topic of two partitions with ten records each."""
    return two_times_ten(monkeypatch)


def test_what_joining_raises_is_raised_and_opening_may_be_tried_again(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = texts_group.subscription_mismatch(group="g", member="m", yours=["a"], theirs=["b"])

    async def join(self: FakeMember) -> None:
        raise refusal

    async def main() -> None:
        async with here.client() as client:
            consumer = client.consumer("orders", group="g")
            with monkeypatch.context() as patch:
                patch.setattr(FakeMember, "join", join)
                with pytest.raises(GroupConfigMismatch, match="T070"):
                    await consumer.__aenter__()
            async with consumer:
                assert consumer.health().state == "ok"

    run(main)


def test_opening_that_was_cancelled_leaves_nothing_that_is_fetched(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        async with here.client() as client:
            consumer = client.consumer("orders", group="g")

            async def join(self: FakeMember) -> None:
                orders = here.fetch.topics["orders"]
                self.listener.assigned([self.assignment(orders, 0)])
                await until(lambda: ZERO in consumer.assignment)
                self.listener.assigned([self.assignment(orders, 1)])
                self.refuse_with = [too_late()] * 100

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FakeMember, "join", join)
                with anyio.move_on_after(0.02) as scope:
                    await consumer.__aenter__()
            assert scope.cancelled_caught
            async with consumer:
                own = Joined(here, consumer)
                await own.assign(1)
                assert await own.take(10) == [(1, offset) for offset in range(10)]
                asked = {part.partition for one in here.fetch.fetched for part in one.partitions}
                assert asked == {1}

    run(main)


def test_partitions_that_come_and_go_leave_nothing_behind(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, commit="manual") as own:
            await own.assign(0)
            await own.take(1)
            for _ in range(5):
                own.member.listener.withdrawn([ZERO])
                await own.assign(0)
            assert len(own.consumer.feed.sources) == 1

    run(main)


def test_places_are_asked_for_again_until_they_are_known(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here) as own:
            own.member.stored[ZERO] = CommitPoint(4)
            own.member.refuse_with = [too_late(), too_late()]
            assert own.consumer.health().state == "ok"
            own.member.listener.assigned([own.member.assignment(here.fetch.topics["orders"])])
            assert own.consumer.health().state == "rebalancing"
            await until(lambda: own.consumer.health().state == "reconnecting")
            assert await own.take(2) == [(0, 4), (0, 5)]

    run(main)


def test_skipped_records_are_counted_once_however_often_places_are_asked_for(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with joined(here, start="latest", stop_at_end=True, commit="manual") as own:
            feed = own.consumer.feed
            offsets, asked = feed.offsets, list[object]()

            async def third_time_unlucky(partitions: Any, at: Any) -> dict[TopicPartition, int]:
                asked.append(at)
                if len(asked) == 3:
                    raise too_late()
                return await offsets(partitions, at)

            monkeypatch.setattr(feed, "offsets", third_time_unlucky)
            await own.assign(0)
            assert asked == ["latest", "earliest", "latest"] * 2
            assert feed.skipped == 10

    run(main)


def test_look_up_that_fails_for_what_went_meanwhile_harms_nobody(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def committed(self: FakeMember, partitions: object, *, timeout: float) -> object:
        nonlocal asked
        asked += 1
        self.listener.lost([ZERO], "it left")
        raise texts_client.not_assigned("orders", 0)

    async def main() -> None:
        async with joined(here) as own:
            with monkeypatch.context() as patch:
                patch.setattr(FakeMember, "committed", committed)
                own.assign_soon(0)
                await until(lambda: asked > 0)
            await own.assign(1)
            assert await own.take(1) == [(1, 0)]

    run(main)


def test_partition_that_goes_before_its_place_is_known_is_never_read(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        async with joined(here, idle_timeout=0.02) as own:
            topic = here.fetch.topics["orders"]
            own.member.listener.assigned([own.member.assignment(topic)])
            own.member.listener.withdrawn([ZERO])
            assert own.member.released_ones == [ZERO]
            assert [record async for record in own.consumer] == []

    run(main)


def test_partition_that_was_added_later_starts_at_its_beginning(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, start="latest") as own:
            await own.assign(0)
            await own.assign(1, later=True)
            assert own.consumer.position(ZERO) == 10
            assert own.consumer.position(ONE) == 0
            assert own.member.requests == [{ZERO: CommitPoint(10)}], "the start holds at once"

    run(main)


def test_committed_offset_beyond_the_end_is_told(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with joined(here, stop_at_end=True) as own:
            own.member.stored[ZERO] = CommitPoint(40)
            await own.assign(0)
            with pytest.raises(OffsetOutOfRange, match=r"T041: .*asked for 40, .*ends at 10"):
                await own.take(1)

    run(main)
