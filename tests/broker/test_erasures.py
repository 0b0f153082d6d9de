"""The book of erasures: stored before it is answered, once, and gone with its topic."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from tailrace.broker.catalog import new_topic
from tailrace.broker.erasure import (
    PENDING_MAX,
    RECEIPTS_MS,
    Erasure,
    Progress,
    Replicas,
    Share,
)
from tailrace.broker.erasures import ROOM_WAIT_S, Erasures
from tailrace.broker.health import Health
from tailrace.broker.metrics import Metrics
from tailrace.broker.registry import Registry
from tailrace.protocol.errors import (
    ConnectError,
    MetadataUnavailable,
    RequestTimeout,
    TopicNotFound,
)
from tailrace.simulation.life import Life
from tailrace.simulation.meta import MetaKeep, SimMeta
from tailrace.storage.erasure import digest_of

NOW_MS = 1_763_690_000_000
TOPIC = new_topic("orders", bytes(16), placement=[("n1",)], replicas=1, config={})


class Clock:
    wall = NOW_MS

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return self.wall


class World:
    """A store, and brokers that open it one after another."""

    def __init__(self) -> None:
        self.keep = MetaKeep(random.Random(1))
        self.clock = Clock()
        self.trusted_ms = NOW_MS

    async def open(self, *topic_ids: bytes, broker: str = "n1") -> Erasures:
        metrics = Metrics(version="0", topics_max=9, clock=self.clock.now)
        store = SimMeta(self.keep, Life(broker))
        registry = Registry(store, broker, self.clock, metrics, Health())
        erasures = Erasures(registry, broker, lambda stamp_ms: self.trusted_ms - stamp_ms)
        await erasures.load(topic_ids)
        return erasures


def asked(number: int = 1, end: int = 10) -> Erasure:
    keys = (digest_of(b"k"),)
    topic_id, shares = TOPIC.topic_id, {0: Share(end)}
    return Erasure(number.to_bytes(16), topic_id, TOPIC.name, NOW_MS, keys, shares)


async def finish(erasures: Erasures, erasure: Erasure) -> None:
    """The eraser has done it."""
    await erasures.store(erasure, {0: Progress(done=True)})
    await erasures.complete(erasure, NOW_MS + 1, on("n1"))


def on(*brokers: str) -> Replicas:
    return lambda topic_id, number: brokers


def run(main: Callable[[World], Awaitable[None]]) -> None:
    trio.run(main, World(), clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_restart_knows_what_was_asked() -> None:
    async def main(world: World) -> None:
        first = await world.open(TOPIC.topic_id)
        stored = await first.ask(asked())
        again = await world.open(TOPIC.topic_id)
        assert again.pending(TOPIC.topic_id) == [stored]
        assert again.pending_count == 1
        with trio.fail_after(1):
            await again.asked.wait()  # the eraser has something to do

    run(main)


def test_asking_again_is_the_same_erasure() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        first = await erasures.ask(asked(end=10))
        assert await erasures.ask(asked(end=20)) == first
        assert erasures.pending(TOPIC.topic_id) == [first]

    run(main)


def test_another_request_under_a_known_id_is_refused() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        first = await erasures.ask(replace(asked(), fingerprint=1))
        await finish(erasures, first)
        again = await world.open(TOPIC.topic_id)
        assert (await again.ask(replace(asked(), fingerprint=1))).completed_at is not None
        with pytest.raises(ConnectError, match="other keys or records"):
            await again.ask(replace(asked(), fingerprint=2))

    run(main)


def test_a_lost_reply_of_the_store_makes_no_second_erasure() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        world.keep.lost_replies = 0.5
        for number in range(10):
            stored = await erasures.ask(asked(number))
            for records in range(3):
                counted = stored.shares[0].of("n1").counted(1, records)
                await erasures.store(stored, {0: counted})
                found = erasures.get(TOPIC.topic_id, stored.erasure_id)
                assert found is not None
                stored = found
        world.keep.lost_replies = 0.0
        again = await world.open(TOPIC.topic_id)
        assert [one.records for one in again.pending(TOPIC.topic_id)] == [3] * 10

    run(main)


def test_whoever_waits_is_told_of_the_end() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        stored = await erasures.ask(asked())
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(erasures.wait, stored, 100.0)
            await trio.sleep(3)
            await finish(erasures, stored)
        assert 3 <= trio.current_time() - began < 4
        assert erasures.find(TOPIC, stored.erasure_id).completed_at == NOW_MS + 1
        await erasures.wait(stored, 100.0)
        assert trio.current_time() - began < 4
        assert erasures.pending_count == 0

    run(main)


def test_waiting_ends_with_its_time_and_with_the_broker() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        stored = await erasures.ask(asked())
        began = trio.current_time()
        await erasures.wait(stored, 2.0)
        assert trio.current_time() - began == pytest.approx(2.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(erasures.wait, stored, 100.0)
            await trio.testing.wait_all_tasks_blocked()
            erasures.release()
        await erasures.wait(stored, 100.0)
        assert trio.current_time() - began < 3

    run(main)


def test_a_deleted_topic_takes_its_erasures_along() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        stored = await erasures.ask(asked())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(erasures.wait, stored, 100.0)
            await trio.testing.wait_all_tasks_blocked()
            await erasures.forget_topic(TOPIC.topic_id)
        with pytest.raises(TopicNotFound, match="T010"):
            erasures.find(TOPIC, stored.erasure_id)
        await finish(erasures, stored)  # the eraser may have been at it
        assert not [key for key in world.keep.entries if key.startswith("erasures/")]

    run(main)


def test_erasures_of_a_topic_that_is_gone_are_forgotten_at_the_start() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        await erasures.ask(asked())
        again = await world.open(b"another topic id")
        assert again.pending_count == 0
        assert not [key for key in world.keep.entries if key.startswith("erasures/")]

    run(main)


def test_too_many_pending_ones_wait_for_room_and_are_refused_without() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        first = await erasures.ask(asked(0))
        for number in range(1, PENDING_MAX):
            await erasures.ask(asked(number))
        began = trio.current_time()
        with pytest.raises(RequestTimeout, match=r"T034.*100 erasures of it are pending"):
            await erasures.ask(asked(500))
        assert trio.current_time() - began == pytest.approx(ROOM_WAIT_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(erasures.ask, asked(501))
            await trio.sleep(1)
            assert erasures.pending_count == PENDING_MAX
            await finish(erasures, first)
        assert erasures.get(TOPIC.topic_id, (501).to_bytes(16)) is not None

    run(main)


def test_nothing_is_taken_on_that_is_not_stored() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        world.keep.down = True
        with pytest.raises(MetadataUnavailable):
            await erasures.ask(asked())
        assert erasures.pending_count == 0

    run(main)


def test_progress_is_known_at_once_and_stored_now_and_then() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        stored = await erasures.ask(asked())
        before = world.keep.revision
        for records in range(1, 51):
            known = erasures.find(TOPIC, stored.erasure_id)
            erasures.progress(known, {0: Progress(records)})
            await erasures.flush()
            assert erasures.find(TOPIC, stored.erasure_id).records == records
        assert world.keep.revision == before + 1
        await trio.sleep(2)
        stored_all = [erasures.all_stored]
        await erasures.flush()
        stored_all.append(erasures.all_stored)
        assert stored_all == [False, True]
        again = await world.open(TOPIC.topic_id)
        assert again.find(TOPIC, stored.erasure_id).records == 50

    run(main)


def test_old_receipts_are_forgotten() -> None:
    async def main(world: World) -> None:
        erasures = await world.open(TOPIC.topic_id)
        stored = await erasures.ask(asked())
        await finish(erasures, stored)
        await erasures.expire()
        assert erasures.get(TOPIC.topic_id, stored.erasure_id) is not None
        world.clock.wall = NOW_MS + RECEIPTS_MS + 2  # who knows
        await erasures.expire()
        assert erasures.get(TOPIC.topic_id, stored.erasure_id) is not None
        world.trusted_ms = NOW_MS + RECEIPTS_MS + 2
        await erasures.expire()
        assert erasures.get(TOPIC.topic_id, stored.erasure_id) is None
        assert not [key for key in world.keep.entries if key.startswith("erasures/")]

    run(main)


# ── several brokers ──────────────────────────────────────────────────────────────────────────


def test_what_one_broker_took_on_another_learns_when_the_store_has_changed() -> None:
    async def main(world: World) -> None:
        first = await world.open(TOPIC.topic_id)
        second = await world.open(TOPIC.topic_id, broker="n2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.run)
            await trio.testing.wait_all_tasks_blocked()
            stored = await first.ask(asked())
            with trio.fail_after(1):
                await second.asked.wait()  # its eraser has something to do
            nursery.cancel_scope.cancel()
        assert second.pending(TOPIC.topic_id) == [stored]
        assert await second.ask(asked(end=99)) == stored  # a client that asked the other one again

    run(main)


def test_brokers_that_store_at_the_same_time_take_nothing_back_of_each_other() -> None:
    async def main(world: World) -> None:
        first = await world.open(TOPIC.topic_id)
        stored = await first.ask(asked())
        second = await world.open(TOPIC.topic_id, broker="n2")
        world.keep.lost_replies = 0.3

        async def work(erasures: Erasures) -> None:
            for records in range(1, 6):
                await erasures.store(stored, {0: Progress(records, records, records == 5)})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, first)
            nursery.start_soon(work, second)
        world.keep.lost_replies = 0.0
        found = (await world.open(TOPIC.topic_id)).find(TOPIC, stored.erasure_id)
        assert found.shares[0].by == {"n1": Progress(5, 5, True), "n2": Progress(5, 5, True)}

    run(main)


def test_it_is_complete_when_every_replica_there_is_now_is_done() -> None:
    async def main(world: World) -> None:
        first = await world.open(TOPIC.topic_id)
        stored = await first.ask(asked())
        second = await world.open(TOPIC.topic_id, broker="n2")
        await first.store(stored, {0: Progress(7, 10, done=True)})
        assert not await first.complete(stored, NOW_MS + 1, on("n1", "n2"))
        assert not await second.complete(stored, NOW_MS + 1, on("n1", "n2"))
        await second.store(stored, {0: Progress(done=True)})
        assert await second.complete(stored, NOW_MS + 2, on("n1", "n2"))
        assert not await first.complete(stored, NOW_MS + 3, on("n1", "n2"))  # it was
        await first.refresh()
        receipt = first.find(TOPIC, stored.erasure_id).receipt(on())
        assert (receipt.records, receipt.completed_at) == (7, NOW_MS + 2)
        assert [one.broker_id for one in receipt.replicas if one.done] == ["n1", "n2"]

    run(main)


def test_a_replica_that_takes_back_what_it_did_keeps_it_from_being_complete() -> None:
    """One that came back with an empty disk, and is filled by one that is not done."""

    async def main(world: World) -> None:
        first = await world.open(TOPIC.topic_id)
        stored = await first.ask(asked())
        second = await world.open(TOPIC.topic_id, broker="n2")
        await first.store(stored, {0: Progress(done=True)})
        await second.store(stored, {0: Progress(done=True)})
        await first.store(stored, {0: Progress(done=False)})
        assert not await second.complete(stored, NOW_MS + 2, on("n1", "n2"))
        await second.refresh()
        assert second.find(TOPIC, stored.erasure_id).pending(on("n1", "n2")) == {
            "n1": True,
            "n2": False,
        }

    run(main)


def test_what_is_not_stored_yet_is_not_lost_by_reading() -> None:
    async def main(world: World) -> None:
        first = await world.open(TOPIC.topic_id)
        stored = await first.ask(asked())
        second = await world.open(TOPIC.topic_id, broker="n2")
        second.progress(stored, {0: Progress(3, 5)})
        await first.store(stored, {0: Progress(4, 6)})
        await second.refresh()
        by = second.find(TOPIC, stored.erasure_id).shares[0].by
        assert by == {"n1": Progress(4, 6), "n2": Progress(3, 5)}

    run(main)
