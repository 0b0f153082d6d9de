"""Whatever comes and goes in whatever order: what is committed was processed, all of it (C12, S25).

A coordinator in memory assigns, withdraws and takes away partitions at random while a consumer
reads in one of its ways; commits go out at random moments. Every stored offset is checked against
what had been processed until then.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tailrace.client import holdings
from tailrace.client.commits import CommitPoint
from tailrace.client.records import Record
from tailrace.protocol.errors import PartitionLost
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_member import FakeMember
from tests.client.fetch_broker import FetchWorld
from tests.client.test_holdings import Joined, joined
from tests.client.world import Run

PARTITIONS = 4
RECORDS = 60
STEPS = 80
WAYS = ("async for", "batches", "partitions", "run")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    monkeypatch.setattr(holdings, "Member", FakeMember)
    world = FetchWorld(monkeypatch)
    topic = world.fetch.create("orders", PARTITIONS)
    for partition in range(PARTITIONS):
        for number in range(0, RECORDS, 5):
            world.fetch.append(topic, [b"%d" % n for n in range(number, number + 5)], partition)
    return world


class Chaos:
    """One seed."""

    def __init__(self, seed: int, own: Joined) -> None:
        self.random = Random(seed)
        self.own = own
        self.processed: dict[TopicPartition, set[int]] = {}
        self.handed_out = 0
        self.assigned: set[int] = set()
        self.going: set[int] = set()
        own.member.on_store = self.check

    def check(self, at: TopicPartition, point: CommitPoint) -> None:
        missing = set(range(point.offset)) - self.processed.get(at, set())
        assert not missing, f"{at} committed up to {point.offset}, not processed: {missing}"

    def take(self, record: Record[Any, Any]) -> TopicPartition:
        """It was handed out: of a partition that is here, and not below what is committed."""
        at = TopicPartition(record.topic, record.partition)
        assert at in self.own.consumer.assignment
        assert record.offset >= self.own.member.known_committed(at)
        self.handed_out += 1
        return at

    def done(self, record: Record[Any, Any]) -> None:
        at = TopicPartition(record.topic, record.partition)
        self.processed.setdefault(at, set()).add(record.offset)

    async def pause(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 3))):
            await anyio.lowlevel.checkpoint()

    # ── the coordinator ──────────────────────────────────────────────────────────────────────

    async def move(self) -> None:
        """Assign, withdraw, take away and commit at random."""
        member = self.own.member
        for _ in range(STEPS):
            self.going -= {at.partition for at in member.released_ones}
            member.released_ones.clear()
            free = sorted(set(range(PARTITIONS)) - self.assigned - self.going)
            what = self.random.random()
            if what < 0.35 and free:
                self._assign(self.random.sample(free, self.random.randint(1, len(free))))
            elif what < 0.55 and self.assigned:
                self._withdraw(self.random.choice(sorted(self.assigned)))
            elif what < 0.65 and self.assigned | self.going:
                self._lose(self.random.choice(sorted(self.assigned | self.going)))
            else:
                member.store(member.listener.committable())
            for _ in range(self.random.randint(1, 30)):
                await anyio.lowlevel.checkpoint()

    def _assign(self, partitions: list[int]) -> None:
        self.assigned.update(partitions)
        self.own.assign_soon(*partitions)

    def _withdraw(self, partition: int) -> None:
        self.assigned.remove(partition)
        self.going.add(partition)
        self.own.member.listener.withdrawn([TopicPartition("orders", partition)])

    def _lose(self, partition: int) -> None:
        self.assigned.discard(partition)
        self.going.discard(partition)
        self.own.member.listener.lost([TopicPartition("orders", partition)], "by chance")

    # ── ways to read ─────────────────────────────────────────────────────────────────────────

    async def read(self, way: str) -> None:
        consumer = self.own.consumer
        if way == "async for":
            await self._read(consumer.__aiter__())
        elif way == "batches":
            await self._read(consumer.batches(max_records=7, max_wait=0.0))
        elif way == "partitions":
            async with anyio.create_task_group() as tasks:
                async for stream in consumer.partitions():
                    tasks.start_soon(self._read, stream)
        else:
            await consumer.run(self._handle, in_flight=8, order="none", signals=False)

    async def _read(self, reader: AsyncIterator[Any]) -> None:
        in_hand: Any = ()
        while True:
            for record in in_hand:  # processed: the next one is asked for
                self.done(record)
            in_hand = ()
            try:
                found = await reader.__anext__()
            except PartitionLost:
                continue
            except StopAsyncIteration:
                return
            in_hand = [found] if isinstance(found, Record) else list(found)
            for record in in_hand:
                self.take(record)
            await self.pause()

    async def _handle(self, record: Record[Any, Any]) -> None:
        self.handed_out += 1
        await self.pause()
        await self.pause()
        self.done(record)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(8))
def test_no_commit_passes_a_record_that_is_not_processed(
    run: Run, here: FetchWorld, way: str, seed: int
) -> None:
    async def main() -> None:
        async with joined(here) as own:
            chaos = Chaos(seed, own)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chaos.read, way)
                await chaos.move()
                tasks.cancel_scope.cancel()
            assert chaos.handed_out > 0

    with suppress(PartitionLost):  # told by the close, if the last thing was a loss
        run(main)
