"""What a process that drives a peer is told and what it tells back, and what all of them share.

A job is one JSON argument of ``tailrace.bench.peer_client``; its answer is one JSON line on stdout.
Nothing here imports a client: those live in an environment of their own.
"""

import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHUNK_RECORDS_MAX = 1_000
CHUNK_BYTES_MAX = 1 << 20
STAMP_BYTES = 8


@dataclass(frozen=True)
class Job:
    """One thing that one process does to a peer that runs."""

    system: str
    action: str  # a key of the peer's actions
    address: str  # HOST:PORT
    stream: str  # the topic, stream or subject: new, or what was produced before
    size_bytes: int
    seconds: float = 0.0  # how long to produce
    count: int = 0  # how many records to consume, to send or to receive
    rate_per_s: int = 0  # of send and receive
    warm: int = 0  # how many of them are not timed: connections and code are cold at first
    options: Mapping[str, str] = field(default_factory=dict[str, str])  # the peer's own


@dataclass(frozen=True)
class Done:
    """What came out: records acknowledged or read, the time it took, each latency of a record."""

    count: int
    seconds: float
    latencies_ms: list[float] = field(default_factory=list[float])


Action = Callable[[Job], Done]


@dataclass(frozen=True)
class Variant:
    """A durable setting of a peer."""

    name: str  # as its own documentation calls it
    durable: bool | None  # synced before it is acknowledged


@dataclass
class Started:
    """A peer that runs."""

    address: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Peer:
    """A peer: how it is found, started, and what its client can do."""

    system: str
    variants: tuple[Variant, ...]  # the fastest first
    packages: tuple[str, ...]  # of the client, as they are called where they are installed from
    python: Path | None  # of its clients, if not that of all peers
    server: Callable[[], str]  # its name and version; FileNotFoundError says what to install
    start: Callable[[Path, Variant], AbstractContextManager[Started]]
    actions: Mapping[str, Action]
    warm_s: float = 0.0  # of producing before anything is timed: a JVM compiles while it works


def dump_job(job: Job) -> str:
    return json.dumps(asdict(job))


def load_job(text: str) -> Job:
    return Job(**json.loads(text))


def dump_done(done: Done) -> str:
    return json.dumps(asdict(done))


def load_done(line: str) -> Done:
    """ValueError if the line is none."""
    try:
        found: dict[str, Any] = json.loads(line)
        return Done(int(found["count"]), float(found["seconds"]), list(found["latencies_ms"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"no answer of a client: {line.strip()!r}") from error


def chunk_of(size_bytes: int) -> list[bytes]:
    """The values of one batch, random and all different; a stream is this list again and again."""
    rng = random.Random(size_bytes)
    count = max(1, min(CHUNK_RECORDS_MAX, CHUNK_BYTES_MAX // size_bytes))
    return [rng.randbytes(size_bytes) for _ in range(count)]


def verified(job: Job, count: int, last: bytes, began: float, ended: float) -> Done:
    """The answer of a consumer; RuntimeError unless it saw exactly what was produced."""
    values = chunk_of(job.size_bytes)
    if count != job.count:
        raise RuntimeError(f"{count} records were consumed where {job.count} were produced")
    if last != values[(count - 1) % len(values)]:
        raise RuntimeError("the last record is not the one that was produced last")
    return Done(count, ended - began)


class Latencies:
    """Milliseconds from the intended time of each send; those of the warm-up are left out."""

    def __init__(self, job: Job) -> None:
        self.seen = 0
        self._warm = job.warm
        self._found: list[float] = []

    def add(self, intended_ns: int) -> None:
        self.seen += 1
        if self.seen > self._warm:
            self._found.append((time.perf_counter_ns() - intended_ns) / 1e6)

    def done(self) -> Done:
        return Done(self.seen, 0.0, self._found)


def stamped(intended_ns: int, size_bytes: int) -> bytes:
    """A value that says when it should have been sent (``time.perf_counter_ns``, one machine)."""
    return intended_ns.to_bytes(STAMP_BYTES, "big") + bytes(size_bytes - STAMP_BYTES)


def stamp_of(value: bytes) -> int:
    return int.from_bytes(value[:STAMP_BYTES], "big")


def say_ready() -> None:
    """The consumer of a latency run is subscribed: its producer may begin."""
    print("ready", flush=True)
