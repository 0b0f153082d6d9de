"""Each fault shows at a client as it would from a broker that really has it, and ends."""

import time
from collections.abc import Iterator

import pytest

import tailrace.sync
from tailrace.protocol.errors import (
    ConnectError,
    NotEnoughReplicas,
    SendTimeout,
    StorageFull,
)
from tailrace.testing import Broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


def connects(broker: Broker, within_s: float = 10.0) -> bool:
    try:
        with tailrace.sync.connect(broker.url, connect_timeout=within_s):
            return True
    except ConnectError:
        return False


def test_refused_connections(broker: Broker) -> None:
    old = broker.client()
    with broker.faults.refuse_connections():
        assert not connects(broker, within_s=0.2)
        assert old.admin.list_topics() is not None
    assert connects(broker)


def test_dropped_connections(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic)
    with (
        broker.client().producer(timeout=0.3) as producer,
        broker.faults.drop_connections("produce"),
        pytest.raises(SendTimeout),
    ):
        producer.send(topic, b"lost")
    with broker.client().producer() as producer:
        assert producer.send(topic, b"arrives").offset == 0
    with (
        broker.client().producer(timeout=0.3) as producer,
        broker.faults.drop_connections(),
        pytest.raises(SendTimeout),
    ):
        producer.send(topic, b"lost")


def test_a_black_hole(broker: Broker) -> None:
    with broker.faults.black_hole():
        assert not connects(broker, within_s=0.2)
    assert connects(broker)


def test_delay(broker: Broker) -> None:
    client = broker.client()
    client.admin.list_topics()
    with broker.faults.delay(0.2, "admin"):
        began = time.monotonic()
        client.admin.list_topics()
        assert time.monotonic() - began >= 0.2


def test_errors_by_code_and_number(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic)
    with broker.client().producer() as producer:
        with broker.faults.error("T030", "produce", times=1):
            assert producer.send(topic, b"retried").offset == 0
    with broker.client().producer(timeout=0.4) as producer:
        with broker.faults.error("T030", "produce"), pytest.raises(SendTimeout) as failure:
            producer.send(topic, b"never")
        assert isinstance(failure.value.last_error, NotEnoughReplicas)
    with pytest.raises(ValueError, match="no error code"):
        broker.faults.error("T999").__enter__()


def test_a_full_disk(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic)
    with (
        broker.client().producer(timeout=0.4) as producer,
        broker.faults.disk_full(),
        pytest.raises(SendTimeout) as failure,
    ):
        producer.send(topic, b"no room")
    assert isinstance(failure.value.last_error, StorageFull)
    with broker.client().producer() as producer:
        assert producer.send(topic, b"room").offset == 0


def test_a_slow_disk(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic)
    with broker.client().producer() as producer:
        producer.send(topic, b"fast")
        with broker.faults.slow_disk(0.2):
            began = time.monotonic()
            producer.send(topic, b"slow")
            assert time.monotonic() - began >= 0.2


def test_a_pause(broker: Broker) -> None:
    with broker.faults.pause():
        assert not connects(broker, within_s=0.2)
    assert connects(broker)
