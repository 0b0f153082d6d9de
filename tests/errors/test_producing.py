"""T020-T031: records that were not, or not surely, written."""

import time

import pytest

import tailrace.sync
from tailrace.protocol import texts
from tailrace.protocol.errors import (
    CloseTimeout,
    FlushError,
    RequestTimeout,
    SendManyError,
    SendTimeout,
    TailraceError,
    from_wire,
)
from tailrace.protocol.messages import ProduceResponse
from tailrace.testing import Broker
from tests.broker.harness import Client, batch, produce_request
from tests.errors.planting import answering
from tests.errors.provoking import told, with_raw_client

SMALL = {"max_record": "1KiB"}


@pytest.fixture
def small(broker: Broker) -> str:
    """A topic whose records have at most 1 KiB."""
    name = broker.name("small")
    broker.create_topic(name, 1, **SMALL)
    return name


@pytest.mark.provokes("T020")
@pytest.mark.parametrize("sent", [False, True], ids=["nothing was written", "perhaps"])
def test_a_record_that_is_not_acknowledged_in_time(sent: bool) -> None:
    end = "the record may have been written" if sent else "nothing was written"
    with Broker() as broker:
        broker.create_topic("orders", 1)
        with broker.client() as client, client.producer(timeout=0.2) as producer:
            producer.send("orders", b"a")
            fault = broker.faults.black_hole() if sent else broker.faults.error("T033", "produce")
            with fault, pytest.raises(SendTimeout) as caught:
                producer.send("orders", b"b")
    told(
        caught.value,
        "T020",
        rf"orders\[0\] not acknowledged in [\d.]+ s after \d+ attempts; last: .+; {end}",
        **{"topic": "orders", "partition": 0, "maybe_written": sent},
    )
    assert caught.value.hint == "Look: tailrace explain orders:0"
    assert caught.value.elapsed >= 0.2
    if not sent:
        assert caught.value.last_error is not None
        assert caught.value.last_error.code == "T033"
        assert caught.value.attempts > 1


@pytest.mark.provokes("T021")
def test_a_record_that_is_too_large(broker: Broker, small: str) -> None:
    with broker.client().producer() as producer:
        with pytest.raises(tailrace.RecordTooLarge) as caught:
            producer.send(small, b"x" * 2_048)
    told(
        caught.value,
        "T021",
        rf"record of 2 KiB exceeds max_record 1 KiB of topic '{small}'",
        **{"topic": small, "size": 2_048, "limit": 1_024, "maybe_written": False},
    )
    _, _, command = caught.value.hint.partition("or: tailrace topic alter ")
    assert command == f"{small} --set max_record=2KiB", "and it is enough:"
    broker.client().admin.alter_topic(small, config={"max_record": "2KiB"})
    with broker.client().producer() as producer:
        assert producer.send(small, b"x" * 2_048).offset == 0


@pytest.mark.provokes("T022")
def test_event_times_that_cannot_be(broker: Broker, topic: str) -> None:
    ahead = int(time.time() * 1000) + 30 * 86_400_000
    with broker.client().producer() as producer:
        with pytest.raises(tailrace.InvalidTimestamp) as caught:
            producer.send(topic, b"a", timestamp=ahead)
        message = (
            rf"timestamp {ahead} for {topic}\[0\] is [\d,.]+ s ahead of the broker, "
            r"timestamp_ahead_max is 3,600 s; nothing was written"
        )
        told(caught.value, "T022", message, topic=topic, timestamp=ahead)
        assert ahead - 31 * 86_400_000 < caught.value.limit < ahead
        with pytest.raises(tailrace.InvalidTimestamp) as caught:
            producer.send(topic, b"a", timestamp=-1)
        message = rf"timestamp -1 for {topic}(\[0\])? is below 0; nothing was written"
        told(caught.value, "T022", message, topic=topic, timestamp=-1)


@pytest.mark.provokes("T023")
def test_a_buffer_without_room(broker: Broker, topic: str) -> None:
    with broker.client().producer(buffer_bytes=8_192, linger=60.0) as producer:
        producer.send(topic, b"first")
        with broker.faults.delay(0.1, "produce"):
            producer.enqueue_nowait(topic, b"x" * 8_000)
            with pytest.raises(tailrace.BufferFull) as caught:
                producer.enqueue_nowait(topic, b"x" * 1_000)
    told(
        caught.value,
        "T023",
        rf"no room for [\d,.]+ (B|KiB) for {topic}(\[0\])?: [\d.]+ KiB of buffer_bytes 8 KiB are "
        "waiting; nothing was written",
        **{"topic": topic, "maybe_written": False},
    )
    assert 0 < caught.value.buffered_bytes <= 8_192


