"""A user's code: what type checkers infer of the SDK. It is checked, never run."""

from collections.abc import Sequence
from typing import Any, assert_type

import msgspec
import pydantic

import tailrace
import tailrace.sync
from tailrace import Batch, Consumer, Delivery, Producer, Record, RecordMetadata, TopicPartition


class Order(msgspec.Struct):
    """A value with a type."""

    id: int


class User(pydantic.BaseModel):
    """A key with a type, why not."""

    name: str


class Cents:
    """A codec of the user's own."""

    name = "cents"

    def encode(self, value: int) -> bytes:
        return b"%d" % value

    def decode(self, data: bytes) -> int:
        return int(data)


async def producers(client: tailrace.Client) -> None:
    assert_type(client.producer(), Producer[bytes, bytes])
    assert_type(client.producer(key=str), Producer[str, bytes])
    assert_type(client.producer(value=Order), Producer[bytes, Order])
    assert_type(client.producer(key=User, value=Order, acks="all"), Producer[User, Order])
    assert_type(client.producer(value=Cents()), Producer[bytes, int])
    assert_type(client.producer(value="json"), Producer[bytes, Any])
    assert_type(client.producer(key="msgpack", value="json"), Producer[Any, Any])
    assert_type(client.producer(key=str, value="json"), Producer[str, Any])
    async with client.producer(key=str, value=Order, linger=0.01) as producer:
        assert_type(producer, Producer[str, Order])
        assert_type(await producer.send("orders", Order(1), key="a"), RecordMetadata)
        await producer.send("orders", None, key="a", headers=[("a", None)])
        delivery = await producer.enqueue("orders", Order(2))
        assert_type(delivery, Delivery)
        assert_type(await delivery, RecordMetadata)
        sent = await producer.send_many("orders", [Order(3), None], keys=["a", None])
        assert_type(sent, Sequence[RecordMetadata])


async def consumers(client: tailrace.Client) -> None:
    assert_type(client.consumer("orders"), Consumer[bytes, bytes])
    assert_type(client.consumer("orders", key=str, value=Order), Consumer[str, Order])
    assert_type(client.consumer("orders", value="json"), Consumer[bytes, Any])
    at = TopicPartition("orders", 0)
    async with client.consumer(partitions=[at], value=Cents(), start="latest") as consumer:
        async for record in consumer:
            assert_type(record, Record[bytes, int])
            assert_type(record.value, int | None)
            assert_type(record.key, bytes | None)
            assert_type(record.headers, list[tuple[str, bytes | None]])
        async for batch in consumer.batches(max_records=1_000):
            assert_type(batch, Batch[bytes, int])
            assert_type(batch.values, Sequence[int | None])
            assert_type(batch[0], Record[bytes, int])
            assert_type(batch[:5], Batch[bytes, int])
        async for stream in consumer.partitions():
            async for record in stream:
                assert_type(record, Record[bytes, int])
        assert_type(consumer.lag(), dict[TopicPartition, int])

        async def handle(record: Record[bytes, int]) -> None: ...

        await consumer.run(handle, on_error=tailrace.retry(3).then_dead_letter("dlq"))


def synchronous() -> None:
    with tailrace.sync.connect() as client:
        assert_type(client, tailrace.sync.Client)
        with client.producer(key=str, value="json") as producer:
            assert_type(producer, tailrace.sync.Producer[str, Any])
            assert_type(producer.send("orders", {"n": 1}, key="a"), RecordMetadata)
            assert_type(producer.enqueue("orders", {}).result(1.0), RecordMetadata)
        with client.consumer("orders", value=Order) as consumer:
            assert_type(consumer, tailrace.sync.Consumer[bytes, Order])
            for record in consumer:
                assert_type(record, Record[bytes, Order])
            for batch in consumer.batches():
                assert_type(batch.values, Sequence[Order | None])


async def errors(client: tailrace.Client) -> None:
    try:
        assert_type(await client.admin.create_topic("orders"), tailrace.TopicDetail)
    except tailrace.TopicExists as error:
        assert_type(error.code, str)
    except tailrace.OffsetOutOfRange as error:
        assert_type(error.requested, int)
        assert_type(error.topic, str | None)
    assert_type(client.health(), tailrace.ClientHealth)
