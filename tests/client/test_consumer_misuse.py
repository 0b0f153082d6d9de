"""Wrong arguments and wrong calls say what is wrong, at once."""

import threading
from datetime import datetime
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.protocol.errors import (
    ConfigError,
    ConnectError,
    InvalidName,
    TailraceError,
    UsageError,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fetch_broker import FetchWorld
from tests.client.world import Run

AT = TopicPartition("orders", 0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FetchWorld:
    world = FetchWorld(monkeypatch)
    world.fetch.append(world.fetch.create("orders"), [b"a", b"b"])
    return world


@pytest.mark.parametrize(
    ("topics", "options", "says"),
    [
        ((), {}, r"T082: client.consumer\(\): topics=\(\) must be at least one"),
        (("orders",), {"partitions": [AT]}, "T082.*partitions=.* left out where topics are given"),
        ((), {"partitions": []}, "T082.*partitions"),
        (("orders",), {"start": datetime(2026, 1, 1)}, "T082.*start=.*with a time zone"),
        (("orders",), {"start": "middle"}, "T082.*start="),
        (("orders",), {"start": 5}, "T082.*start="),
        (("orders",), {"isolation": "none"}, "T082.*isolation="),
        (("orders",), {"on_out_of_range": "skip"}, "T082.*on_out_of_range="),
        (("orders",), {"on_decode_error": "ignore"}, "T082.*on_decode_error="),
        (("orders",), {"on_decode_error": "dead_letter"}, "T082.*dead_letter=None"),
        (("orders",), {"dead_letter": "letters"}, "T082.*dead_letter='letters'"),
        (("orders",), {"prefetch_bytes": 0}, "T082.*prefetch_bytes=0"),
        (("orders",), {"fetch_wait": 0.0}, "T082.*fetch_wait=0.0"),
        (("orders",), {"fetch_wait": 31.0}, "T082.*fetch_wait=31.0.*up to 30"),
        (("orders",), {"idle_timeout": -1.0}, "T082.*idle_timeout=-1.0"),
        (("orders",), {"close_timeout": 0.0}, "T082.*close_timeout=0.0"),
        (("orders",), {"value": "yaml"}, "T082.*value='yaml' must be a codec"),
        (("orders",), {"instance_id": "a"}, "T082.*instance_id='a' must be left out"),
        (("orders",), {"commit": "manual"}, "T082.*commit='manual' must be left out"),
        ((), {"group": "g", "partitions": [AT]}, "T082.*partitions=.*where a group is given"),
        (("orders",), {"group": ""}, "T013: group '' of 0 characters"),
        (("orders",), {"group": "g" * 256}, "T013: group .* of 256 characters"),
        (("orders",), {"group": "g", "instance_id": "a\n"}, "T013: instance id"),
        (("orders",), {"group": "g", "commit": "never"}, "T082.*commit='never'.*'after', 'manual'"),
        (("orders",), {"group": "g", "commit_interval": -1.0}, "T082.*commit_interval=-1.0"),
        (("orders",), {"group": "g", "heartbeat": "fork"}, "T082.*heartbeat='fork'"),
        (("orders",), {"group": "g", "session_timeout": 0.0}, "T082.*session_timeout=0.0"),
        (("orders",), {"group": "g", "rebalance_timeout": -1.0}, "T082.*rebalance_timeout=-1.0"),
        (("orders",), {"group": "g", "max_processing": 0.0}, "T082.*max_processing=0.0"),
    ],
)
def test_arguments_that_cannot_be(
    run: Run, here: FetchWorld, topics: tuple[str, ...], options: dict[str, Any], says: str
) -> None:
    async def main() -> None:
        async with here.client() as client:
            with pytest.raises((ConfigError, InvalidName), match=says):
                client.consumer(*topics, **options)

    run(main)


def test_unknown_keyword_is_a_type_error(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client() as client:
            with pytest.raises(TypeError, match="prefetch"):
                client.consumer("orders", prefetch=5)  # type: ignore[call-overload]

    run(main)


@pytest.mark.parametrize("first", ["async for", "batches()", "partitions()", "run()"])
@pytest.mark.parametrize("second", ["async for", "batches()", "partitions()", "run()"])
def test_consumer_is_read_in_one_way(run: Run, here: FetchWorld, first: str, second: str) -> None:
    async def start(consumer: tailrace.Consumer[bytes, bytes], way: str) -> None:
        if way == "async for":
            consumer.__aiter__()
        elif way == "batches()":
            consumer.batches()
        elif way == "partitions()":
            consumer.partitions()
        else:
            await consumer.run(handle, signals=False)

    async def handle(record: tailrace.Record[bytes, bytes]) -> None:
        pass

    async def main() -> None:
        async with here.client() as client:
            async with client.consumer("orders", stop_at_end=True) as consumer:
                await start(consumer, first)
                if first == second != "partitions()":
                    await start(consumer, second)
                    return
                with pytest.raises(UsageError) as caught:
                    await start(consumer, second)
                text = f"T055: consumer is already read by {first}, {second} cannot read it too"
                if first == second:
                    text = "T055: consumer is already read by partitions() of an earlier call. Keep"
                assert str(caught.value).startswith(text)

    run(main)


def test_two_tasks_cannot_wait_for_the_same_reader(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            records = consumer.__aiter__()
            await records.__anext__()
            await records.__anext__()
            async with anyio.create_task_group() as tasks:

                async def wait() -> None:
                    await records.__anext__()

                tasks.start_soon(wait)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(UsageError, match="T055"):
                    await records.__anext__()
                tasks.cancel_scope.cancel()

    run(main)


def test_calls_on_partitions_of_others_are_refused(run: Run, here: FetchWorld) -> None:
    other = TopicPartition("orders", 5)

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            says = r"T055: orders\[5\] is not assigned to this consumer"
            with pytest.raises(UsageError, match=says):
                consumer.position(other)
            with pytest.raises(UsageError, match=says):
                consumer.pause(other)
            with pytest.raises(UsageError, match=says):
                consumer.resume(other)
            with pytest.raises(UsageError, match=says):
                await consumer.seek(other, 0)

    run(main)


@pytest.mark.parametrize("to", [-1, True, datetime(2026, 1, 1), "middle"])
def test_seek_to_nowhere_is_refused(run: Run, here: FetchWorld, to: Any) -> None:
    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with pytest.raises(ConfigError, match=r"T082: consumer.seek\(\): to="):
                await consumer.seek(AT, to)
            assert consumer.position(AT) == 0

    run(main)


@pytest.mark.parametrize("arguments", [{"max_records": 0}, {"max_wait": -1.0}])
def test_batches_that_cannot_be(run: Run, here: FetchWorld, arguments: Any) -> None:
    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with pytest.raises(ConfigError, match=r"T082: consumer.batches\(\)"):
                consumer.batches(**arguments)

    run(main)


def test_commits_need_a_group(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            with pytest.raises(UsageError, match=r"T055: commit\(\) needs a group"):
                await consumer.commit()
            with pytest.raises(UsageError, match=r"T055: committed\(\) needs a group"):
                await consumer.committed()

    run(main)


def test_before_and_after(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client() as client:
            consumer = client.consumer("orders")
            with pytest.raises(UsageError, match="T055: Consumer is not open yet"):
                consumer.position(AT)
            async with consumer:
                records = consumer.__aiter__()
                await records.__anext__()
            for _ in range(2):
                await consumer.aclose()
            with pytest.raises(UsageError, match="T055: Consumer is closed"):
                await records.__anext__()
            with pytest.raises(UsageError, match="T055: Consumer is closed"):
                consumer.lag()

    run(main)


def test_consumer_without_async_with_opens_itself_and_ends_with_the_client(
    run: Run, here: FetchWorld
) -> None:
    async def main() -> None:
        async with here.client() as client:
            consumer = client.consumer("orders")
            async for record in consumer:
                if record.offset == 1:
                    break
        assert consumer.health().state == "closed"
        with pytest.raises(UsageError, match="T055"):
            consumer.lag()

    run(main)


def test_waiting_reader_is_told_of_the_close(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client() as client:
            consumer = client.consumer("orders", start="latest")
            seen: list[TailraceError] = []

            async def wait() -> None:
                try:
                    await consumer.__aiter__().__anext__()
                except UsageError as error:
                    seen.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                await consumer.aclose()
        assert [error.code for error in seen] == ["T055"]

    run(main)


def test_other_thread_is_refused(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            found: list[UsageError] = []

            def other() -> None:
                try:
                    consumer.position(AT)
                except UsageError as error:
                    found.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert [error.code for error in found] == ["T054"]

    run(main)


def test_end_of_an_outage_ends_the_consumer(run: Run, here: FetchWorld) -> None:
    async def main() -> None:
        async with here.client(max_outage=0.05) as client:
            async with client.consumer("orders", start="latest") as consumer:
                records = consumer.__aiter__()
                with anyio.move_on_after(0.02):
                    await records.__anext__()
                here.fetch.refusing = ConnectionRefusedError()
                here.fetch.disconnect()
                for _ in range(2):
                    with pytest.raises(ConnectError, match="T005: no broker reachable for"):
                        await records.__anext__()

    run(main)


def test_body_exception_leaves_unchanged(run: Run, here: FetchWorld) -> None:
    class Own(Exception):
        pass

    async def main() -> None:
        async with here.client() as client, client.consumer("orders") as consumer:
            await consumer.__aiter__().__anext__()
            raise Own

    with pytest.raises(Own):
        run(main)