@pytest.mark.provokes("T024")
def test_some_of_many_failed(broker: Broker, small: str) -> None:
    with broker.client().producer() as producer, pytest.raises(SendManyError) as caught:
        producer.send_many(small, [b"a", b"x" * 2_048, b"c"])
    told(
        caught.value,
        "T024",
        rf"1 of 3 records for {small}(\[0\])? failed; first: index 1, T021: record of 2 KiB .+",
        topic=small,
    )
    assert {index: error.code for index, error in caught.value.failures.items()} == {1: "T021"}
    assert [None if one is None else one.offset for one in caught.value.metadata] == [0, None, 1]


@pytest.mark.provokes("T025")
def test_what_nobody_awaited(broker: Broker, topic: str) -> None:
    with broker.client().producer(timeout=0.1) as producer:
        producer.send(topic, b"a")
        with broker.faults.error("T033", "produce"):
            producer.enqueue(topic, b"b")
            with pytest.raises(FlushError) as caught:
                producer.flush()
    told(
        caught.value,
        "T025",
        rf"1 record enqueued since the last flush failed; first: T020: {topic}\[0\] .+",
        **{"failed": 1, "topic": topic, "partition": 0, "maybe_written": False},
    )
    assert caught.value.first.code == "T020"


@pytest.mark.provokes("T026")
def test_what_was_left_at_the_end(broker: Broker, topic: str) -> None:
    producer = broker.client().producer(close_timeout=0.1)
    producer.send(topic, b"a")
    with broker.faults.error("T033", "produce"):
        producer.enqueue(topic, b"b")
        with pytest.raises(CloseTimeout) as caught:
            producer.close()
    told(
        caught.value,
        "T026",
        r"producer closed with 1 record not delivered after 0\.1 s",
        **{"undelivered": 1, "maybe_written": False},
    )


@pytest.mark.provokes("T034")
def test_a_broker_that_does_not_answer() -> None:
    with Broker() as broker:
        with tailrace.sync.connect(broker.url, request_timeout=0.1) as client:
            with broker.faults.black_hole(), pytest.raises(RequestTimeout) as caught:
                client.admin.list_topics()
    told(
        caught.value,
        "T034",
        r"describe topics got no answer from 127\.0\.0\.1:\d+( \(.+\))? in 0\.1 s",
    )


@pytest.mark.provokes("T028")
def test_a_batch_that_was_damaged_on_the_way(broker: Broker, topic: str) -> None:
    async def talk(client: Client) -> None:
        (known,) = (await client.metadata(topic)).topics
        entry = bytearray(batch(known.topic_id, [b"a" * 100]))
        entry[-1] ^= 1
        request = produce_request(known.topic_id, [bytes(entry)])
        answer, _ = await client.ask(request, ProduceResponse, bytes(entry))
        (result,) = answer.results
        assert result.error is not None
        told(
            from_wire(result.error),
            "T028",
            rf"batch for {topic}\[0\] refused: .+; nothing was written",
            **{"topic": topic, "partition": 0, "maybe_written": False},
        )

    with_raw_client(broker.url, talk)


@pytest.mark.provokes("T030")
def test_too_few_replicas_in_sync() -> None:
    """One broker never says so: it is planted, and what is checked is how it arrives."""
    short = texts.not_enough_replicas(
        *("orders", 0), have=1, need=2, missing=[("n2", "is offline for 14 s")], waited_s=5
    )
    with answering(short, "produce") as broker:
        broker.create_topic("orders", 1)
        with broker.client().producer(timeout=0.2) as producer:
            with pytest.raises(SendTimeout) as caught:
                producer.send("orders", b"a")
    assert caught.value.last_error is not None
    told(
        caught.value.last_error,
        "T030",
        r"orders\[0\] has 1 in-sync of min_isr 2 \(n2 is offline for 14 s\); nothing was written "
        "in 5 s",
        **{"have": 1, "need": 2, "topic": "orders", "partition": 0},
    )
    assert caught.value.last_error.hint == "Bring n2 back: tailrace cluster health"


@pytest.mark.provokes("T031")
def test_a_disk_that_is_full() -> None:
    with Broker() as broker:
        broker.create_topic("orders", 1)
        with broker.client().producer(timeout=0.3) as producer:
            producer.send("orders", b"a")
            with broker.faults.disk_full(), pytest.raises(SendTimeout) as caught:
                producer.send("orders", b"b")
            last: TailraceError | None = caught.value.last_error
            assert last is not None
            told(
                last,
                "T031",
                r"broker n1 is read-only: [\d.]+ (B|KiB|MiB|GiB) free, min_free 1MiB",
                **{"topic": "orders", "broker": "n1", "retry_after": 5.0},
            )
            assert last.hint == "Free space or shorten retention; retry after 5 s."
