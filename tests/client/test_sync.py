"""``tailrace.sync``: the same SDK for threads and plain code."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import tailrace
import tailrace.sync
from tailrace.client.records import Record
from tailrace.protocol.errors import (
    ConnectError,
    DecodeError,
    ForkedClientError,
    RequestTimeout,
    TopicExists,
    UsageError,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.client.world import Run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def client(broker: Broker) -> Iterator[tailrace.sync.Client]:
    with tailrace.sync.connect(broker.url) as opened:
        yield opened


@pytest.fixture
def topic(broker: Broker) -> str:
    name = broker.name("orders")
    broker.create_topic(name)
    return name


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def test_records_go_out_and_come_back(client: tailrace.sync.Client, topic: str) -> None:
    with client.producer() as producer:
        sent = producer.send(topic, b"one", key=b"k", timestamp=5, headers=[("a", b"b")])
        assert sent.offset == 0
        delivery = producer.enqueue(topic, b"two")
        assert delivery.result(timeout=5).offset == 1
        assert delivery.done()
        assert producer.enqueue_nowait(topic, b"three").result().offset == 2
        assert [m.offset for m in producer.send_many(topic, [b"four", b"five"])] == [3, 4]
        producer.flush(timeout=5)
        assert producer.health().state == "ok"
    with client.consumer(topic, stop_at_end=True) as consumer:
        found = list(consumer)
    assert [r.value for r in found] == [b"one", b"two", b"three", b"four", b"five"]
    assert (found[0].key, found[0].timestamp, found[0].headers) == (b"k", 5, [("a", b"b")])


def test_batches_and_partitions(client: tailrace.sync.Client, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, numbers(500), keys=numbers(500), partitions=3)
    with client.consumer(topic, stop_at_end=True) as consumer:
        batches = list(consumer.batches(max_records=100))
    assert sum(map(len, batches)) == 500
    found: dict[int, int] = {}

    def read(stream: tailrace.sync.PartitionStream[bytes, bytes]) -> None:
        found[stream.partition] = sum(1 for _ in stream)

    with client.consumer(topic, stop_at_end=True) as consumer:
        threads = [threading.Thread(target=read, args=(s,)) for s in first(3, consumer)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(found.values()) == 500
    assert len(found) == 3


def first(count: int, consumer: Any) -> list[Any]:
    streams = consumer.partitions()
    return [next(streams) for _ in range(count)]


def test_position_is_exact_although_records_come_over_in_windows(
    client: tailrace.sync.Client, broker: Broker, topic: str
) -> None:
    broker.seed(topic, numbers(1_000))
    at = TopicPartition(topic, 0)
    with client.consumer(topic, stop_at_end=True) as consumer:
        records = iter(consumer)
        for number in range(100):
            assert next(records).offset == number
            assert consumer.position(at) == number + 1
        assert consumer.lag() == {at: 900}
        consumer.seek(at, 500)
        assert next(records).offset == 500
        consumer.pause(at)
        assert consumer.position(at) == 501
        consumer.resume(at)
        assert [record.offset for record in records] == list(range(501, 1_000))


def test_batch_that_was_not_taken_is_given_back_by_seek(
    client: tailrace.sync.Client, broker: Broker, topic: str
) -> None:
    broker.seed(topic, numbers(300))
    at = TopicPartition(topic, 0)
    with client.consumer(topic, stop_at_end=True) as consumer:
        batches = consumer.batches(max_records=100)
        assert next(batches).next_offset == 100
        assert consumer.position(at) == 100
        consumer.seek(at, 250)
        assert [batch.first_offset for batch in batches] == [250]


def test_threads_share_a_producer_and_a_consumer(client: tailrace.sync.Client, topic: str) -> None:
    with client.producer() as producer:

        def write(thread: int) -> None:
            for number in range(50):
                producer.send(topic, b"%d-%d" % (thread, number))

        in_threads(write, 4)
    found: list[bytes] = []
    with client.consumer(topic, stop_at_end=True) as consumer:

        def read(_: int) -> None:
            for record in consumer:
                found.append(record.value or b"")

        in_threads(read, 4)
    assert sorted(found) == sorted(b"%d-%d" % (t, n) for t in range(4) for n in range(50))


def in_threads(work: Any, count: int) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def test_admin(client: tailrace.sync.Client, broker: Broker) -> None:
    name = broker.name("orders")
    detail = client.admin.create_topic(name, partitions=2, config={"retention": 3_600})
    assert detail.partitions == 2
    with pytest.raises(TopicExists):
        client.admin.create_topic(name)
    assert name in [topic.name for topic in client.admin.list_topics()]
    altered = client.admin.alter_topic(name, config={"retention": None})
    assert {e.key: e.value for e in altered.config}["retention"] == "7d"
    assert client.admin.describe_topic(name).topic_id == detail.topic_id
    assert client.admin.describe_cluster().healthy
    client.admin.delete_topic(name)
    client.admin.delete_topic(name, missing_ok=True)
    assert client.cluster_id


def test_run_calls_plain_functions_in_threads(
    client: tailrace.sync.Client, broker: Broker, topic: str
) -> None:
    broker.seed(topic, numbers(40))
    threads: set[int] = set()
    values: list[bytes] = []

    def handle(record: Record[bytes, bytes]) -> None:
        threads.add(threading.get_ident())
        time.sleep(0.001)
        values.append(record.value or b"")

    with client.consumer(topic, stop_at_end=True) as consumer:
        consumer.run(handle, in_flight=3, order="none")
    assert sorted(values) == sorted(numbers(40))
    assert 1 <= len(threads) <= 3
    assert threading.get_ident() not in threads


def test_run_is_drained_by_a_signal(
    client: tailrace.sync.Client, broker: Broker, topic: str
) -> None:
    broker.seed(topic, numbers(10))
    values: list[bytes] = []

    def handle(record: Record[bytes, bytes]) -> None:
        values.append(record.value or b"")
        if record.offset == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    with client.consumer(topic) as consumer:
        consumer.run(handle, in_flight=1)
    assert values == numbers(3)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_errors_are_the_same(client: tailrace.sync.Client, broker: Broker, topic: str) -> None:
    broker.seed(topic, [b"no json"])
    with client.consumer(topic, value="json") as consumer:
        with pytest.raises(DecodeError, match="T060"):
            next(iter(consumer))
        with pytest.raises(UsageError, match=r"T055.*cannot read it too"):
            consumer.batches()
        with pytest.raises(UsageError, match="T055: commit"):
            consumer.commit()
        with pytest.raises(UsageError, match="T055: committed"):
            consumer.committed()


def test_nobody_there() -> None:
    with pytest.raises(ConnectError, match="T001"):
        tailrace.sync.connect("tailrace://127.0.0.1:1", connect_timeout=1.0).__enter__()


def test_after_close(broker: Broker, topic: str) -> None:
    before = threading.active_count()
    client = tailrace.sync.connect(broker.url)
    with pytest.raises(UsageError, match="T055: Client is not open yet"):
        client.producer()
    with client:
        producer, consumer = client.producer(), client.consumer(topic)
        records = iter(consumer)
        producer.send(topic, b"a")
        assert next(records).value == b"a"
    for _ in range(2):
        client.close()
    with pytest.raises(UsageError, match="T055"):
        producer.send(topic, b"b")
    with pytest.raises(UsageError, match="T055"):
        next(records)
    assert (client.health().state, producer.health().state) == ("closed", "closed")
    assert consumer.health().state == "closed"
    assert threading.active_count() == before


def test_delivery_that_takes_too_long_is_still_on_its_way(topic: str) -> None:
    with Broker() as broker:
        broker.create_topic("orders")
        with tailrace.sync.connect(broker.url) as client, client.producer() as producer:
            with broker.faults.delay(0.2, "produce"):
                delivery = producer.enqueue("orders", b"late")
                with pytest.raises(RequestTimeout, match="T034: a delivery"):
                    delivery.result(timeout=0.01)
            assert delivery.result(timeout=5).offset == 0


@pytest.mark.provokes("T052")
def test_inside_an_event_loop_every_call_is_refused(
    run: Run, backend: str, client: tailrace.sync.Client, topic: str
) -> None:
    producer, consumer = client.producer(), client.consumer(topic)
    calls: list[Callable[[], object]] = [
        lambda: producer.send(topic, b"a"),
        lambda: client.admin.list_topics(),
        lambda: next(iter(consumer)),
        lambda: client.close(),
        lambda: tailrace.sync.connect("tailrace://127.0.0.1:1").__enter__(),
    ]

    async def main() -> None:
        for call in calls:
            with pytest.raises(UsageError) as caught:
                call()
            assert str(caught.value) == (
                f"T052: tailrace.sync used inside a running {backend} loop. Use tailrace.connect()."
            )

    run(main)


def test_worker_threads_of_a_loop_may_use_it(
    run: Run, client: tailrace.sync.Client, topic: str
) -> None:
    producer = client.producer()

    async def main() -> None:
        assert (await anyio.to_thread.run_sync(producer.send, topic, b"a")).partition == 0

    run(main)


@pytest.mark.alone
def test_ctrl_c_interrupts_a_wait_and_loses_nothing(
    client: tailrace.sync.Client, broker: Broker, topic: str
) -> None:
    with client.consumer(topic) as consumer, client.producer() as producer:
        records = iter(consumer)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        began = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(records)
        assert time.monotonic() - began < 0.25
        producer.send(topic, b"after")
        assert next(records).value == b"after"


@pytest.mark.provokes("T053")
def test_forked_child_is_refused_at_once(client: tailrace.sync.Client, topic: str) -> None:
    consumer, producer = client.consumer(topic), client.producer()
    producer.send(topic, b"a")
    producer.send(topic, b"b")
    records = iter(consumer)
    next(records)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = []
        for call in (lambda: producer.send(topic, b"a"), lambda: next(records), client.close):
            try:
                call()
            except ForkedClientError as error:
                said = f"created in pid {os.getppid()}, used in pid {os.getpid()}"
                pids = (error.created_pid, error.pid) == (os.getppid(), os.getpid())
                told.append(f"{error.code} {pids and error.message == said}")
            except BaseException as error:
                told.append(repr(error))
        os.write(write, ",".join(told).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "T053 True,T053 True,T053 True"
    os.waitpid(pid, 0)


LEFT_OPEN = """
import sys, tailrace.sync
client = tailrace.sync.connect(sys.argv[1])
client.__enter__()
producer = client.producer(linger=60.0)
for number in range(10):
    producer.enqueue(sys.argv[2], b"%d" % number)
"""


def exit_with_client_open(broker: Broker, topic: str) -> tuple[str, float]:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, broker.url, topic],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        check=True,
    )
    return ended.stderr, time.monotonic() - began


def test_exit_flushes_what_was_left(broker: Broker, topic: str) -> None:
    told, _ = exit_with_client_open(broker, topic)
    assert told == ""
    assert [record.value for record in broker.records(topic)] == numbers(10)


@pytest.mark.provokes("T051")
@pytest.mark.slow
def test_exit_waits_two_seconds_and_tells_what_is_left() -> None:
    with Broker() as broker:
        broker.create_topic("orders")
        with broker.faults.delay(30.0, "produce"):
            told, took_s = exit_with_client_open(broker, "orders")
    assert "T051: Producer created at <string>:5 was never closed; 10 records not delivered" in told
    assert 2.0 <= took_s < 6.0
