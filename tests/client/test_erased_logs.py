"""Reading logs of which records were erased: gaps, empty ranges, and an end without records."""

import uuid

import pytest

from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker

WITHIN_S = 0.2


@pytest.fixture
def topic(broker: Broker) -> str:
    """Records 5 to 14 are left of 20, in batches of four."""
    name = f"erased-{uuid.uuid4().hex[:8]}"
    broker.create_topic(name)
    for base in range(0, 20, 4):
        numbers = range(base, base + 4)
        broker.seed(
            name,
            [b"%d" % at for at in numbers],
            keys=[b"stays" if 5 <= at < 15 else b"goes" for at in numbers],
        )
    receipt = broker.client().admin.erase(name, keys=[b"goes"])
    assert (receipt.records, receipt.completed_at is not None) == (10, True)
    return name


def test_reading_to_the_end_ends_behind_the_last_gap(broker: Broker, topic: str) -> None:
    at = TopicPartition(topic, 0)
    with broker.client().consumer(topic, stop_at_end=True) as consumer:
        found = [(record.offset, record.value) for record in consumer]
        assert found == [(offset, b"%d" % offset) for offset in range(5, 15)]
        assert consumer.position(at) == 20
        assert consumer.lag() == {at: 0}


def test_idle_timeout_counts_and_nothing_is_left_to_be_read(broker: Broker, topic: str) -> None:
    at = TopicPartition(topic, 0)
    with broker.client().consumer(topic, idle_timeout=WITHIN_S) as consumer:
        assert [record.offset for record in consumer] == list(range(5, 15))
        assert consumer.lag() == {at: 0}
        assert consumer.health().lag_records == 0


@pytest.mark.parametrize(
    ("offset", "first"), [(0, 5), (3, 5), (5, 5), (14, 14), (15, 20), (18, 20)]
)
def test_seek_into_a_gap_goes_on_with_the_next_record(
    broker: Broker, topic: str, offset: int, first: int
) -> None:
    broker.seed(topic, [b"new"])
    with broker.client().consumer(topic, stop_at_end=True) as consumer:
        consumer.seek(TopicPartition(topic, 0), offset)
        assert next(iter(consumer)).offset == first


def test_what_is_sent_later_is_read_behind_the_gap(broker: Broker, topic: str) -> None:
    broker.seed(topic, [b"new", b"newer"])
    with broker.client().consumer(topic, stop_at_end=True) as consumer:
        assert [record.offset for record in consumer] == [*range(5, 15), 20, 21]


def test_batches_are_never_empty_and_commit_behind_the_gap(broker: Broker, topic: str) -> None:
    with broker.client().consumer(topic, stop_at_end=True) as consumer:
        batches = list(consumer.batches())
    assert all(len(batch) for batch in batches)
    assert [offset for batch in batches for offset in batch.offsets] == list(range(5, 15))
    assert batches[-1].next_offset in (16, 20)


def test_a_log_without_any_record_is_at_its_end(broker: Broker, topic: str) -> None:
    broker.client().admin.erase(topic, keys=[b"stays"])
    with broker.client().consumer(topic, stop_at_end=True) as consumer:
        assert list(consumer) == []
        assert consumer.position(TopicPartition(topic, 0)) == 20
