"""What a producer promises when all goes well: results, order, routing, batches, flush."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from tailrace.client.accumulator import GROWN_BYTES
from tailrace.client.records import RecordMetadata
from tailrace.protocol.batch import RECORDS_MAX
from tailrace.protocol.errors import BufferFull, EncodeError, PartitionNotFound, RecordTooLarge
from tests.client.fake_broker import APPEND_TIME, Do
from tests.client.world import Run, World


def test_send_returns_where_the_record_was_written(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            sent = await producer.send("orders", b"one", timestamp=5)
            assert sent == RecordMetadata("orders", 0, 0, 5, APPEND_TIME)
            assert (await producer.send("orders", b"two")).offset == 1

    run(main)
    assert world.broker.topics["orders"].logs == [[b"one", b"two"]]


def test_enqueued_records_arrive_in_order_and_tell_their_offsets(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            deliveries = [await producer.enqueue("orders", b"%d" % n) for n in range(3_000)]
            offsets = [(await delivery).offset for delivery in deliveries]
            assert offsets == list(range(3_000))
            assert all(delivery.done() for delivery in deliveries)

    run(main)
    assert world.broker.topics["orders"].logs == [[b"%d" % n for n in range(3_000)]]


def test_send_many_gives_results_in_input_order_over_partitions(run: Run, world: World) -> None:
    topic = world.broker.create("orders", 4)
    keys = [None if n % 7 == 0 else b"key-%d" % (n % 50) for n in range(2_000)]
    values = [b"%d" % n for n in range(2_000)]

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            sent = await producer.send_many("orders", values, keys=keys)
            assert len(sent) == 2_000
            for n in range(2_000):
                assert topic.logs[sent[n].partition][sent[n].offset] == values[n]
                assert topic.keys[sent[n].partition][sent[n].offset] == keys[n]
            assert sent[-1] == sent[1_999]
            assert list(sent[:2]) == [sent[0], sent[1]]

    run(main)
    for partition in range(4):
        mine = [int(v) for v in topic.logs[partition]]
        by_key: dict[bytes | None, list[int]] = {}
        for number, key in zip(mine, topic.keys[partition], strict=True):
            by_key.setdefault(key, []).append(number)
        assert all(numbers == sorted(numbers) for key, numbers in by_key.items() if key)


@pytest.mark.parametrize("partitions", [1, 4])
def test_send_many_keeps_the_input_order_of_a_partition_with_and_without_keys(
    run: Run, world: World, partitions: int
) -> None:
    topic = world.broker.create("orders", partitions)
    keys = [None if n % 3 == 0 else b"key-%d" % (n % 50) for n in range(500)]

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send_many("orders", [b"%03d" % n for n in range(500)], keys=keys)

    run(main)
    assert sum(map(len, topic.logs)) == 500
    for log in topic.logs:
        assert log == sorted(log)


def test_send_many_is_cut_into_batches_of_bounded_size(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(batch_bytes=5_000) as producer:
            await producer.send("orders", b"first")
            await producer.send_many("orders", [b"x" * 84] * 1_000)
            await producer.send_many("orders", [b""] * 10_000)

    run(main)
    assert topic.batches[0][1:6] == [50] * 5, "there were slots for so many"
    assert max(topic.batches[0]) <= RECORDS_MAX
    assert len(topic.logs[0]) == 11_001


def test_a_key_always_goes_to_the_partition_that_owns_its_hash(run: Run, world: World) -> None:
    topic = world.broker.create("orders", 8)

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            first = await producer.send("orders", b"1", key=b"alice")
            again = await producer.send("orders", b"2", key=b"alice")
            chosen = await producer.send("orders", b"3", key=b"alice", partition=7)
            assert (first.partition, chosen.partition) == (again.partition, 7)
            assert (await producer.send("orders", b"4", key=b"")).partition in range(8)

    run(main)
    assert topic.keys[7][-1] == b"alice"


def test_keyless_records_take_turns_by_batch(run: Run, world: World) -> None:
    world.broker.create("orders", 3)

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            seen = [(await producer.send("orders", b"x")).partition for _ in range(6)]
            assert seen == [0, 1, 2, 0, 1, 2]

    run(main)


def test_send_does_not_wait_for_linger_when_nothing_is_in_flight(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(linger=60.0) as producer:
            await producer.send("orders", b"one")
            await producer.enqueue("orders", b"two")
            await producer.send("orders", b"three")

    run(main)


def test_records_gather_while_a_request_is_in_flight(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(linger=60.0) as producer:
            await producer.send("orders", b"0")
            world.broker.script.append(Do.HOLD)
            async with anyio.create_task_group() as tasks:
                for n in range(1, 100):
                    tasks.start_soon(producer.send, "orders", b"%d" % n)
                while world.broker.held == 0:
                    await anyio.lowlevel.checkpoint()
                await anyio.wait_all_tasks_blocked()
                world.broker.release()

    run(main)
    assert topic.batches[0] == [1, 1, 98]


def test_a_batch_grows_to_half_a_mebibyte_while_all_slots_are_taken(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with (
            world.client() as client,
            client.producer(batch_bytes=1_000, max_in_flight=2, compression="none") as producer,
        ):
            await producer.send("orders", b"first")
            world.broker.script.extend([Do.HOLD, Do.HOLD])
            for _ in range(4_000):
                producer.enqueue_nowait("orders", b"x" * 84)
            assert world.broker.held == 2
            world.broker.release()
            await producer.flush()

    run(main)
    assert topic.batches[0][1:3] == [10, 10]
    assert len(topic.logs[0]) == 4_001
    assert topic.batches[0][3] > 3_900


def test_calls_of_many_records_share_a_batch_that_grows_while_all_slots_are_taken(
    run: Run, world: World
) -> None:
    topic = world.broker.create("orders")
    held_bytes = 3 * GROWN_BYTES

    async def main() -> None:
        async with (
            world.client() as client,
            client.producer(batch_bytes=10_000, max_in_flight=2, compression="none") as producer,
        ):
            await producer.send("orders", b"first")
            world.broker.script.extend([Do.HOLD, Do.HOLD])
            values = [b"%06d" % n + b"x" * 78 for n in range(held_bytes // 100)]
            sent: dict[int, Sequence[RecordMetadata]] = {}

            async def call(start: int) -> None:
                sent[start] = await producer.send_many("orders", values[start : start + 500])

            async with anyio.create_task_group() as tasks:
                for start in range(0, len(values), 500):
                    tasks.start_soon(call, start)
                await anyio.wait_all_tasks_blocked()
                assert world.broker.held == 2
                world.broker.release()
            for start, found in sent.items():
                for place, metadata in enumerate(found):
                    assert topic.logs[0][metadata.offset] == values[start + place]

    run(main)
    _, first, second, *others = topic.batches[0]
    assert first == second == 100, "of one call: the slots were free"
    assert 0.8 * GROWN_BYTES < max(others) * 100 <= GROWN_BYTES
    assert len(others) <= 5


def test_batches_do_not_grow_beyond_what_the_broker_takes(run: Run, world: World) -> None:
    topic = world.broker.create("orders")
    world.broker.request_bytes_max = 100_000

    async def main() -> None:
        async with (
            world.client() as client,
            client.producer(batch_bytes=10_000, max_in_flight=1, compression="none") as producer,
        ):
            await producer.send("orders", b"first")
            world.broker.script.append(Do.HOLD)
            for _ in range(2_000):
                producer.enqueue_nowait("orders", b"x" * 84)
            world.broker.release()
            await producer.flush()

    run(main)
    assert 100 < max(topic.batches[0]) <= 500


def test_flush_returns_when_all_that_was_accepted_is_durable(run: Run, world: World) -> None:
    topic = world.broker.create("orders", 3)

    async def main() -> None:
        async with world.client() as client, client.producer(linger=60.0) as producer:
            for n in range(50):
                producer.enqueue_nowait("orders", b"x", partition=n % 3)
            await producer.flush()
            assert sum(map(len, topic.logs)) == 50
            assert producer.health().buffered_records == 0

    run(main)


def test_records_for_a_topic_not_known_yet_are_routed_in_order(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            deliveries = [producer.enqueue_nowait("orders", b"%d" % n) for n in range(10)]
            assert not deliveries[0].done()
            assert (await producer.send("orders", b"10")).offset == 10
            assert [(await delivery).offset for delivery in deliveries] == list(range(10))

    run(main)
    assert topic.logs[0] == [b"%d" % n for n in range(11)]


def test_enqueue_nowait_raises_buffer_full_and_enqueue_waits(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(buffer_bytes=1_000) as producer:
            await producer.send("orders", b"x")
            world.broker.script.append(Do.HOLD)
            for _ in range(10):
                producer.enqueue_nowait("orders", b"x" * 84)
            with pytest.raises(
                BufferFull, match="1,000 B of buffer_bytes 1,000 B are waiting"
            ) as caught:
                producer.enqueue_nowait("orders", b"")
            assert caught.value.buffered_bytes == 1_000
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(producer.send, "orders", b"y" * 84)
                await anyio.wait_all_tasks_blocked()
                assert producer.health().buffered_bytes == 1_000
                while not world.broker.held:
                    await anyio.lowlevel.checkpoint()
                world.broker.release()

    run(main)
    assert world.broker.topics["orders"].logs[0][-1] == b"y" * 84


def test_bad_calls_are_refused_at_the_call(run: Run, world: World) -> None:
    world.broker.create("orders", record_bytes_max=100)

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            with pytest.raises(EncodeError, match="value of type str for topic 'orders'"):
                await producer.send("orders", "text")  # type: ignore[arg-type]
            with pytest.raises(PartitionNotFound, match=r"orders\[1\] does not exist"):
                await producer.send("orders", b"x", partition=1)
            with pytest.raises(RecordTooLarge) as caught:
                await producer.enqueue("orders", b"x" * 101)
            assert (caught.value.size, caught.value.limit) == (101, 100)
            with pytest.raises(ValueError, match="1 keys for 2 values"):
                await producer.send_many("orders", [b"1", b"2"], keys=[None])
            wrong: Any = [("a", 1)]
            with pytest.raises(TypeError):
                producer.enqueue_nowait("orders", b"x", headers=wrong)
            assert producer.health().buffered_bytes == 0

    run(main)
    assert world.broker.produced == []


def test_headers_keys_and_tombstones_travel(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client, client.producer(key=str, value="json") as producer:
            await producer.send("orders", {"n": 1}, key="a", headers=[("h", b"1"), ("h", None)])
            await producer.send("orders", None, key="a")

    run(main)
    assert topic.logs[0] == [b'{"n":1}', b""]
    assert topic.keys[0] == [b"a", b"a"]


@pytest.mark.parametrize("acks", [1, 0])
def test_weaker_acks_on_request(run: Run, world: World, acks: int) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        chosen = 1 if acks else 0
        async with (
            world.client() as client,
            client.producer(acks=1 if chosen else 0, idempotent=False) as producer,
        ):
            sent = await producer.send("orders", b"x")
            assert sent.offset == (0 if acks else -1)
            await producer.send_many("orders", [b"y"] * 100)

    run(main)
    assert len(topic.logs[0]) == 101
    assert world.broker.producer_ids == 0
