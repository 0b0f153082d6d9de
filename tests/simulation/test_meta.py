"""The simulated metadata store keeps the contract, and its own promises about what goes wrong."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from tailrace.broker.metadata import Entry, MetadataStore
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.simulation.life import Life, NodeDead
from tailrace.simulation.meta import MetaKeep, MetaLink, SimMeta, StoreChange
from tests.broker.metadata_contract import MetadataContract


class TestSimMeta(MetadataContract):
    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        return opened()

    def clock(self) -> trio.abc.Clock:
        return trio.testing.MockClock(autojump_threshold=0)

    async def pass_seconds(self, seconds: float) -> None:
        await trio.sleep(seconds)


@asynccontextmanager
async def opened() -> AsyncIterator[MetadataStore]:
    store = SimMeta(MetaKeep(Random(1)), Life("n1"))
    yield store
    await store.aclose()


def test_what_goes_wrong() -> None:
    async def main() -> None:
        keep, life = MetaKeep(Random(1)), Life("n1")
        store = SimMeta(keep, life)
        keep.lost_replies = 1.0
        with pytest.raises(MetadataUnavailable):
            await store.txn([], {"a": b"1"})
        keep.lost_replies = 0.0
        assert await store.get("a") is not None, "applied, though the reply was lost (R16)"
        keep.down = True
        with pytest.raises(MetadataUnavailable):
            await store.get("a")
        keep.down = False
        await store.txn([], {"leased": b""}, lease=await store.grant(60))
        keep.end_all_leases()
        assert await store.get("leased") is None
        life.dead = True
        with pytest.raises(NodeDead):
            await store.txn([], {"zombie": b""})
        assert "zombie" not in keep.entries

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_broker_may_lose_the_store_alone_and_what_it_asked_may_come_late() -> None:
    async def main() -> None:
        keep, there, back = MetaKeep(Random(1)), MetaLink(cut_there=True), MetaLink(cut_back=True)
        there.late = 1.0
        with pytest.raises(MetadataUnavailable):
            await SimMeta(keep, Life("n1"), there).txn([], {"late": b"1"})
        with pytest.raises(MetadataUnavailable):
            await SimMeta(keep, Life("n2"), back).txn([], {"applied": b"1"})
        assert set(keep.entries) == {"applied"}
        there.heal()
        assert set(keep.entries) == {"applied", "late"}
        assert await SimMeta(keep, Life("n3")).get("late") is not None

    run(main)


def test_one_broker_may_hear_late_of_its_changes_or_never() -> None:
    async def main() -> None:
        keep, link = MetaKeep(Random(1)), MetaLink(delay_mean=1.0, lost_replies=1)
        keep.delay_mean = 0.0
        store = SimMeta(keep, Life("n1"), link)
        with pytest.raises(MetadataUnavailable):
            await store.txn([], {"lost": b"1"})
        assert await store.get("lost") is not None, "applied, though the reply was lost (R16)"
        began = trio.current_time()
        assert await store.txn([], {"told": b"1"}) is not None
        assert trio.current_time() > began
        link.lost_replies = 1
        link.heal()
        began = trio.current_time()
        assert await store.txn([], {"at once": b"1"}) is not None
        assert trio.current_time() == began

    run(main)


def test_a_full_store_can_be_read() -> None:
    async def main() -> None:
        keep = MetaKeep(Random(1))
        store = SimMeta(keep, Life("n1"))
        await store.txn([], {"a": b"1"})
        keep.full = True
        with pytest.raises(MetadataUnavailable):
            await store.txn([], {"b": b"1"})
        with pytest.raises(MetadataUnavailable):
            await store.grant(6)
        assert [one.key for one in await store.list("")] == ["a"]
        await store.txn([], {}, ["a"])
        assert not keep.entries

    run(main)


def test_leases_end_early_by_the_clock_of_the_store_and_late_when_its_leader_changes() -> None:
    async def main() -> None:
        keep = MetaKeep(Random(1))
        store = SimMeta(keep, Life("n1"))
        keep.lease_rate = 2.0
        await store.txn([], {"early": b""}, lease=await store.grant(6))
        keep.lease_rate = 1.0
        await store.txn([], {"late": b""}, lease=await store.grant(6))
        await trio.sleep(3.1)
        assert await store.get("early") is None
        keep.extend_all_leases()
        await trio.sleep(5.8)
        assert await store.get("late") is not None
        await trio.sleep(0.3)
        assert await store.get("late") is None

    run(main)


def test_watches_wake_late_for_nothing_and_after_they_were_cut_off() -> None:
    async def main() -> None:
        keep, link = MetaKeep(Random(1)), MetaLink()
        store = SimMeta(keep, Life("n1"), link)
        watch = store.watch("a")
        keep.wakes = 1.0
        await watch.wait()  # nothing has changed
        keep.wakes, keep.watch_lag = 0.0, 1.0
        await store.txn([], {"a": b"1"})
        began = trio.current_time()
        await watch.wait()
        assert trio.current_time() > began
        keep.watch_lag = 0.0
        await store.txn([], {"a": b"2"})
        link.cut_there = True
        with trio.move_on_after(60) as scope:
            await watch.wait()
        assert scope.cancelled_caught
        link.heal()
        await watch.wait()

    run(main)


def test_what_was_changed_is_told_with_what_it_was_compared_with() -> None:
    async def main() -> None:
        keep = MetaKeep(Random(1))
        told: list[StoreChange] = []
        keep.taps.append(told.append)
        store = SimMeta(keep, Life("n1"))
        first = await store.txn([("a", 0)], {"a": b"1"})
        assert first is not None
        await store.txn([("a", first)], {"b": b"2"}, ["a"])
        assert [change.compare for change in told] == [{"a": 0}, {"a": first}]
        assert told[1].before == {"a": Entry("a", b"1", first), "b": None}
        assert told[1].after == {"a": None, "b": Entry("b", b"2", first + 1)}

    run(main)
