"""Values that do not decode: raised, skipped or written to another topic."""

from typing import Any

import pytest

import tailrace
from tailrace.client.codecs import CodecSpec
from tailrace.protocol.errors import DecodeError
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.test_consumer import everything, seeded
from tests.client.world import Run

MIXED: list[bytes | None] = [b"1", b"2", b"oops", b"4", None]


@pytest.mark.parametrize("way", ["records", "batches"])
def test_decode_error_stays_until_seek(run: Run, broker: Broker, way: str) -> None:
    topic = seeded(broker, MIXED)
    at = TopicPartition(topic, 0)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, value="json", stop_at_end=True) as consumer:
                found: list[Any] = []

                async def read() -> None:
                    if way == "records":
                        async for record in consumer:
                            found.append(record.value)
                    else:
                        async for batch in consumer.batches():
                            found.extend(batch.values)

                for _ in range(2):
                    with pytest.raises(DecodeError, match=r"T060: .*@2 is not json") as caught:
                        await read()
                    assert (caught.value.offset, caught.value.raw) == (2, b"oops")
                    assert consumer.position(at) == 2
                assert consumer.health().state == "stalled"
                await consumer.seek(at, 3)
                await read()
        assert found == [1, 2, 4, None]

    run(main)


@pytest.mark.parametrize("way", ["records", "batches"])
def test_skipped_records_are_logged(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    topic = seeded(broker, MIXED)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(
                topic, value="json", on_decode_error="skip", stop_at_end=True
            ) as consumer:
                if way == "records":
                    found = [record.value async for record in consumer]
                else:
                    found = [value async for batch in consumer.batches() for value in batch.values]
        assert found == [1, 2, 4, None]

    run(main)
    assert f"T060: {topic}[0]@2 is not json" in caplog.text


def test_dead_letters_keep_the_record_and_say_where_it_came_from(run: Run, broker: Broker) -> None:
    topic, letters = seeded(broker, MIXED), seeded(broker, [])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(
                topic,
                value="json",
                on_decode_error="dead_letter",
                dead_letter=letters,
                stop_at_end=True,
            ) as consumer:
                assert [r.value async for r in consumer] == [1, 2, 4, None]

    run(main)
    (letter,) = broker.records(letters)
    original = broker.records(topic)[2]
    assert (letter.key, letter.value) == (original.key, b"oops")
    assert letter.timestamp == original.timestamp
    headers = dict(letter.headers)
    assert headers["tailrace-dlq-topic"] == topic.encode()
    assert headers["tailrace-dlq-partition"] == b"0"
    assert headers["tailrace-dlq-offset"] == b"2"
    assert headers["tailrace-dlq-attempts"] == b"1"
    assert (headers["tailrace-dlq-error"] or b"").startswith(b"T060: ")


def test_position_does_not_pass_a_dead_letter_that_is_not_durable(run: Run, broker: Broker) -> None:
    topic = seeded(broker, MIXED)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(
                topic, value="json", on_decode_error="dead_letter", dead_letter="..", idle_timeout=1
            ) as consumer:
                records = consumer.__aiter__()
                assert [(await records.__anext__()).value for _ in range(2)] == [1, 2]
                with pytest.raises(tailrace.TailraceError):
                    await records.__anext__()
                assert consumer.position(TopicPartition(topic, 0)) == 2

    run(main)


@pytest.mark.parametrize(
    ("spec", "data", "value"),
    [(str, "ü".encode(), "ü"), ("msgpack", b"\x92\x01\x02", [1, 2]), ("json", b"[1]", [1])],
)
def test_values_are_decoded(
    run: Run, broker: Broker, spec: CodecSpec[Any], data: bytes, value: object
) -> None:
    topic = seeded(broker, [data])

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            async with client.consumer(topic, key=str, value=spec, stop_at_end=True) as consumer:
                (record,) = await everything(consumer)
            assert (record.key, record.value, record.raw_value) == ("key-0", value, data)

    run(main)
