"""How fast logs are compacted, and verified after a crash (P15).

    python -m tailrace.bench.maintenance [--size 256MiB]

Paths: ``compaction`` (bytes/s of the log by the clock, ``cleaner_rate`` unlimited, ten records of
100 B or 1 KiB for each key; ``bench/compaction.py`` has the long version, beside live sends) and
``recovery-scan`` (bytes/s at which a log is opened of which every batch is verified, as after a
crash that left no marks: batches of 256 KiB in the page cache, in this process).
"""

import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import anyio

import tailrace
from tailrace.bench.compaction import SETTINGS, build, check, compacted
from tailrace.bench.workbench import Workbench, parser, workbench
from tailrace.bench.workload import make_values
from tailrace.protocol.batch import encode_batch, header_seed
from tailrace.protocol.units import parse_size_bytes
from tailrace.storage.disk import OsDisk
from tailrace.storage.log import Appended, Log, LogConfig

SIZES_BYTES = (100, 1024)
RECORDS_PER_KEY = 10
TOPIC_ID = bytes(range(16))
BATCH_RECORDS = 256
APPENDED_AT_ONCE = 16
SETTLE_S = 3.0


async def compact(bench: Workbench, size_bytes: int, value_bytes: int) -> None:
    """Build a topic, have it compacted, check what is left."""
    records = size_bytes // value_bytes
    os.environ |= SETTINGS | {"TAILRACE_STORAGE__CLEANER_RATE": "unlimited"}
    with bench.broker(touch_bytes=2 * size_bytes, name=f"compact-{value_bytes}") as broker:
        async with tailrace.connect(broker.url) as client:
            with redirect_stdout(sys.stderr):  # they speak to people
                topic = f"t{value_bytes}"
                built = await build(client, topic, records, records // RECORDS_PER_KEY, value_bytes)
                await anyio.sleep(SETTLE_S)  # all of it is old enough: one run takes it whole
                done = await compacted(client, broker, built)
                await check(client, built)
    speed = built.size_bytes / done.seconds
    note = f"{built.size_bytes / 1e6:,.0f} MB"
    bench.tell("compaction", speed, "bytes/s", size_bytes=value_bytes, note=note)


def scan(bench: Workbench, size_bytes: int) -> None:
    """Fill a log, and open it as if nothing were known of it."""
    path = bench.folder / "log"
    values: list[bytes | None] = [*make_values(BATCH_RECORDS, 1_000)]
    batch = encode_batch(header_seed(TOPIC_ID, 0), values=values, timestamps=0)
    log, appended = opened(path), 0
    while appended < size_bytes:
        entries = [memoryview(bytearray(batch)) for _ in range(APPENDED_AT_ONCE)]
        for result in log.append(entries, leader_epoch=0, now_ms=0):
            assert isinstance(result, Appended), result
        appended += APPENDED_AT_ONCE * len(batch)
    log.sync()
    log.close(clean=False)
    began = time.perf_counter()
    again = opened(path)
    took_s = time.perf_counter() - began
    found = sum(os.path.getsize(file) for file in path.glob("*.log"))
    assert again.end == appended // len(batch) * BATCH_RECORDS, "records are missing"
    again.close(clean=False)
    note = f"{appended / 1e6:,.0f} MB of batches in {found / 1e6:,.0f} MB of files"
    bench.tell("recovery-scan", appended / took_s, "bytes/s", size_bytes=1_000, note=note)


def opened(path: Path) -> Log:
    """A log of which nothing is believed: every batch in it is read and verified."""
    return Log.open(
        OsDisk(),
        str(path),
        topic_id=TOPIC_ID,
        partition=0,
        config=LogConfig(segment_bytes=1 << 30),
        now_ms=0,
        clean=False,
        verify="full",
    )


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", default="256MiB", help="of each log")
    given = made.parse_args()
    size_bytes = parse_size_bytes(given.size) or 0
    with workbench(given) as bench:
        scan(bench, 2 * size_bytes)
        for value_bytes in SIZES_BYTES:
            anyio.run(compact, bench, size_bytes, value_bytes)


if __name__ == "__main__":
    main()
