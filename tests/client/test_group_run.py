"""``run`` as a member of a group: only what is finished without a gap is committed."""

import os
import signal
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.client import holdings, run as running
from tailrace.client.commits import CommitPoint
from tailrace.client.records import Record
from tailrace.protocol import texts_group
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.fake_member import FakeMember
from tests.client.fetch_broker import FetchWorld
from tests.client.grouping import member, rest
from tests.client.test_consumer import numbers, seeded
from tests.client.test_holdings import ONE, ZERO, Joined, joined
from tests.client.world import Run, until

AnyRecord = Record[Any, Any]


# ── with a coordinator in memory ─────────────────────────────────────────────────────────────


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    """A topic of two partitions with ten records each, all of one key."""
    monkeypatch.setattr(holdings, "Member", FakeMember)
    world = FetchWorld(monkeypatch)
    topic = world.fetch.create("orders", 2)
    for partition in range(2):
        for number in range(10):
            world.fetch.append(topic, [b"%d" % number], partition)
    return world


class Handled:
    """A handler whose records wait until they are let go."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.gates: dict[tuple[int, int], anyio.Event] = {}

    async def __call__(self, record: AnyRecord) -> None:
        place = record.partition, record.offset
        self.begun.append(place)
        if place in self.gates:
            await self.gates[place].wait()

    def hold(self, *places: tuple[int, int]) -> None:
        self.gates.update({place: anyio.Event() for place in places})

    def let_go(self, *places: tuple[int, int]) -> None:
        for place in places:
            self.gates[place].set()


async def run_with(own: Joined, handled: Handled, body: Any, **options: Any) -> None:
    async with anyio.create_task_group() as tasks:

        async def go() -> None:
            await own.consumer.run(handled, signals=False, **options)

        tasks.start_soon(go)
        await body()
        tasks.cancel_scope.cancel()


def test_committable_never_passes_a_record_that_is_not_done(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 3), (0, 5))
        async with joined(here) as own:
            await own.assign(0)

            async def body() -> None:
                await until(lambda: len(handled.begun) == 10)
                assert own.committable == {ZERO: 3}
                await own.consumer.commit()
                assert own.member.stored[ZERO].offset == 3
                handled.let_go((0, 3))
                await until(lambda: own.committable == {ZERO: 5})
                handled.let_go((0, 5))
                await until(lambda: own.committable == {ZERO: 10})

            await run_with(own, handled, body, order="none")

    run(main)


def test_partition_waits_when_too_much_of_it_is_done_behind_a_record_that_is_not(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.run.SPAN_MAX", 4)

    async def main() -> None:
        handled = Handled()
        handled.hold((0, 1))
        async with joined(here) as own:
            await own.assign(0)
            await own.assign(1)

            async def body() -> None:
                await until(lambda: handled.begun.count((1, 9)) == 1)
                await anyio.wait_all_tasks_blocked()
                assert own.committable == {ZERO: 1, ONE: 10}
                assert (0, 5) not in handled.begun, "at most 4 from the one that is not done on"
                handled.let_go((0, 1))
                await until(lambda: own.committable == {ZERO: 10, ONE: 10})
                assert len(set(handled.begun)) == len(handled.begun) == 20

            await run_with(own, handled, body, order="none")

    run(main)


def test_withdrawn_partition_finishes_what_was_begun_and_no_more(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 2))
        async with joined(here) as own:
            await own.assign(0)

            async def body() -> None:
                await until(lambda: own.consumer.position(ZERO) == 10 and len(handled.begun) > 2)
                assert handled.begun == [(0, 0), (0, 1), (0, 2)], "one key: one at a time"
                own.member.listener.withdrawn([ZERO])
                assert own.member.released_ones == []
                handled.let_go((0, 2))
                await until(lambda: own.member.released_ones == [ZERO])
                assert own.member.stored[ZERO].offset == 3
                await own.assign(1)
                await until(lambda: len(handled.begun) == 13)
                assert handled.begun[3:] == [(1, number) for number in range(10)]

            await run_with(own, handled, body)

    run(main)


def test_withdrawn_partition_finishes_what_lies_before_a_record_that_is_done(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 10))
        async with joined(here) as own:
            orders = here.fetch.topics["orders"]
            await own.assign(0)

            async def body() -> None:
                await until(lambda: own.committable == {ZERO: 10})
                here.fetch.append(orders, [b"a", b"b"], 0, key=b"slow")  # 10 and, behind it, 11
                here.fetch.append(orders, [b"c"], 0, key=b"quick")
                here.fetch.append(orders, [b"d"], 0, key=b"slow")
                await until(lambda: (0, 12) in handled.begun)
                own.member.listener.withdrawn([ZERO])
                handled.let_go((0, 10))
                await until(lambda: own.member.released_ones == [ZERO])
                assert own.member.stored[ZERO].offset == 13, "12 is not handled again elsewhere"
                assert (0, 13) not in handled.begun

            await run_with(own, handled, body)

    run(main)


def test_drained_run_begins_nothing_more(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        handled = Handled()
        async with joined(here) as own:
            await own.assign(0)
            this = running.Run(own.consumer.feed, handled, None, "partition", 1)
            make_room = this._make_room

            def make_room_and_drain() -> None:
                make_room()  # whoever reads goes on, and is cancelled only when it waits again
                this.drain(5.0)

            monkeypatch.setattr(this, "_make_room", make_room_and_drain)
            await this.go(own.consumer.records("run()"))
            assert handled.begun == [(0, 0)]
            assert own.committable == {ZERO: 1}

    run(main)


def test_key_keeps_its_order_when_its_partition_is_lost_and_comes_back(
    run: Run, here: FetchWorld, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 2))
        async with joined(here) as own:
            await own.assign(0)

            async def body() -> None:
                await until(lambda: len(handled.begun) == 3)
                own.member.listener.lost([ZERO], "it was not released in time")
                own.member.stored[ZERO] = CommitPoint(2)
                await own.assign(0)
                await until(lambda: own.consumer.position(ZERO) == 10)
                assert len(handled.begun) == 3, "the old one is still at work"
                assert own.committable == {}, "nothing that is not committed already"
                handled.gates.pop((0, 2)).set()
                await until(lambda: own.committable == {ZERO: 10})
                assert handled.begun[3:] == [(0, number) for number in range(2, 10)]

            await run_with(own, handled, body)

    run(main)
    assert "T040: orders[0] went to another member of group 'g'" in caplog.text


def test_other_partitions_are_handled_while_one_is_given_up(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 0), (1, 4))
        async with joined(here) as own:
            await own.assign(0, 1)

            async def body() -> None:
                await until(lambda: (1, 4) in handled.begun)
                own.member.listener.withdrawn([ZERO])
                handled.let_go((1, 4))
                await until(lambda: (1, 9) in handled.begun)
                assert own.member.released_ones == []
                handled.let_go((0, 0))
                await until(lambda: own.member.released_ones == [ZERO])
                await until(lambda: own.committable == {ONE: 10})

            await run_with(own, handled, body, order="partition")

    run(main)


def test_loss_that_a_commit_finds_out_is_logged_and_the_rest_goes_on(
    run: Run, here: FetchWorld, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 8), (0, 9))
        async with joined(here, commit_interval=0) as own:

            def refuse(at: TopicPartition, point: CommitPoint) -> None:
                if (at, point.offset) != (ZERO, 9):
                    return
                own.member.listener.lost([at], "it was not released")
                raise texts_group.partition_lost({at: point.offset}, group="g", reason="so")

            own.member.on_store = refuse
            await own.assign(0)

            async def body() -> None:
                await until(lambda: len(handled.begun) == 10)
                handled.let_go((0, 8))  # only now: with the loss no more of it is begun
                own.assign_soon(1)
                await until(lambda: len(handled.begun) == 20)
                await until(lambda: ZERO not in own.consumer.assignment)
                handled.let_go((0, 9))

            await run_with(own, handled, body, order="none")

    run(main)
    assert caplog.text.count("T040") == 1


def test_manual_run_commits_only_by_call(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        handled = Handled()
        async with joined(here, commit="manual") as own:
            await own.assign(0)

            async def body() -> None:
                await until(lambda: len(handled.begun) == 10)
                assert own.committable == {}
                await own.consumer.commit()
                assert own.member.stored[ZERO].offset == 10

            await run_with(own, handled, body)

    run(main)


def test_manual_partition_goes_when_what_is_finished_is_committed(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        handled = Handled()
        handled.hold((0, 1))
        async with joined(here, commit="manual") as own:
            await own.assign(0)

            async def body() -> None:
                await until(lambda: (0, 1) in handled.begun)
                await own.consumer.commit()
                own.member.listener.withdrawn([ZERO])
                handled.let_go((0, 1))
                await own.assign(1)
                await until(lambda: (1, 9) in handled.begun)
                assert own.member.released_ones == []
                await own.consumer.commit()
                assert own.member.stored[ZERO].offset == 2, "the others are left to the next one"
                assert own.member.released_ones == [ZERO]
                await own.consumer.commit()  # nothing is lost

            await run_with(own, handled, body, order="partition")

    run(main)


# ── with a real one ──────────────────────────────────────────────────────────────────────────


def test_failed_handler_comes_again_with_all_behind_it(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(30))

    async def main() -> None:
        async def handle(record: AnyRecord) -> None:
            if record.offset == 7:
                await anyio.sleep(0.01)
                raise ValueError("cannot")

        async def fail() -> None:
            async with member(broker, topic) as consumer:
                await consumer.run(handle, order="none")

        with pytest.raises(ValueError, match="cannot"):
            await fail()
        assert (await rest(broker, topic))[0] == 7

    run(main)


def test_second_run_handles_what_the_first_did_not_finish(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(30))
    done: list[int] = []

    async def main() -> None:
        async def fail_at_7(record: AnyRecord) -> None:
            if record.offset == 7:
                await anyio.sleep(0.01)
                raise ValueError("cannot")

        async def handle(record: AnyRecord) -> None:
            done.append(record.offset)

        async with member(broker, topic, stop_at_end=True) as consumer:
            with pytest.raises(ValueError, match="cannot"):
                await consumer.run(fail_at_7, order="none", signals=False)
            await consumer.run(handle, order="none", signals=False)
        assert sorted(done) == list(range(7, 30))
        assert await rest(broker, topic) == []

    run(main)


def test_interval_of_zero_commits_the_last_records_too(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(3))

    async def main() -> None:
        async def handle(record: AnyRecord) -> None:
            await anyio.sleep(0.001)

        async with member(broker, topic, commit_interval=0) as consumer:
            async with anyio.create_task_group() as tasks:

                async def go() -> None:
                    await consumer.run(handle, signals=False)

                tasks.start_soon(go)
                await until(lambda: consumer.health().last_record is not None)
                for _ in range(1000):
                    if await consumer.committed() == {TopicPartition(topic, 0): 3}:
                        break
                else:
                    pytest.fail("never committed")
                tasks.cancel_scope.cancel()

    run(main)


def test_signal_drains_commits_and_leaves(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(30), 2)
    done: list[tuple[int, int]] = []

    async def main() -> None:
        async def handle(record: AnyRecord) -> None:
            await anyio.sleep(0.005)
            done.append((record.partition, record.offset))
            if len(done) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        async with member(broker, topic) as consumer:
            await consumer.run(handle, in_flight=3)
            assert consumer.health().state == "closed"
            async with member(broker, topic, "b", stop_at_end=True) as other:
                assert len(other.assignment) == 2, "it has left already"
                left = [(record.partition, record.offset) async for record in other]
        assert len(done) >= 6
        assert sorted(done + left) == sorted(set(done + left))
        assert len(done + left) == 30

    run(main)


def test_dead_letters_name_the_group(run: Run, broker: Broker) -> None:
    topic, letters = seeded(broker, numbers(3)), seeded(broker, [])

    async def main() -> None:
        async def handle(record: AnyRecord) -> None:
            raise ValueError("cannot")

        policy = tailrace.retry(1).then_dead_letter(letters)
        async with member(broker, topic, stop_at_end=True) as consumer:
            await consumer.run(handle, on_error=policy)
        assert await rest(broker, topic) == []

    run(main)
    (first, *_) = broker.records(letters)
    assert dict(first.headers)["tailrace-dlq-group"] == f"g-{topic}".encode()


def test_partition_of_a_slow_handler_goes_to_others_after_the_rebalance_timeout(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    topic = seeded(broker, numbers(20), 2)

    async def main() -> None:
        forever = anyio.Event()

        async def handle(record: AnyRecord) -> None:
            await forever.wait()

        async with member(broker, topic, "a", rebalance_timeout=0.1) as a:
            async with anyio.create_task_group() as tasks:

                async def go() -> None:
                    await a.run(handle, signals=False)

                tasks.start_soon(go)
                await until(lambda: a.health().last_record is not None)
                async with member(broker, topic, "b") as b:
                    await until(lambda: len(b.assignment) == 1)
                    (at,) = b.assignment
                    assert b.position(at) == 0
                    forever.set()
                tasks.cancel_scope.cancel()

    run(main)
    lost = [r for r in caplog.records if getattr(r, "code", "") == "T040"]
    assert len(lost) == 1
