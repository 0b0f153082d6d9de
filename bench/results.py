"""What benches say to each other: one measured figure each, as a line of JSON on stdout.

A workload, or a peer, runs as a process of its own, prints such lines on stdout and everything else
on stderr. Whoever ran it puts the figures of all rounds and systems together (`bench/report.py`).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

LATENCIES = ("ack-latency-p50", "ack-latency-p99", "deliver-latency-p50", "deliver-latency-p99")


@dataclass(frozen=True)
class Measured:
    """One figure of one round."""

    system: str  # tailrace, redis, nats, rabbitmq, kafka, librdkafka-mock, machine
    path: str  # what was measured: produce, consume-batches, consume-each, ack-latency-p50, …
    size_bytes: int  # of a record; 0 where there are none
    durable: bool | None  # synced before it was acknowledged; None: says nothing here
    value: float
    unit: str  # records/s, ms, bytes/s, MB, s, …
    round: int  # from 0
    note: str = ""  # what the figure needs to be read rightly


def dumps(measured: Measured) -> str:
    """One line, without its end."""
    return json.dumps(asdict(measured), ensure_ascii=False)


def loads(line: str) -> Measured:
    """The figure of a line; ValueError with the line if it is none."""
    try:
        found: dict[str, Any] = dict(json.loads(line))
        found["value"] = float(found["value"])
        return Measured(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"no figure: {line.strip()!r}") from error


def read(lines: Iterable[str]) -> Iterator[Measured]:
    """All figures of an output; empty lines are left out."""
    return (loads(line) for line in lines if line.strip())


def emit(measured: Measured) -> None:
    """Tell it to whoever runs this process."""
    print(dumps(measured), flush=True)
