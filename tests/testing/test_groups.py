"""What tests may ask of groups, and do to their members."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

import tailrace.sync
from tailrace import TopicPartition
from tailrace.protocol.errors import GroupNotFound, RequestTimeout
from tailrace.testing import Broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@contextmanager
def reading(consumer: "tailrace.sync.Consumer[bytes, bytes]") -> Generator[threading.Event]:
    """Read all of it in a thread, until closed; set when something was read."""
    some = threading.Event()

    def read() -> None:
        for _ in consumer:
            some.set()

    thread = threading.Thread(target=until_closed(read))
    thread.start()
    try:
        yield some
    finally:
        consumer.close()
        thread.join(10)


def until_closed(read: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(tailrace.UsageError, match="T055"):
            read()

    return run


def test_a_group_is_waited_for_until_it_has_committed_all(broker: Broker) -> None:
    topic = broker.name("orders")
    values = [b"%d" % n for n in range(50)]
    broker.seed(topic, values, keys=values, partitions=2)  # without keys one batch takes them all
    consumer = broker.client().consumer(topic, group=topic, commit_interval=0.02)
    with consumer, reading(consumer):
        broker.wait_caught_up(topic, timeout=10)
        assert broker.lag(topic) == 0
        committed = broker.committed(topic)
        assert set(committed) == {TopicPartition(topic, 0), TopicPartition(topic, 1)}
        assert sum(committed.values()) == 50
    broker.seed(topic, [b"more"])
    assert broker.lag(topic) == 1


def test_waiting_in_vain_shows_the_lag_table_and_the_last_events(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a", b"b"])
    with pytest.raises(AssertionError, match=f"T043: group '{topic}' does not exist"):
        broker.wait_caught_up(topic, timeout=0.05)
    with pytest.raises(GroupNotFound):
        broker.lag(topic)
    with broker.client().consumer(topic, group=topic, commit="manual"):
        with pytest.raises(AssertionError, match=r"has not caught up after 0\.05 s") as failure:
            broker.wait_caught_up(topic, timeout=0.05)
        assert broker.committed(topic) == {}
    shown = str(failure.value)
    assert "lag 2" in shown
    assert "COMMITTED" in shown
    assert "group.rebalanced" in shown


def test_an_expired_member_loses_its_partitions_and_comes_back(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a"])
    client = broker.client()
    rebalanced = threading.Event()
    with client.consumer(topic, group=topic, commit_interval=0.02) as consumer:
        with reading(consumer) as some:
            assert some.wait(10)
            broker.wait_caught_up(topic)
            (member,) = client.admin.describe_group(topic).member_list
            client.on("rebalanced", lambda _: rebalanced.set())
            broker.expire_member(topic, member.member_id)
            assert rebalanced.wait(10)
            assert any("session" in str(event.get("reason")) for event in broker.events())
            broker.seed(topic, [b"b"])
            broker.wait_caught_up(topic, timeout=10)
        with pytest.raises(ValueError, match="nobody"):
            broker.expire_member(topic, "stranger")


def test_faults_of_commits_and_of_groups_are_apart(broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a"])
    client = tailrace.sync.connect(broker.url, request_timeout=2)
    with client, client.consumer(topic, group=topic, commit="manual") as consumer:
        next(iter(consumer))
        with broker.faults.error("T036", "commit"), pytest.raises(RequestTimeout, match="commit"):
            consumer.commit()
        with broker.faults.error("T036", "group"):
            consumer.commit()
        with broker.faults.error("T036", "group", times=1):
            assert consumer.committed() == {TopicPartition(topic, 0): 1}
