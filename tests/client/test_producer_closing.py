"""The end of a producer: flushed, in time, and never silently (C7, C8)."""

import gc
import logging
import warnings

import anyio
import pytest

from tailrace.protocol.errors import CloseTimeout, UsageError
from tests.client.fake_broker import Topic
from tests.client.world import Run, World


def numbers(topic: Topic) -> list[int]:
    return [int(value) for value in topic.logs[0]]


def test_closing_flushes_also_when_the_body_raised(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            producer = client.producer(linger=60.0)

            async def body() -> None:
                async with producer:
                    await producer.send("orders", b"0")
                    producer.enqueue_nowait("orders", b"1")
                    raise KeyError("mine")

            with pytest.raises(KeyError, match="mine"):
                await body()
            with pytest.raises(UsageError, match="Producer is closed"):
                producer.enqueue_nowait("orders", b"2")
            with pytest.raises(UsageError, match="Producer is closed"):
                await producer.send("orders", b"2")
            await producer.aclose()
            assert producer.health().state == "closed"

    run(main)
    assert numbers(topic) == [0, 1]


def test_the_client_closes_a_producer_left_open(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            producer = client.producer(linger=60.0)
            await producer.send("orders", b"0")
            producer.enqueue_nowait("orders", b"1")
            producer.enqueue_nowait("orders", b"2")

    run(main)
    assert numbers(topic) == [0, 1, 2]


def test_closing_against_a_black_hole_ends_in_time_and_counts_the_rest(
    run: Run, world: World
) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            producer = client.producer(close_timeout=0.05)
            await producer.send("orders", b"0")
            world.broker.black_hole = True
            lost = [producer.enqueue_nowait("orders", b"x") for _ in range(7)]
            with pytest.raises(CloseTimeout, match="7 records not delivered") as caught:
                await producer.aclose()
            assert caught.value.undelivered == 7
            assert caught.value.maybe_written
            with pytest.raises(CloseTimeout):
                await lost[0]

    run(main)


def test_closing_under_cancellation_still_flushes_for_a_moment(run: Run, world: World) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            with anyio.CancelScope() as scope:
                async with client.producer(linger=60.0) as producer:
                    await producer.send("orders", b"0")
                    producer.enqueue_nowait("orders", b"1")
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught

    run(main)
    assert numbers(topic) == [0, 1]


def test_a_cancelled_client_still_flushes_for_a_moment(
    run: Run, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    topic = world.broker.create("orders")

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with world.client() as client, client.producer(linger=60.0) as producer:
                await producer.send("orders", b"0")
                producer.enqueue_nowait("orders", b"1")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    run(main)
    assert numbers(topic) == [0, 1]
    assert "T026" not in caplog.text


def test_closing_under_cancellation_logs_what_is_left(
    run: Run, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.sender.CANCELLED_CLOSE_S", 0.02)
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            with anyio.CancelScope() as scope:
                async with client.producer() as producer:
                    await producer.send("orders", b"0")
                    world.broker.black_hole = True
                    producer.enqueue_nowait("orders", b"1")
                    scope.cancel()
                    await anyio.sleep_forever()

    with caplog.at_level(logging.ERROR):
        run(main)
    assert "T026: producer closed with 1 record not delivered" in caplog.text


def test_a_producer_dropped_with_pending_records_warns(run: Run, world: World) -> None:
    world.broker.create("orders")

    async def main() -> None:
        async with world.client() as client:
            producer = client.producer(linger=60.0)
            await producer.send("orders", b"0")
            producer.enqueue_nowait("orders", b"1")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del producer
                gc.collect()
            (warning,) = [w for w in caught if w.category is ResourceWarning]
            assert "T051: Producer created at" in str(warning.message)
            assert "test_producer_closing.py" in str(warning.message)

    run(main)
    assert numbers(world.broker.topics["orders"]) == [0, 1], "the client delivers it all the same"
