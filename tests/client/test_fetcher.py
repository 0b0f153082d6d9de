"""Fetching: what is asked for, how much, and what happens when it goes wrong."""

from typing import Any

import anyio
import pytest

from tailrace.client.client import Client
from tailrace.client.consumer import Consumer
from tailrace.client.fetcher import CROWDED_FROM
from tailrace.client.partition_buffer import PartitionBuffer
from tailrace.protocol import texts
from tailrace.protocol.errors import CorruptBatch, OffsetOutOfRange, TopicNotFound
from tailrace.protocol.shapes import TopicPartition
from tests.client.fetch_broker import FetchWorld
from tests.client.world import Run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    return FetchWorld(monkeypatch)


async def take(consumer: Consumer[Any, Any], count: int) -> list[Any]:
    records = consumer.__aiter__()
    return [(await records.__anext__()).value for _ in range(count)]


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def test_nothing_is_fetched_before_somebody_reads(run: Run, here: FetchWorld) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a"])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            await settle()
            assert here.fetch.fetched == []
            assert await take(consumer, 1) == [b"a"]

    run(main)


def test_one_request_asks_for_all_partitions_of_a_leader(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders", 3)

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with anyio.move_on_after(0.05):
                await take(consumer, 1)
            first, request = here.fetch.fetched
            assert first.wait_ms == 0, "to learn the ends"
            assert [part.partition for part in request.partitions] == [0, 1, 2]
            assert (request.wait_ms, request.bytes_min, request.isolation) == (5_000, 1, 1)
            assert request.bytes_max == 8 << 20
            here.fetch.append(topic, [b"late"], 2)
            assert await take(consumer, 1) == [b"late"]

    run(main)


def test_partition_that_wants_more_does_not_wait_for_quiet_ones(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders", 2)
    for number in range(40):
        here.fetch.append(topic, [b"%d" % number, bytes(300_000)], 1)

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", fetch_wait=30.0) as consumer:
                values = [value for value in await take(consumer, 80) if len(value) < 10]
                assert values == [b"%d" % number for number in range(40)]

    run(main)


def test_consumer_holds_no_more_than_it_may(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders", 4)
    for partition in range(4):
        for _ in range(50):
            here.fetch.append(topic, [bytes(10_000)], partition)

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", prefetch_bytes=100_000) as consumer:
                held: list[int] = []
                records = consumer.__aiter__()
                for _ in range(200):
                    await records.__anext__()
                    await settle()
                    budget = consumer.feed.fetcher._budget
                    held.append(budget.used)
                assert 10_000 < max(held) <= 100_000 + 10_200
                assert budget.used == 0

    run(main)


def test_others_are_asked_for_when_the_one_that_took_all_the_room_is_paused(
    run: Run, here: FetchWorld
) -> None:
    topic = here.fetch.create("orders", 3)
    for _ in range(12):
        here.fetch.append(topic, [bytes(9_000)], 0)

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", prefetch_bytes=20_000) as consumer:
                records = consumer.__aiter__()
                assert (await records.__anext__()).partition == 0
                await anyio.sleep(0.05)  # all room is taken
                consumer.pause(TopicPartition("orders", 0))
                here.fetch.append(topic, [b"2"], 2)
                assert (await records.__anext__()).partition == 2

    run(main)


def test_reading_goes_on_by_offset_after_a_lost_connection(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    for number in range(3):
        here.fetch.append(topic, [b"%d" % number])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 3) == [b"0", b"1", b"2"]
            here.fetch.disconnect()
            here.fetch.append(topic, [b"3"])
            assert await take(consumer, 1) == [b"3"]
            here.fetch.disconnect(ConnectionResetError())
            here.fetch.append(topic, [b"4"])
            assert await take(consumer, 1) == [b"4"]
            assert consumer.position(TopicPartition("orders", 0)) == 5

    run(main)


@pytest.mark.parametrize(
    "error",
    [
        texts.not_leader("orders", 0, broker="n1"),
        texts.epoch_fenced("orders", 0, yours=1, current=2),
        texts.offset_not_available("orders", 0, epoch=2),
        texts.partition_offline("orders", 0, reason="no replica is up"),
        texts.metadata_unavailable("sqlite", "busy"),
    ],
)
def test_what_passes_by_waiting_is_asked_again(run: Run, here: FetchWorld, error: Any) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a"])
    here.fetch.refuse_with += [error, error]

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"a"]

    run(main)
    assert len(here.fetch.fetched) >= 3


def test_empty_answers_are_not_asked_for_in_a_tight_loop(run: Run, here: FetchWorld) -> None:
    here.fetch.create("orders")
    here.fetch.eager = True

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with anyio.move_on_after(0.1):
                await take(consumer, 1)

    run(main)
    assert 2 <= len(here.fetch.fetched) <= 120


def test_deleted_topic_is_raised(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    here.fetch.append(topic, [b"a"])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"a"]
            del here.fetch.topics["orders"]
            here.fetch.refuse_with.append(texts.topic_id_not_found(topic.topic_id, broker="n1"))
            here.fetch.disconnect()
            with pytest.raises(TopicNotFound, match="T010: topic 'orders' does not exist"):
                await take(consumer, 1)
            with pytest.raises(TopicNotFound):
                await take(consumer, 1)
            assert consumer.health().state == "stalled"

    run(main)


def test_topic_made_again_under_its_name_is_another_topic(run: Run, here: FetchWorld) -> None:
    here.fetch.append(here.fetch.create("orders"), [b"a"])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"a"]
            here.fetch.append(here.fetch.create("orders"), [b"new"])
            here.fetch.disconnect()
            with pytest.raises(TopicNotFound, match="deleted or recreated"):
                await take(consumer, 1)

    run(main)


def test_corrupt_batch_is_raised_each_time_and_passed_by_seek(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    here.fetch.append(topic, [b"a"])
    here.fetch.append(topic, [b"b"])
    here.fetch.append(topic, [b"c"])
    log = here.fetch.entries[topic.topic_id, 0]
    log[1] = log[1][:-1] + b"\xff"

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 1) == [b"a"]
            for _ in range(2):
                with pytest.raises(CorruptBatch, match=r"T035: orders\[0\]@1 is corrupt"):
                    await take(consumer, 1)
                assert consumer.position(TopicPartition("orders", 0)) == 1
                assert consumer.health().state == "stalled"
            await consumer.seek(TopicPartition("orders", 0), 2)
            assert await take(consumer, 1) == [b"c"]
            assert consumer.health().state == "ok"

    run(main)


@pytest.mark.parametrize(
    ("policy", "first"), [("earliest", b"3"), ("latest", b"new"), ("raise", None)]
)
def test_position_outside_the_log(
    run: Run,
    here: FetchWorld,
    caplog: pytest.LogCaptureFixture,
    policy: Any,
    first: bytes | None,
) -> None:
    topic = here.fetch.create("orders")
    for number in range(6):
        here.fetch.append(topic, [b"%d" % number])
    place = topic.topic_id, 0
    here.fetch.starts[place] = 3
    here.fetch.entries[place] = here.fetch.entries[place][3:]

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", on_out_of_range=policy) as consumer:
                await consumer.seek(TopicPartition("orders", 0), 1)
                if first is None:
                    with pytest.raises(OffsetOutOfRange, match="asked for 1, but") as caught:
                        await take(consumer, 1)
                    error = caught.value
                    assert (error.requested, error.start, error.end) == (1, 3, 6)
                    return
                with anyio.move_on_after(0.05):
                    await take(consumer, 1 if policy == "latest" else 0)
                here.fetch.append(topic, [b"new"])
                assert await take(consumer, 1) == [first]
                assert "T041: asked for 1, but orders[0] starts at 3" in caplog.text
                lost = 2 if policy == "earliest" else 5
                assert f"{lost} records lost" in caplog.text

    run(main)


def test_answer_from_before_a_seek_is_dropped(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    for number in range(10):
        here.fetch.append(topic, [b"%d" % number])

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            assert await take(consumer, 10) == [b"%d" % number for number in range(10)]
            with anyio.move_on_after(0.02):
                await take(consumer, 1)
            assert here.fetch.parked, "a long poll at the end"
            await consumer.seek(TopicPartition("orders", 0), 4)
            assert await take(consumer, 2) == [b"4", b"5"]
            here.fetch.append(topic, [b"10"])
            assert await take(consumer, 5) == [b"6", b"7", b"8", b"9", b"10"]

    run(main)


def test_quiet_peer_is_given_up_and_asked_anew(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders")
    here.fetch.silent = True

    async def main() -> None:
        client: Client = here.client(request_timeout=0.05)
        async with client, client.consumer("orders", fetch_wait=0.05) as consumer:
            with anyio.move_on_after(0.3):
                await take(consumer, 1)
            assert len(here.fetch.fetched) > 1
            here.fetch.silent = False
            here.fetch.append(topic, [b"a"])
            assert await take(consumer, 1) == [b"a"]

    run(main)


@pytest.mark.parametrize(
    ("replicas", "waits_ms"),
    [
        (("n1",), [0, 2, 8, 24, 24, 24]),
        (("n1", "n2"), [0, 2, 2, 2, 2, 2]),  # n2 is away: it may take over when it is back
    ],
)
def test_consumer_that_waited_in_vain_waits_longer_until_something_comes(
    run: Run, here: FetchWorld, replicas: tuple[str, ...], waits_ms: list[int]
) -> None:
    topic = here.fetch.create("orders")
    topic.replicas = replicas

    async def read(consumer: Consumer[Any, Any]) -> None:
        assert await take(consumer, 2) == [b"a", b"b"]

    async def parked() -> tuple[Any, Any]:
        for _ in range(1_000):
            if here.fetch.parked:
                break
            await anyio.lowlevel.checkpoint()
        return here.fetch.parked.pop()

    async def main() -> None:
        async with (
            here.client() as client,
            client.consumer("orders", fetch_wait=0.002) as consumer,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(read, consumer)
            for _ in range(4):
                connection, request = await parked()
                await anyio.sleep(request.message.wait_ms / 1000)
                here.fetch.eager = True
                here.fetch.serve(connection, request)
                here.fetch.eager = False
            here.fetch.parked.append(await parked())
            assert [one.wait_ms for one in here.fetch.fetched] == waits_ms
            here.fetch.append(topic, [b"a"])
            here.fetch.parked.append(await parked())
            assert here.fetch.fetched[-1].wait_ms == 2
            here.fetch.append(topic, [b"b"])

    run(main)


def test_few_consumers_of_a_client_wait_longer_as_they_share_its_connection(
    run: Run, here: FetchWorld
) -> None:
    topic = here.fetch.create("orders")
    count = CROWDED_FROM + 2

    async def read(client: Client) -> None:
        async with client.consumer("orders", fetch_wait=0.002) as consumer:
            assert await take(consumer, 1) == [b"a"]

    async def all_parked() -> list[int]:
        for _ in range(10_000):
            if len(here.fetch.parked) == count:
                break
            await anyio.lowlevel.checkpoint()
        messages: list[Any] = [request.message for _, request in here.fetch.parked]
        return sorted(one.wait_ms for one in messages)

    async def main() -> None:
        async with here.client() as client, anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(read, client)
            for _ in range(4):
                await anyio.sleep((await all_parked())[-1] / 1000)
                here.fetch.eager = True
                here.fetch.wake()
                here.fetch.eager = False
            assert await all_parked() == [2, 2, *[24] * CROWDED_FROM]
            here.fetch.append(topic, [b"a"])

    run(main)


def test_partitions_take_turns_when_an_answer_holds_only_some(run: Run, here: FetchWorld) -> None:
    topic = here.fetch.create("orders", 8)
    for partition in range(8):
        for _ in range(20):
            here.fetch.append(topic, [bytes(9_000)], partition)

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", prefetch_bytes=40_000) as consumer:
                records = consumer.__aiter__()
                seen = [(await records.__anext__()).partition for _ in range(40)]
                assert set(seen) == set(range(8))

    run(main)


def test_handing_out_a_batch_does_not_look_at_every_partition_that_waits_to_be_asked_for(
    run: Run, here: FetchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    partitions, looks = 200, 0
    topic = here.fetch.create("orders", partitions)
    for partition in range(partitions):
        here.fetch.append(topic, [b"a"], partition)
        here.fetch.append(topic, [b"b"], partition)
    wants = PartitionBuffer.wants

    def counted(buffer: PartitionBuffer, waiting_bytes_max: int) -> bool:
        nonlocal looks
        looks += 1
        return wants(buffer, waiting_bytes_max)

    monkeypatch.setattr(PartitionBuffer, "wants", counted)

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            await take(consumer, 2 * partitions)

    run(main)
    assert looks < 10 * 2 * partitions


def test_the_next_answer_is_under_way_while_the_first_is_read_but_not_more(
    run: Run, here: FetchWorld
) -> None:
    topic = here.fetch.create("orders")
    values: list[bytes | None] = [bytes([number]) * 1_200_000 for number in range(6)]
    for value in values:
        here.fetch.append(topic, [value])

    def asked() -> list[int]:
        return [request.partitions[0].offset for request in here.fetch.fetched]

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            records = consumer.__aiter__()
            found = [(await records.__anext__()).value]
            await settle()
            assert asked() == [0, 1, 2], "two answers wait, of more than 2 MiB together"
            while len(found) < len(values):
                found.append((await records.__anext__()).value)
            assert found == values

    run(main)
