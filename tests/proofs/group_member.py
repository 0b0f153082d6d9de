"""A member of a group in a process of its own, and what it processed, seen from outside.

Each record that is processed becomes a note in a file, by one write: a process that is killed has
noted exactly what it had processed. Times are those of the machine's wall clock, which all
processes share.
"""

import asyncio
import json
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio

import tailrace

ROOT = Path(__file__).parent.parent.parent
READY_SECONDS_MAX = 60.0
END_SECONDS_MAX = 60.0
NOTE = struct.Struct("<qqqq")
WAKE = "wake"  # a file in the folder
Mode = Literal["iterate", "run", "streams"]
Record = tailrace.Record[bytes, bytes]


@dataclass(frozen=True)
class Job:
    """What a member shall do. It leaves on SIGTERM: out of its loop, or by itself in ``run``."""

    url: str
    topic: str
    group: str
    name: str
    folder: str  # for its notes and its log
    mode: Mode = "iterate"
    session_timeout: float = 3.0
    commit_interval: float = 1.0
    sleep_s: float = 0.0  # in the handler of a record that says so; then until ``WAKE`` is there
    block_s: float = 0.0  # the same, and the event loop with it


class Note(NamedTuple):
    """One record was processed."""

    at_ms: float
    partition: int
    offset: int
    append_ms: int


class MemberProcess:
    """The process, seen from outside. Killed at the end of the ``with`` block."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.notes_path = Path(job.folder, f"{job.name}.notes")
        self.log_path = Path(job.folder, f"{job.name}.log")
        command = [sys.executable, "-m", "tests.proofs.group_member", json.dumps(asdict(job))]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )

    def wait_ready(self) -> None:
        """Until it has joined."""
        assert self._process.stdout is not None
        there, _, _ = select.select([self._process.stdout], [], [], READY_SECONDS_MAX)
        line = self._process.stdout.readline() if there else ""
        assert line == "ready\n", f"{self.job.name} did not join: {self.log_path.read_text()}"

    def kill(self) -> float:
        """SIGKILL; when, in ms."""
        at_ms = time.time() * 1000
        self._process.kill()
        self._process.wait()
        return at_ms

    def leave(self) -> float:
        """SIGTERM, and wait for its end; when it was sent, in ms."""
        at_ms = time.time() * 1000
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(END_SECONDS_MAX)
        assert code == 0, f"{self.job.name} ended with {code}: {self.log_path.read_text()}"
        return at_ms

    def notes(self) -> list[Note]:
        """What it has processed so far, in that order."""
        if not self.notes_path.exists():
            return []
        data = self.notes_path.read_bytes()
        whole = data[: len(data) // NOTE.size * NOTE.size]
        return [Note(us / 1000, *rest) for us, *rest in NOTE.iter_unpack(whole)]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> "MemberProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.alive:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


# ── in the process ───────────────────────────────────────────────────────────────────────────


class _Member:
    def __init__(self, job: Job, consumer: tailrace.Consumer[bytes, bytes]) -> None:
        self.job = job
        self.consumer = consumer
        self.reading = anyio.CancelScope()
        path = Path(job.folder, f"{job.name}.notes")
        self._wake = Path(job.folder, WAKE)
        self._notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def go(self) -> None:
        if self.job.mode == "run":
            await self.consumer.run(self.handle)
            return
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.reading.cancel)
        with self.reading:
            if self.job.mode == "iterate":
                await self.read(self.consumer)
                return
            async with anyio.create_task_group() as tasks:
                async for stream in self.consumer.partitions():
                    tasks.start_soon(self.read, stream)

    async def read(self, records: Any) -> None:
        """One record after the other."""
        async for record in records:
            await self.handle(record)

    async def handle(self, record: Record) -> None:
        if record.value == b"sleep":
            await asyncio.sleep(self.job.sleep_s)
            while not self._wake.exists():  # noqa: ASYNC110  another process makes it
                await asyncio.sleep(0.05)
        if record.value == b"block":
            time.sleep(self.job.block_s)  # noqa: ASYNC251  what T050 shall name
        note = (time.time_ns() // 1000, record.partition, record.offset, record.append_time)
        os.write(self._notes, NOTE.pack(*note))


async def main(job: Job) -> None:
    """Until it is told to stop."""
    async with (
        tailrace.connect(job.url, client_id=job.name) as client,
        client.consumer(
            job.topic,
            group=job.group,
            session_timeout=job.session_timeout,
            commit_interval=job.commit_interval,
        ) as made,
    ):
        print("ready", flush=True)
        await _Member(job, made).go()


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    asyncio.run(main(Job(**json.loads(sys.argv[1]))))
