"""``make bench-quick``: about a minute of figures, each beside the limits it is held against.

    python -m tailrace.bench.quick [--out DIR] [--folder DIR]

Three rounds, A B A B; a ratio is made within each. No target is held against them here. Prints
tables, and leaves in ``--out`` the same files as the long bench (``report``).
"""

import argparse
import tempfile
import time
import uuid
from pathlib import Path

import anyio

import tailrace
from tailrace.bench import full, limits, report, workbench
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.results import Measured
from tailrace.bench.rows import Pick, Row, Sense
from tailrace.bench.run import run, single_sends
from tailrace.bench.touch import touch_disk, touch_memory
from tailrace.bench.workload import Mode, Workload, percentiles

OUT = Path("bench-results/quick")
ROUNDS = 3
RECORDS = 1_000_000
SIZE_BYTES = 100
BATCH = 10_000
SEND_RATE_PER_S = 100.0
SEND_SECONDS = 3.0  # of each round
PATIENCE_S = 60.0


def beside(what: str, path: str, limit: str, sense: Sense = "at least") -> Row:
    """A figure and a limit of the machine; nothing is asked for."""
    return Row("", what, Pick(path), sense, None, Pick(limit, system="machine"))


ROWS = (
    beside("produced by `send_many`, durability fsync", "produce", "pack"),
    beside("produced by `send_many`, durability fsync", "produce", "loopback-records"),
    beside("consumed by `batches()`", "consume-batches", "unpack"),
    beside("consumed by `batches()`", "consume-batches", "loopback-records"),
    beside("durable `send` at 100/s, p50", "ack-latency-p50", "sync", "at most"),
    Row("", "durable `send` at 100/s, p99", Pick("ack-latency-p99"), "at most", None),
)


def main() -> None:
    """Print the figures as Markdown tables, and leave them as files."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=OUT, help="where figures and report go")
    made.add_argument("--folder", type=Path, help="where to work: on the disk to be measured")
    given = made.parse_args()
    figures, began = list[Measured](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", dir=given.folder) as name:
        folder = Path(name)
        for touch in (touch_disk, touch_memory):
            touch(folder, 3 * RECORDS * SIZE_BYTES)  # about what the run will use
        with BrokerProcess(folder / "data") as broker:
            for number in range(ROUNDS):
                figures += measure_round(folder, broker.url, number)
    about = [*full.what(peers=False), *full.about(time.monotonic() - began, [])]
    report.write(given.out, figures, about, ROWS)
    print("\n".join(about))
    print(report.targets(figures, ROWS), report.everything(figures), sep="\n\n")
    workbench.say(f"{given.out / report.REPORT}, and more beside it")


def measure_round(folder: Path, url: str, number: int) -> list[Measured]:
    """Limits and tailrace in turns: the machine is shared, ratios are what counts."""

    def ours(path: str, value: float, unit: str) -> Measured:
        return Measured("tailrace", path, SIZE_BYTES, True, value, unit, number)

    def limit(path: str, value: float, unit: str = "records/s") -> Measured:
        return Measured("machine", path, SIZE_BYTES, None, value, unit, number)

    found = [
        limit("loopback-records", limits.loopback_bytes_per_s() / SIZE_BYTES),
        limit("pack", limits.packed_records_per_s()),
        ours("produce", rate(url, "produce"), "records/s"),
        limit("unpack", limits.unpacked_records_per_s()),
        ours("consume-batches", rate(url, "consume"), "records/s"),
        limit("sync", 1_000 / limits.fdatasyncs_per_s(folder), "ms"),
    ]
    sends = percentiles(anyio.run(latencies, url, backend="asyncio"))
    return found + [ours(f"ack-latency-{share}", sends[share], "ms") for share in ("p50", "p99")]


def rate(url: str, mode: Mode) -> float:
    """Records per second."""
    workload = Workload(mode, RECORDS, SIZE_BYTES, BATCH, 1, 1, "all")

    async def work() -> float:
        async with tailrace.connect(url) as client:
            topic = f"bench-{uuid.uuid4().hex[:12]}"
            measured = await run(
                client, workload, topic, False, lambda _: None, patience_s=PATIENCE_S
            )
            return measured.records / measured.elapsed_seconds

    return anyio.run(work, backend="asyncio")


async def latencies(url: str) -> list[float]:
    async with tailrace.connect(url) as client:
        topic = f"bench-{uuid.uuid4().hex[:12]}"
        await client.admin.create_topic(topic)
        return await single_sends(
            client,
            topic,
            rate_per_s=SEND_RATE_PER_S,
            seconds=SEND_SECONDS,
            size_bytes=SIZE_BYTES,
        )


if __name__ == "__main__":
    main()
