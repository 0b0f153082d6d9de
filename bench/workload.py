"""What a bench sends and how its result is told: pure, so that every mode tells it alike."""

import os
import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tailrace.protocol.console import align
from tailrace.protocol.units import format_count, format_size

Advance = Callable[[int], None]  # told how many records more are done
Mode = Literal["produce", "consume", "e2e"]
VARIANTS = 1_000  # distinct values; more would only cost memory


@dataclass(frozen=True, slots=True)
class Workload:
    """One run, as asked for on the command line."""

    mode: Mode
    records: int
    size_bytes: int
    batch: int
    producers: int
    partitions: int
    acks: Literal["all", 1, 0]
    compression: Literal["lz4", "zstd", "none"] = "lz4"


@dataclass
class Measured:
    """What came out of one run."""

    elapsed_seconds: float = 0.0
    records: int = 0
    errors: int = 0
    latencies_ms: list[float] = field(default_factory=list[float])


def make_values(count: int, size_bytes: int, seed: int = 1) -> list[bytes]:
    """``count`` values of random bytes, so that no compression flatters the figures."""
    rng = random.Random(seed)
    variants = [rng.randbytes(size_bytes) for _ in range(min(count, VARIANTS))]
    return [variants[at % len(variants)] for at in range(count)]


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """The percentiles of the contract; zeros where nothing was measured."""
    ordered = sorted(latencies_ms) or [0.0]

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)}


def document(workload: Workload, measured: Measured, version: str) -> dict[str, object]:
    """The result as ``tailrace.bench/1``."""
    elapsed = measured.elapsed_seconds or 1e-9
    return {
        "schema": "tailrace.bench/1",
        "mode": workload.mode,
        "records": measured.records,
        "size_bytes": workload.size_bytes,
        "elapsed_seconds": round(measured.elapsed_seconds, 4),
        "records_per_s": round(measured.records / elapsed),
        "bytes_per_s": round(measured.records * workload.size_bytes / elapsed),
        "latency_ms": percentiles(measured.latencies_ms),
        "errors": measured.errors,
        "params": {
            "batch": workload.batch,
            "producers": workload.producers,
            "partitions": workload.partitions,
            "acks": workload.acks,
            "compression": workload.compression,
        },
        "env": {
            "python": platform.python_version(),
            "tailrace": version,
            "platform": f"{sys.platform}-{platform.machine()}",
            "cpus": os.cpu_count(),
        },
    }


def table(workload: Workload, measured: Measured) -> str:
    """The result for people."""
    rate = measured.records / (measured.elapsed_seconds or 1e-9)
    head = (
        f"{workload.mode}  {format_count(round(rate))} records/s"
        f"  {format_size(round(rate * workload.size_bytes))}/s"
        f"  ({format_count(measured.records)} x {format_size(workload.size_bytes)})"
    )
    figures = percentiles(measured.latencies_ms)
    return f"{head}\n{align([tuple(figures), [f'{value:.2f} ms' for value in figures.values()]])}"
