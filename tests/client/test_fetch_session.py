"""Fetching in a session: what stands is not named again, and nothing of it is ever forgotten."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tailrace.client.consumer import Consumer
from tailrace.protocol.shapes import TopicPartition
from tests.client.fetch_broker import FetchWorld
from tests.client.session_broker import SessionBroker
from tests.client.world import Run, until


@pytest.fixture
def broker() -> SessionBroker:
    return SessionBroker()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, broker: SessionBroker) -> FetchWorld:
    return FetchWorld(monkeypatch, broker)


class Reading:
    """A task that takes all that comes."""

    def __init__(self, consumer: Consumer[Any, Any]) -> None:
        self.got: list[int] = []
        self._consumer = consumer

    async def run(self) -> None:
        async for record in self._consumer:
            self.got.append(record.partition)

    async def has(self, *partitions: int) -> None:
        await until(lambda: sorted(self.got) == sorted(partitions))
        self.got.clear()


def reading(
    here: FetchWorld, body: Callable[[Consumer[Any, Any], Reading], Any], **options: Any
) -> Callable[[], Any]:
    async def main() -> None:
        async with (
            here.client() as client,
            client.consumer("orders", **options) as consumer,
            anyio.create_task_group() as tasks,
        ):
            this = Reading(consumer)
            tasks.start_soon(this.run)
            await body(consumer, this)
            tasks.cancel_scope.cancel()

    return main


def test_only_what_was_told_is_named_again(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 4)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await until(lambda: len(broker.asked) == 2)
        for partition in (2, 0, 2):
            broker.append_to(topic, partition)
            await this.has(partition)
        await until(lambda: len(broker.asked) == 5)
        assert broker.named() == [[0, 1, 2, 3], [0, 1, 2, 3], [2], [0], [2]]
        assert [one.sequence for one in broker.asked] == [0, 1, 2, 3, 4]

    run(reading(here, body))


def test_what_stands_is_waited_for_also_while_the_rest_is_paused(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 2)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await until(lambda: len(broker.asked) == 2)
        consumer.pause(TopicPartition("orders", 0))
        broker.append_to(topic, 0)
        await until(lambda: len(broker.asked) == 3)
        broker.append_to(topic, 1)
        await this.has(1)
        consumer.resume(TopicPartition("orders", 0))
        await this.has(0)
        assert broker.named()[2:5] == [[], [1], [0]]

    run(reading(here, body))


def test_wait_that_was_in_vain_is_begun_again_without_naming_anything(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 3)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        for count in (2, 3, 4):
            await until(lambda count=count: len(broker.asked) == count)  # type: ignore[misc]
            await anyio.sleep(broker.asked[-1].wait_ms / 1000)
            broker.ends()
        await until(lambda: len(broker.asked) == 5)
        broker.append_to(topic, 1)
        await this.has(1)
        assert broker.named()[:5] == [[0, 1, 2], [0, 1, 2], [], [], []]
        assert [one.sequence for one in broker.asked[:5]] == [0, 1, 2, 3, 4]

    run(reading(here, body, fetch_wait=0.002))


def test_lost_connection_takes_along_what_stood_and_all_is_named_again(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 3)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await until(lambda: len(broker.asked) == 2)
        broker.disconnect(ConnectionResetError())
        broker.append_to(topic, 2)
        await this.has(2)
        await until(lambda: len(broker.asked) >= 4)
        anew = next(one for one in broker.asked[2:] if one.partitions)
        assert (anew.sequence, len(anew.partitions)) == (0, 3)

    run(reading(here, body))


def test_broker_that_does_not_wait_is_not_asked_in_a_tight_loop(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 3)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await until(lambda: len(broker.asked) == 2)
        broker.eager = True
        broker.ends()
        await anyio.sleep(0.1)
        assert 3 <= len(broker.asked) <= 120
        broker.eager = False
        broker.append_to(topic, 1)
        await this.has(1)
        assert [len(one.partitions) for one in broker.asked if one.sequence == 0][1:]

    run(reading(here, body))


def test_answer_from_before_a_seek_is_dropped_and_the_place_named_since_stands(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 2)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        broker.append_to(topic, 0, 0, 0)
        await this.has(0, 0, 0)
        await until(lambda: broker.waiting != {})
        broker.kept_back = []
        broker.append_to(topic, 0)  # its answer is on the way when it is sought
        await consumer.seek(TopicPartition("orders", 0), 2)
        await until(lambda: broker.asked[-1].partitions[0].offset == 2)
        held, broker.kept_back = broker.kept_back, None
        for connection, data in held:
            connection.put(data)
        await this.has(0, 0)
        broker.append_to(topic, 1)
        await this.has(1)
        broker.append_to(topic, 0)
        await this.has(0)

    run(reading(here, body))


def test_consumers_of_a_client_have_sessions_of_their_own_and_end_them(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 2)

    async def main() -> None:
        async with here.client() as client, anyio.create_task_group() as tasks:
            one, other = client.consumer("orders"), client.consumer("orders")
            async with one:
                async with other:
                    both = Reading(one), Reading(other)
                    for this in both:
                        tasks.start_soon(this.run)
                    await until(lambda: len(broker.waiting) == 2)
                    assert {number for _, number in broker.waiting} == {1, 2}
                    broker.append_to(topic, 1)
                    for this in both:
                        await this.has(1)
                    tasks.cancel_scope.cancel()

    run(main)
    assert broker.standing == {}


@pytest.mark.parametrize("count", [1, 5])
def test_reader_that_takes_a_record_and_closes_leaves_nothing_behind(
    run: Run, here: FetchWorld, broker: SessionBroker, count: int
) -> None:
    topic = broker.create("orders", 3)
    broker.append_to(topic, 0, 1, 2, 0, 1, 2)

    async def main() -> None:
        async with here.client() as client:
            for _ in range(20):
                async with client.consumer("orders") as consumer:
                    records = consumer.__aiter__()
                    for _ in range(count):
                        await records.__anext__()
                await anyio.sleep(0.001)
                await until(lambda: broker.standing == {})
            async with client.consumer("orders", stop_at_end=True) as consumer:
                assert len([record async for record in consumer]) == 6
            await until(lambda: broker.standing == {})

    run(main)


def test_lost_connection_is_noticed_also_where_no_request_was_under_way(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 1)
    for _ in range(40):
        broker.append(topic, [bytes(100_000)])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            records = consumer.__aiter__()
            await records.__anext__()
            await anyio.sleep(0.05)  # two MiB wait, and no more is asked for
            assert not broker.waiting
            before = len(broker.asked)
            broker.disconnect(ConnectionResetError())
            for _ in range(39):
                await records.__anext__()
            anew = broker.asked[before]
            assert (anew.sequence, len(anew.partitions)) == (0, 1)

    run(main)


def test_what_is_told_without_news_and_before_its_time_is_not_named_again_at_once(
    run: Run, here: FetchWorld, broker: SessionBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a broker where too much stands: requests that end each other would never rest."""
    for module in ("fetcher", "fetch_session"):
        monkeypatch.setattr(f"tailrace.client.{module}.PARTITIONS_PER_REQUEST_MAX", 2)
    topic = broker.create("orders", 3)
    broker.crowded = True

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await anyio.sleep(0.3)
        assert len(broker.asked) < 150
        broker.append_to(topic, 2)
        await this.has(2)

    run(reading(here, body))


