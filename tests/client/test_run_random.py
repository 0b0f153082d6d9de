"""``run`` by key and by partition while partitions come and go, handlers fail and runs are cut off.

Beside what ``test_holdings_random`` says of what is committed: records of one lane are never at
work two at a time, and after a run that was cut off anywhere the next one passes nothing over.
"""

from contextlib import suppress
from random import Random
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from tailrace.client import holdings
from tailrace.client.records import Record
from tailrace.protocol.errors import PartitionLost
from tests.client.fake_member import FakeMember
from tests.client.fetch_broker import FetchWorld
from tests.client.test_holdings import Joined, joined, two_times_ten
from tests.client.test_holdings_random import PARTITIONS, RECORDS, Chaos
from tests.client.world import Run, until

Order = Literal["key", "partition", "none"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    monkeypatch.setattr(holdings, "Member", FakeMember)
    world = FetchWorld(monkeypatch)
    topic = world.fetch.create("orders", PARTITIONS)
    for partition in range(PARTITIONS):
        for number in range(0, RECORDS, 3):
            key = (b"a", b"b", None, b"a", b"c")[number // 3 % 5]
            world.fetch.append(topic, [b"%d" % n for n in range(3)], partition, key=key)
    return world


class Failed(Exception):
    """A handler's."""


class Runs(Chaos):
    """One seed: one run after the other."""

    def __init__(self, seed: int, own: Joined) -> None:
        super().__init__(seed, own)
        self.order: Order = self.random.choice(("key", "partition", "none"))
        self.at_work: set[Any] = set()

    async def read(self, way: str) -> None:
        while True:
            in_flight = self.random.choice((1, 2, 8))
            with suppress(Failed), anyio.CancelScope() as self.scope:
                await self.own.consumer.run(
                    self._handle, in_flight=in_flight, order=self.order, signals=False
                )
            assert not self.at_work
            await self.pause()

    async def _handle(self, record: Record[Any, Any]) -> None:
        self.handed_out += 1
        lane: Any = (record.partition, record.raw_key if self.order == "key" else None)
        if self.order == "none" or (self.order == "key" and record.raw_key is None):
            lane = object()
        assert lane not in self.at_work, "one of its lane is at work"
        self.at_work.add(lane)
        try:
            if self.random.random() < 0.5:
                await self.pause()
            chance = self.random.random()
            if chance < 0.02:
                raise Failed
            if chance < 0.03:
                self.scope.cancel()
            self.done(record)
        finally:
            self.at_work.remove(lane)


@pytest.mark.parametrize("seed", range(12))
def test_no_commit_passes_what_is_not_done_by_whatever_runs(
    run: Run, here: FetchWorld, seed: int
) -> None:
    async def main() -> None:
        async with joined(here) as own:
            chaos = Runs(seed, own)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chaos.read, "run")
                await chaos.move()
                tasks.cancel_scope.cancel()
            assert chaos.handed_out > 0

    with suppress(PartitionLost):  # told by the close, if the last thing was a loss
        run(main)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["key", "partition", "none"])
def test_run_that_is_cancelled_anywhere_is_gone_on_with(
    run: Run, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    async def cut_off_after(steps: int, world: FetchWorld) -> bool:
        """Whether it was under way still."""
        done: list[tuple[int, int]] = []
        random = Random(steps)

        async def handle(record: Record[Any, Any]) -> None:
            for _ in range(random.randint(0, 2)):
                await anyio.lowlevel.checkpoint()
            done.append((record.partition, record.offset))

        async with joined(world) as own:
            await own.assign(0, 1)
            options: Any = {"order": order, "in_flight": 3, "signals": False}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: own.consumer.run(handle, **options))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            whole = len(done) == 20
            for at, offset in own.committable.items():
                assert {(at.partition, n) for n in range(offset)} <= set(done)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: own.consumer.run(handle, **options))
                await until(lambda: len(set(done)) == 20)
                tasks.cancel_scope.cancel()
        return not whole

    async def main() -> None:
        steps = 0
        while await cut_off_after(steps, two_times_ten(monkeypatch)):
            steps += 1
            assert steps < 500
        assert steps > 5

    run(main)
