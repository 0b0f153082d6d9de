"""What a consumer promises, against a real broker, on both event loops."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.client import reading
from tailrace.client.records import Record
from tailrace.protocol.errors import (
    PartitionNotFound,
    TopicNotFound,
    UsageError,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.world import Run


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def seeded(broker: Broker, values: Sequence[bytes | None], partitions: int = 1) -> str:
    """A new topic with these values, spread over its partitions by key."""
    topic = broker.name("orders")
    broker.create_topic(topic, partitions)
    keys = [b"key-%d" % (n % 10) for n in range(len(values))]
    broker.seed(topic, values, keys=keys, partitions=partitions)
    return topic


async def everything(consumer: tailrace.Consumer[Any, Any]) -> list[Record[Any, Any]]:
    return [record async for record in consumer]


def test_records_arrive_as_they_were_sent(run: Run, broker: Broker) -> None:
    topic = broker.name("orders")

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            await client.admin.create_topic(topic)
            async with client.producer() as producer:
                headers = [("src", b"web"), ("none", None)]
                sent = await producer.send(topic, b"v", key=b"k", timestamp=5, headers=headers)
                await producer.send(topic, None, key=b"k")
                await producer.send(topic, b"")
            async with client.consumer(topic, stop_at_end=True) as consumer:
                first, second, third = await everything(consumer)
            assert (first.topic, first.partition, first.offset) == (topic, 0, 0)
            assert (first.key, first.value, first.timestamp) == (b"k", b"v", 5)
            assert (first.headers, first.append_time) == (headers, sent.append_time)
            assert (second.key, second.value) == (b"k", None)
            assert (third.key, third.value) == (None, b"")

    run(main)


@pytest.mark.parametrize("partitions", [1, 5])
def test_each_key_keeps_its_order(run: Run, broker: Broker, partitions: int) -> None:
    topic = seeded(broker, numbers(3_000), partitions)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, stop_at_end=True) as consumer:
                found = await everything(consumer)
        assert sorted(int(r.value or b"") for r in found) == list(range(3_000))
        by_key: dict[bytes | None, list[int]] = {}
        for record in found:
            by_key.setdefault(record.key, []).append(int(record.value or b""))
        assert all(values == sorted(values) for values in by_key.values())
        assert len({record.partition for record in found}) == partitions

    run(main)


def test_consumer_follows_what_is_written_while_it_reads(run: Run, broker: Broker) -> None:
    topic = seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.producer() as producer, client.consumer(topic) as consumer:
                records = consumer.__aiter__()
                for number in range(20):
                    await producer.send(topic, b"%d" % number)
                    assert (await records.__anext__()).value == b"%d" % number

    run(main)


def test_cancelled_wait_loses_nothing(run: Run, broker: Broker) -> None:
    topic = seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.consumer(topic) as consumer:
            records, found = consumer.__aiter__(), list[bytes | None]()

            async def write() -> None:
                async with client.producer() as producer:
                    for number in range(100):
                        await producer.send(topic, b"%d" % number)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                while len(found) < 100:
                    with anyio.move_on_after(0.0003):
                        found.append((await records.__anext__()).value)
            assert found == numbers(100)

    run(main)


def test_loop_that_was_left_goes_on_where_it_was(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, stop_at_end=True) as consumer:
                async for record in consumer:
                    if record.offset == 3:
                        break
                assert consumer.position(TopicPartition(topic, 0)) == 4
                assert [r.offset for r in await everything(consumer)] == list(range(4, 10))

    run(main)


def test_many_records_do_not_keep_other_tasks_waiting(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10_000))

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, stop_at_end=True) as consumer:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(other)
                    assert len(await everything(consumer)) == 10_000
                    tasks.cancel_scope.cancel()
        assert turns >= 5

    run(main)


# ── batches ──────────────────────────────────────────────────────────────────────────────────


def test_small_batches_are_joined_up_to_max_records(run: Run, broker: Broker) -> None:
    topic = seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.producer() as producer:
                for number in range(50):
                    await producer.send(topic, b"%d" % number)
            async with client.consumer(topic, stop_at_end=True) as consumer:
                batches = [batch async for batch in consumer.batches(max_records=20)]
            assert [len(batch) for batch in batches] == [20, 20, 10]
            assert [value for batch in batches for value in batch.values] == numbers(50)
            assert [batch.next_offset for batch in batches] == [20, 40, 50]
            assert [batch.first_offset for batch in batches] == [0, 20, 40]

    run(main)


def test_batch_is_of_one_partition_and_never_empty(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(2_000), 4)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, stop_at_end=True) as consumer:
                total, partitions = 0, set[int]()
                async for batch in consumer.batches(max_records=300):
                    assert 0 < len(batch) <= 300
                    assert {record.partition for record in batch} == {batch.partition}
                    total += len(batch)
                    partitions.add(batch.partition)
        assert (total, partitions) == (2_000, {0, 1, 2, 3})

    run(main)


def test_batch_that_is_not_full_comes_after_max_wait(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(3))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.consumer(topic) as consumer:
            began = anyio.current_time()
            async for batch in consumer.batches(max_records=500, max_wait=0.1):
                assert len(batch) == 3
                break
            assert 0.09 <= anyio.current_time() - began < 2.0

    run(main)


def test_batch_larger_than_fits_does_not_wait_for_more(run: Run, broker: Broker) -> None:
    topic = seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.producer(compression="none") as producer:
                for _ in range(20):
                    await producer.send_many(topic, [bytes(1_000)] * 20)
            async with client.consumer(topic, prefetch_bytes=2_000) as consumer:
                with anyio.fail_after(2.0):
                    count = 0
                    async for batch in consumer.batches(max_records=10_000, max_wait=30.0):
                        count += len(batch)
                        if count >= 360:
                            break

    run(main)


# ── positions ────────────────────────────────────────────────────────────────────────────────


def test_seek_moves_within_a_prepared_window(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100))
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.consumer(topic) as consumer:
            records = consumer.__aiter__()
            assert (await records.__anext__()).offset == 0
            await consumer.seek(at, 70)
            assert consumer.position(at) == 70
            assert (await records.__anext__()).offset == 70
            await consumer.seek(at, 5)
            assert (await records.__anext__()).offset == 5
            await consumer.seek(at, "earliest")
            assert (await records.__anext__()).offset == 0
            await consumer.seek(at, "latest")
            assert consumer.position(at) == 100

    run(main)


def test_seek_by_time_goes_to_the_first_record_appended_since(run: Run) -> None:
    at = TopicPartition("orders", 0)
    with Broker() as broker:
        broker.create_topic("orders")
        broker.seed("orders", [b"old"])
        broker.advance(seconds=60)
        broker.seed("orders", [b"new"])
        appended = broker.records("orders")[1].append_time
        between = datetime.fromtimestamp(appended / 1_000 - 30, UTC)

        async def main() -> None:
            async with tailrace.connect(broker.url) as client:
                async with client.consumer("orders", start=between) as consumer:
                    assert consumer.position(at) == 1
                    await consumer.seek(at, between - timedelta(hours=1))
                    assert consumer.position(at) == 0
                    await consumer.seek(at, between + timedelta(hours=1))
                    assert consumer.position(at) == 2

        run(main)


def test_paused_partition_hands_out_nothing_until_resumed(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(2_000), 2)
    first = TopicPartition(topic, 0)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, idle_timeout=0.2) as consumer:
                records = consumer.__aiter__()
                seen = [await records.__anext__()]
                while seen[-1].partition != 0:
                    seen.append(await records.__anext__())
                stood = consumer.position(first)
                consumer.pause(first)
                seen += await everything(consumer)
                assert consumer.position(first) == stood
                assert {r.partition for r in seen[-100:]} == {1}
                consumer.resume(first)
                seen += await everything(consumer)
        assert sorted(int(record.value or b"") for record in seen) == list(range(2_000))

    run(main)


def test_pause_without_names_stops_everything(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(100), 2)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, idle_timeout=0.05) as consumer:
                consumer.pause()
                assert await everything(consumer) == []
                consumer.resume()
                assert len(await everything(consumer)) == 100

    run(main)


def test_lag_assignment_and_health_tell_where_it_stands(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(10))
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            consumer = client.consumer(topic)
            assert consumer.assignment == frozenset()
            async with consumer:
                assert consumer.assignment == {at}
                assert consumer.lag() == {}
                before = consumer.health()
                assert (before.state, before.lag_records, before.healthy) == (
                    "starting",
                    None,
                    False,
                )
                async for record in consumer:
                    if record.offset == 3:
                        break
                assert consumer.lag() == {at: 6}
                health = consumer.health()
                assert (health.state, health.lag_records, health.assigned) == ("ok", 6, [at])
                assert health.last_record is not None
            assert consumer.health().state == "closed"

    run(main)


def test_fixed_partitions_only(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(500), 3)
    chosen = [TopicPartition(topic, 2)]

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(partitions=chosen, stop_at_end=True) as consumer:
                assert consumer.assignment == set(chosen)
                assert {record.partition for record in await everything(consumer)} == {2}

    run(main)


def test_start_latest_reads_only_what_comes(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(5))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.producer() as producer:
            async with client.consumer(topic, start="latest") as consumer:
                await producer.send(topic, b"new")
                assert (await consumer.__aiter__().__anext__()).value == b"new"

    run(main)


def test_stop_at_end_ends_exactly_there(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(7))
    empty = seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.producer() as producer:
            async with client.consumer(topic, empty, stop_at_end=True) as consumer:
                await producer.send_many(topic, numbers(100))
                assert [r.value for r in await everything(consumer)] == numbers(7)
                assert consumer.position(TopicPartition(topic, 0)) == 7

    run(main)


def test_idle_timeout_ends_the_loop(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(3))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, idle_timeout=0.05) as consumer:
                began = anyio.current_time()
                assert len(await everything(consumer)) == 3
                assert 0.04 < anyio.current_time() - began < 2.0

    run(main)


def test_a_slow_first_answer_does_not_look_like_an_idle_topic(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(3))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, idle_timeout=0.05) as consumer:
                with broker.faults.delay(0.2, api="fetch"):
                    assert len(await everything(consumer)) == 3

    run(main)


def test_quiet_end_is_told_once(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "QUIET_S", 0.02)
    caplog.set_level(logging.INFO, "tailrace")
    topic = seeded(broker, numbers(4))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, start="latest", idle_timeout=0.2) as consumer:
                assert await everything(consumer) == []

    run(main)
    (told,) = [record for record in caplog.records if getattr(record, "code", "") == "T072"]
    assert told.getMessage() == (
        f"T072: at the end of {topic}[0]@4; start='latest' skipped 4 older records. "
        "Set start='earliest'"
    )
    assert told.levelno == logging.WARNING


# ── partitions ───────────────────────────────────────────────────────────────────────────────


def test_each_partition_has_a_stream_of_its_own(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(1_000), 3)

    async def main() -> None:
        found: dict[int, list[int]] = {}

        async def read(stream: tailrace.PartitionStream[bytes, bytes]) -> None:
            async for record in stream:
                assert (record.topic, record.partition) == (stream.topic, stream.partition)
                found.setdefault(stream.partition, []).append(record.offset)

        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, stop_at_end=True) as consumer:
                async with anyio.create_task_group() as tasks:
                    async for stream in consumer.partitions():
                        tasks.start_soon(read, stream)
        assert {n: len(offsets) for n, offsets in found.items()}.keys() == {0, 1, 2}
        assert all(offsets == list(range(len(offsets))) for offsets in found.values())

    run(main)


def test_stream_ends_on_close(run: Run, broker: Broker) -> None:
    topic = seeded(broker, numbers(3))

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, anyio.create_task_group() as tasks:
            consumer = client.consumer(topic)
            streams = consumer.partitions()
            stream = await streams.__anext__()
            found: list[int] = []

            async def read() -> None:
                async for record in stream:
                    found.append(record.offset)

            tasks.start_soon(read)
            with anyio.move_on_after(0.1):
                await streams.__anext__()
            await consumer.aclose()
            with pytest.raises(UsageError, match="T055: Consumer is closed"):
                await streams.__anext__()
        assert found == [0, 1, 2]

    run(main)


# ── what does not exist ──────────────────────────────────────────────────────────────────────


def test_missing_topic_is_raised_and_not_created(run: Run, broker: Broker) -> None:
    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            with pytest.raises(TopicNotFound, match="T010: topic 'typo' does not exist"):
                async with client.consumer("typo"):
                    pass
            assert "typo" not in [topic.name for topic in await client.admin.list_topics()]

    run(main)


def test_missing_partition_is_raised(run: Run, broker: Broker) -> None:
    topic = seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            with pytest.raises(PartitionNotFound, match=r"T011: .*\[7\] does not exist"):
                async with client.consumer(partitions=[TopicPartition(topic, 7)]):
                    pass

    run(main)
