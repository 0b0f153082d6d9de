"""Redis Streams: redis-server with its append-only file, driven by redis-py with hiredis.

Produced in pipelines of 1,000 ``XADD``, read by ``XREAD`` of 300 entries as hiredis parsed them. It
is the blocking client, the fastest of redis-py.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
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
from tailrace.bench.peer_process import found, said, serving
from tailrace.bench.peer_ticks import Ticks
from tailrace.bench.processes import free_port

ALWAYS = Variant("AOF always", durable=True)
EVERYSEC = Variant("AOF everysec", durable=False)
READ_COUNT_MAX, READ_BYTES_MAX = 300, 512 << 10  # larger answers leave the caches
FIELD = b"v"

Reply = list[tuple[bytes, list[tuple[bytes, list[bytes]]]]] | None  # stream, entries of id, fields


def server() -> str:
    return said(found("redis-server", "install redis-server (Debian)"), "--version").split(" sha")[
        0
    ]


@contextmanager
def start(folder: Path, variant: Variant) -> Generator[Started]:
    port = free_port()
    command = [found("redis-server", ""), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes"]
    command += ["--appendfsync", variant.name.removeprefix("AOF ")]
    command += ["--auto-aof-rewrite-percentage", "0"]  # no fork in the middle of a figure
    with serving(folder, "redis", command, port):
        yield Started(f"127.0.0.1:{port}")


def connect(job: Job) -> Any:
    """A client; Any, as redis-py is not installed where this is checked."""
    host, _, port = job.address.rpartition(":")
    client: Any = import_module("redis").Redis(host=host, port=int(port), protocol=2)
    client.set_response_callback("XREAD", as_parsed)
    return client


def as_parsed(reply: Reply, **_: Any) -> Reply:
    """What hiredis made of it; the client's own callback makes a dict of each entry."""
    return reply


def produce(job: Job) -> Done:
    client, values = connect(job), chunk_of(job.size_bytes)
    warm(client, job, values)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < job.seconds:
        count += add(client, job.stream, values)
    return Done(count, time.perf_counter() - began)


def warm(client: Any, job: Job, values: list[bytes]) -> None:
    """As much into a stream that is deleted: memory of both sides and blocks of the disk."""
    until = time.perf_counter() + job.seconds
    while time.perf_counter() < until:
        add(client, f"{job.stream}-warm", values)
    client.delete(f"{job.stream}-warm")


def add(client: Any, stream: str, values: list[bytes]) -> int:
    pipe = client.pipeline(transaction=False)
    for value in values:
        pipe.execute_command("XADD", stream, "*", FIELD, value)
    return len(pipe.execute())


def consume_batches(job: Job) -> Done:
    client = connect(job)
    count, last = 0, b""
    began = time.perf_counter()
    for entries in answers(client, job):
        count += len(entries)
        last = entries[-1][1][1]
    return verified(job, count, last, began, time.perf_counter())


def consume_each(job: Job) -> Done:
    client = connect(job)
    count, last = 0, b""
    began = time.perf_counter()
    for entries in answers(client, job):
        for _, fields in entries:
            last = fields[1]
            count += 1
    return verified(job, count, last, began, time.perf_counter())


def answers(client: Any, job: Job) -> Generator[list[tuple[bytes, list[bytes]]]]:
    """The entries of each answer, from the stream's beginning to its end."""
    reply = read(client, job, b"0")
    while reply:
        entries = reply[0][1]
        yield entries
        reply = read(client, job, entries[-1][0])


def read(client: Any, job: Job, after: bytes, *options: bytes | int) -> Reply:
    count = max(1, min(READ_COUNT_MAX, READ_BYTES_MAX // job.size_bytes))
    reply: Reply = client.execute_command(
        "XREAD", "COUNT", count, *options, "STREAMS", job.stream, after
    )
    return reply


def send(job: Job) -> Done:
    """One ``XADD`` at a time; sends that came due meanwhile go together, as one pipeline."""
    client, latencies = connect(job), Latencies(job)
    with Ticks(job) as ticks:
        while ticks.left:
            moments = ticks.due()
            values = [stamped(moment, job.size_bytes) for moment in moments]
            if len(values) == 1:
                client.execute_command("XADD", job.stream, "*", FIELD, values[0])
            else:
                add(client, job.stream, values)
            for moment in moments:
                latencies.add(moment)
    return latencies.done()


def receive(job: Job) -> Done:
    client, latencies = connect(job), Latencies(job)
    after = b"0"
    say_ready()
    while latencies.seen < job.count:
        reply = read(client, job, after, b"BLOCK", 0)
        for at, fields in reply[0][1] if reply else []:
            latencies.add(stamp_of(fields[1]))
            after = at
    return latencies.done()


PEER = Peer(
    system="redis",
    variants=(EVERYSEC, ALWAYS),
    packages=("redis", "hiredis"),
    python=None,
    server=server,
    start=start,
    actions={
        "produce": produce,
        "consume-batches": consume_batches,
        "consume-each": consume_each,
        "send": send,
        "receive": receive,
    },
)