def test_thousands_of_partitions_are_named_in_pieces_and_all_stand(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 2_500)

    def standing() -> int:
        return sum(map(len, broker.standing.values()))

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await until(lambda: standing() == 2_500 and len(broker.waiting) == 1)
        assert {len(one.partitions) for one in broker.asked} == {1_000, 500}
        before = len(broker.asked)
        for partition in (0, 1_999, 2_499):
            broker.append_to(topic, partition)
            await this.has(partition)
        await until(lambda: standing() == 2_500)
        assert broker.named()[before:] == [[0], [1_999], [2_499]]

    run(reading(here, body))


def test_consumer_that_is_full_asks_for_what_stands_when_there_is_room_again(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 3)

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", prefetch_bytes=20_000) as consumer:
                records = consumer.__aiter__()
                for _ in range(12):
                    broker.append(topic, [bytes(9_000)], 0)
                for _ in range(12):
                    assert (await records.__anext__()).partition == 0
                broker.append_to(topic, 2)
                assert (await records.__anext__()).partition == 2

    run(main)


def test_session_of_which_nothing_is_wanted_any_more_is_ended(
    run: Run, here: FetchWorld, broker: SessionBroker
) -> None:
    topic = broker.create("orders", 3)

    async def body(consumer: Consumer[Any, Any], this: Reading) -> None:
        await until(lambda: len(broker.asked) == 2)
        consumer.pause()
        await anyio.sleep(broker.asked[-1].wait_ms / 1000)
        broker.ends()
        await until(lambda: len(broker.asked) == 3)
        ended = broker.asked[-1]
        assert (ended.sequence, ended.partitions) == (0, ())
        await until(lambda: not broker.waiting)
        consumer.resume()
        broker.append_to(topic, 2)
        await this.has(2)

    run(reading(here, body, fetch_wait=0.01))


def test_reader_with_a_rack_asks_for_all_anew_now_and_then(
    run: Run, here: FetchWorld, broker: SessionBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.fetcher.NEAR_S", 0.02)
    broker.create("orders", 3)

    async def main() -> None:
        async with here.client(rack="r1") as client:
            async with client.consumer("orders", fetch_wait=0.01) as consumer:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(Reading(consumer).run)
                    for _ in range(20):
                        await until(lambda: broker.waiting != {})
                        await anyio.sleep(0.01)
                        broker.ends()
                    tasks.cancel_scope.cancel()

    run(main)
    anew = [one for one in broker.asked if one.sequence == 0 and one.partitions]
    assert len(anew) >= 4
    assert {len(one.partitions) for one in anew} == {3}
