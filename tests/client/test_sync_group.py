"""``tailrace.sync`` as a member of a group: what a thread has in hand is not processed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

import pytest

import tailrace.sync
from tailrace.client.heart_seat import Seat
from tailrace.client.records import Record
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker


@pytest.fixture
def topic(broker: Broker) -> str:
    """One partition with a hundred records."""
    name = broker.name("orders")
    broker.create_topic(name)
    broker.seed(name, [b"%d" % number for number in range(100)])
    return name


@contextmanager
def member(
    broker: Broker, topic: str, **options: Any
) -> Iterator[tailrace.sync.Consumer[Any, Any]]:
    given: dict[str, Any] = {"group": f"g-{topic}", "close_timeout": 2.0, "commit_interval": 60.0}
    with tailrace.sync.connect(broker.url) as client:
        with client.consumer(topic, **given | options) as consumer:
            yield consumer


def rest(broker: Broker, topic: str) -> list[int]:
    with member(broker, topic, stop_at_end=True, commit="manual") as consumer:
        return [record.offset for record in consumer]


def wait_until(condition: Any) -> None:
    for _ in range(2_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it did not happen")


def test_record_in_hand_comes_again_after_break(broker: Broker, topic: str) -> None:
    with member(broker, topic) as consumer:
        for record in consumer:
            if record.offset == 37:
                break
    assert rest(broker, topic)[0] == 37


def test_what_was_read_to_its_end_is_not_read_again(broker: Broker, topic: str) -> None:
    with member(broker, topic, stop_at_end=True) as consumer:
        assert len(list(consumer)) == 100
    assert rest(broker, topic) == []


def test_records_held_for_nobody_are_not_committed_by_commit(broker: Broker, topic: str) -> None:
    at = TopicPartition(topic, 0)
    with member(broker, topic, commit="manual") as consumer:
        records = iter(consumer)
        for _ in range(5):
            next(records)
        consumer.commit(metadata="five")
        assert consumer.committed() == {at: 5}
        assert next(records).offset == 5
        consumer.commit({at: 6})
    assert rest(broker, topic)[0] == 6


def test_every_thread_has_its_own_record_in_hand(broker: Broker, topic: str) -> None:
    go_on, took = threading.Event(), threading.Event()
    found: list[int] = []

    with member(broker, topic) as consumer:
        records = iter(consumer)

        def hold() -> None:
            found.append(next(records).offset)
            took.set()
            go_on.wait(5)
            next(records)

        thread = threading.Thread(target=hold)
        thread.start()
        took.wait(5)
        for _ in range(20):
            found.append(next(records).offset)
        consumer._portal.run(consumer._inner.feed.jumped)
        group = consumer._inner.feed.group
        assert group is not None
        at = TopicPartition(topic, 0)
        assert found[0] == 0
        assert consumer._portal.run(group.committable) == {}
        go_on.set()
        thread.join(5)
        assert consumer._portal.run(group.committable)[at].offset == 20
    assert found == list(range(21))
    assert rest(broker, topic)[0] == 20, "and what the ended thread had comes again"


def test_batches_and_streams_commit_for_themselves(broker: Broker, topic: str) -> None:
    with member(broker, topic, commit="manual") as consumer:
        batches = consumer.batches(max_records=10)
        next(batches).commit()
        next(batches)[:4].commit()
        next(batches)
        assert consumer.committed() == {TopicPartition(topic, 0): 14}
    with member(broker, topic, commit="manual") as consumer:
        stream = next(iter(consumer.partitions()))
        records = iter(stream)
        assert [next(records).offset for _ in range(3)] == [14, 15, 16]
        stream.commit()
        stream.commit(18)
        assert consumer.committed() == {TopicPartition(topic, 0): 18}


def test_batch_in_hand_comes_again(broker: Broker, topic: str) -> None:
    with member(broker, topic) as consumer:
        for batch in consumer.batches(max_records=10):
            if batch.first_offset == 30:
                break
    assert rest(broker, topic)[0] == 30


def test_batches_of_several_loops_are_in_hand_until_their_threads_go_on(
    broker: Broker, topic: str
) -> None:
    go_on, took = threading.Event(), threading.Event()

    with member(broker, topic) as consumer:

        def hold() -> None:
            for _ in consumer.batches(max_records=10):
                took.set()
                go_on.wait(5)
                break

        thread = threading.Thread(target=hold)
        thread.start()
        took.wait(5)
        for batch in consumer.batches(max_records=10):
            if batch.first_offset == 50:
                break
        group = consumer._inner.feed.group
        assert group is not None
        assert consumer._portal.run(group.committable) == {}
        go_on.set()
        thread.join(5)
    assert rest(broker, topic)[0] == 0, "nobody has said that the first batch is processed"


def test_batch_that_an_interrupted_loop_left_is_taken_by_the_next(
    broker: Broker, topic: str
) -> None:
    with member(broker, topic) as consumer:
        left: Any = consumer.batches(max_records=10)
        consumer._portal.call(left._fill)  # it came when Ctrl-C had ended the call
        del left
        assert next(consumer.batches(max_records=20)).first_offset == 0


def test_commit_interval_zero_commits_before_the_next_record(broker: Broker, topic: str) -> None:
    at = TopicPartition(topic, 0)
    with member(broker, topic, commit_interval=0.0) as consumer:
        records = iter(consumer)
        for count in range(4):
            next(records)
            assert consumer.committed()[at] == (count or None)


def test_withdrawn_partition_goes_when_the_next_record_is_asked_for(broker: Broker) -> None:
    name = broker.name("orders")
    values = [b"%d" % number for number in range(200)]
    broker.seed(name, values, keys=values, partitions=2)
    with member(broker, name) as a:
        records = iter(a)
        first = next(records)
        with member(broker, name) as b:
            wait_until(lambda: len(a.assignment) == 1)
            mine = TopicPartition(name, first.partition)
            if mine not in a.assignment:
                assert b.assignment == frozenset(), "it is in hand"
                assert next(records).partition != first.partition
            wait_until(lambda: len(b.assignment) == 1)
            assert a.assignment.isdisjoint(b.assignment)


def test_run_commits_what_is_finished_and_leaves_after_a_signal(broker: Broker, topic: str) -> None:
    done: list[int] = []

    def handle(record: Record[Any, Any]) -> None:
        done.append(record.offset)
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    with member(broker, topic) as consumer:
        consumer.run(handle, in_flight=2, order="none")
        assert consumer.health().state == "closed"
    assert sorted(done) == list(range(len(done)))
    assert rest(broker, topic)[0] == len(done)


def test_failed_handler_comes_again(broker: Broker, topic: str) -> None:
    def handle(record: Record[Any, Any]) -> None:
        if record.offset == 11:
            raise ValueError("cannot")

    with member(broker, topic) as consumer, pytest.raises(ValueError, match="cannot"):
        consumer.run(handle, in_flight=4)
    assert rest(broker, topic)[0] <= 11, "the threads of some before it may have been slower"


def test_bug_in_the_heart_is_what_the_reading_call_raises(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Seat, now: float) -> None:
        raise ZeroDivisionError

    def read() -> None:
        with member(broker, topic, session_timeout=1.0) as consumer:
            for record in consumer:
                if record.offset == 99:
                    monkeypatch.setattr(Seat, "step", step)

    with pytest.raises(ZeroDivisionError) as caught:
        read()
    assert not hasattr(caught.value, "__notes__")


def test_bug_in_the_heart_is_raised_by_a_call_that_comes_after_the_end(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Seat, now: float) -> None:
        raise ZeroDivisionError

    def send() -> None:
        with tailrace.sync.connect(broker.url) as client, client.producer() as producer:
            with client.consumer(topic, group=f"g-{topic}", session_timeout=1.0) as consumer:
                next(iter(consumer))
                monkeypatch.setattr(Seat, "step", step)
                wait_until(lambda: client.health().state == "closed")
                producer.send(topic, b"x")

    with pytest.raises(ZeroDivisionError) as caught:
        send()
    assert not hasattr(caught.value, "__notes__")


def test_failure_of_the_body_stays_what_it_was_when_closing_fails_too(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(self: object) -> None:
        raise OSError("closing")

    def fail() -> None:
        with member(broker, topic) as consumer:
            monkeypatch.setattr(type(consumer._inner), "aclose", late)
            raise ValueError("body")

    with pytest.raises(ValueError, match="body") as caught:
        fail()
    assert caught.value.__notes__[0] == "also failed: closing"


def test_call_that_comes_at_the_very_end_of_the_loop_does_not_hang(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Future[None]] = []
    with tailrace.sync.connect(broker.url) as client:
        portal, loop = client._portal, client._portal._loop
        assert loop is not None
        close = loop.close

        async def nothing() -> None:
            pass

        def close_late() -> None:
            calls.append(portal.start(nothing))
            close()

        monkeypatch.setattr(loop, "close", close_late)
    with pytest.raises(CancelledError):
        calls[0].result(1)
