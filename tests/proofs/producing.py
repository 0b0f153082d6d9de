"""A producer at full speed in a process of its own, and what it was told.

Every record says which one of its partition it is, and as nothing else writes to the topic, record
``n`` must stand at offset ``n``: one that was lost, doubled or moved shows at once, to the producer
by its acks and to every reader.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tailrace

PARTITIONS = 2
VALUE_BYTES = 1024
CHUNK_RECORDS = 200
CALLS_IN_FLIGHT = 4  # per partition
REPORT_EVERY_S = 0.25
STOP_SECONDS_MAX = 60.0
_FILL = b"." * VALUE_BYTES


def value_of(number: int) -> bytes:
    """The record that must stand at that offset."""
    return (b"%012d" % number + _FILL)[:VALUE_BYTES]


def number_of(value: bytes | None) -> int:
    """Which one it is; AssertionError if it is none, or not whole."""
    assert value is not None
    number = int(value[:12])
    assert value == value_of(number), "a record was changed"
    return number


@dataclass(frozen=True, slots=True)
class Report:
    """What was acknowledged by then."""

    at: float  # time.monotonic of the parent
    acked: tuple[int, ...]  # records, by partition: all those below are written
    errors: int

    @property
    def records(self) -> int:
        return sum(self.acked)


class Producing:
    """The process, seen from outside. Ends with the ``with`` block."""

    def __init__(self, url: str, topic: str) -> None:
        self.reports: list[Report] = []
        command = [sys.executable, "-m", "tests.proofs.producing", url, topic]
        root = Path(__file__).parent.parent.parent
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            report = Report(time.monotonic(), tuple(found["acked"]), found["errors"])
            self.reports.append(report)

    @property
    def last(self) -> Report:
        return self.reports[-1] if self.reports else Report(time.monotonic(), (0, 0), 0)

    def rates(self, window_s: float) -> list[float]:
        """Records a second, by whole windows."""
        if not self.reports:
            return []
        rates: list[float] = []
        first = before = self.reports[0]
        for report in self.reports:
            if report.at >= first.at + window_s * (len(rates) + 1):
                rates.append((report.records - before.records) / (report.at - before.at))
                before = report
        return rates

    def stop(self) -> Report:
        """Let it send no more, wait for what is under way, and end it."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            code = self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join()
        assert code == 0, f"the producer ended with {code}"
        return self.last

    def __enter__(self) -> "Producing":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._reader.join()


# ── in the process ───────────────────────────────────────────────────────────────────────────


@dataclass
class _State:
    sent: list[int]
    acked: list[int]
    errors: int = 0
    stopping: bool = False

    def report(self) -> None:
        print(json.dumps({"acked": self.acked, "errors": self.errors}), flush=True)


async def produce(url: str, topic: str) -> None:
    """Until standard input ends."""
    state = _State([0] * PARTITIONS, [0] * PARTITIONS)

    async def listen() -> None:
        await asyncio.to_thread(sys.stdin.read)
        state.stopping = True

    async def tell() -> None:
        while not state.stopping:
            state.report()
            await asyncio.sleep(REPORT_EVERY_S)

    async with (
        tailrace.connect(url, connect_timeout=20) as client,
        client.producer(timeout=300, compression="none") as producer,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(listen())
        tasks.create_task(tell())
        for partition in range(PARTITIONS):
            for _ in range(CALLS_IN_FLIGHT):
                tasks.create_task(_send(producer, topic, partition, state))
    state.report()


async def _send(
    producer: tailrace.Producer[bytes, bytes], topic: str, partition: int, state: _State
) -> None:
    while not state.stopping:
        first = state.sent[partition]
        state.sent[partition] += CHUNK_RECORDS
        values = [value_of(number) for number in range(first, first + CHUNK_RECORDS)]
        try:
            written = await producer.send_many(topic, values, partition=partition)
        except tailrace.TailraceError as error:
            print(error, file=sys.stderr, flush=True)
            state.errors += 1
            continue
        assert written[0].offset == first, f"{first} was written at {written[0].offset}"
        assert written[-1].offset == first + CHUNK_RECORDS - 1, "not in one piece"
        state.acked[partition] = max(state.acked[partition], first + CHUNK_RECORDS)


if __name__ == "__main__":
    asyncio.run(produce(sys.argv[1], sys.argv[2]))
