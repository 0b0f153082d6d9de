"""Sending records for ``produce``, and keeping count of what was delivered."""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio

from tailrace.client.cli_lines import HeaderColumn, Parse
from tailrace.client.cli_pipes import read_lines, stdin_descriptor
from tailrace.client.cli_run import connect_by, plural, say, show_document
from tailrace.client.client import Client
from tailrace.client.producer import Producer
from tailrace.client.records import Acks, RecordMetadata
from tailrace.protocol.batch import Compression
from tailrace.protocol.console import EXIT_INTERRUPTED, Console
from tailrace.protocol.errors import SendManyError, TailraceError
from tailrace.protocol.record_json import InputRecord

RATE_STEP_SECONDS = 0.05
ACKS: dict[str, Acks] = {"all": "all", "1": 1, "0": 0}


@dataclass
class Progress:
    """What has been delivered so far, for the summary in every ending."""

    keep: bool  # keep each record's metadata, for -O json
    read: int = 0  # records of the input
    sent: int = 0  # of them given to the producer
    delivered: int = 0
    first_missing: int | None = None  # a line, from 1
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    metadata: list[RecordMetadata] = field(default_factory=list[RecordMetadata])

    def add(self, results: Sequence[RecordMetadata | None]) -> None:
        """The outcome of the next records, None for one that failed."""
        for at, metadata in enumerate(results):
            if metadata is None:
                if self.first_missing is None:
                    self.first_missing = self.sent + at + 1
                continue
            self.delivered += 1
            if self.keep:
                self.metadata.append(metadata)
            if metadata.offset < 0:
                continue  # acks=0: nobody said where
            first, last = self.ranges.get(metadata.partition, (metadata.offset, metadata.offset))
            span = min(first, metadata.offset), max(last, metadata.offset)
            self.ranges[metadata.partition] = span
        self.sent += len(results)

    def summary(self, topic: str, elapsed: float) -> str:
        """``produced 1,000 records to hello in 0.21 s: p0@0-499 p1@0-499``"""
        took = "" if self.delivered == 1 else f" in {elapsed:.2f} s"
        places = " ".join(
            f"p{partition}@{first}" if first == last else f"p{partition}@{first}-{last}"
            for partition, (first, last) in sorted(self.ranges.items())
        )
        where = f": {places}" if places else ""
        return f"produced {plural(self.delivered, 'record')} to {topic}{took}{where}"

    def shortfall(self) -> str:
        """What the failure left out."""
        missing = self.first_missing or self.sent + 1
        total = f" of {self.read:,}" if self.read else ""
        return f"{self.delivered:,}{total} records delivered; first missing: line {missing:,}"


@dataclass
class Job:
    """One run of the command: where the records go, how, and how far it got."""

    console: Console
    topic: str
    partition: int | None
    acks: Acks
    compression: Compression
    rate_per_s: float | None
    progress: Progress
    due: float = 0.0  # when ``rate_per_s`` allows the next records, by the event loop's clock

    def run_one(self, record: InputRecord) -> int:
        """Send one record; the exit code."""

        async def work() -> None:
            async with connect_by(self.console) as client:
                async with await self._open(client) as producer:
                    await self._send(producer, [record])

        return self._finish(work, lines=False)

    def run_lines(self, path: str | None, parse: Parse) -> int:
        """Send every line of a file or of stdin; the exit code."""
        descriptor = stdin_descriptor() if path is None else os.open(path, os.O_RDONLY)

        async def work() -> None:
            async with connect_by(self.console) as client:
                async with await self._open(client) as producer:
                    await self._send_lines(producer, descriptor, parse)

        try:
            return self._finish(work, lines=True)
        finally:
            if path is not None:
                os.close(descriptor)

    def _finish(self, work: Callable[[], Awaitable[None]], *, lines: bool) -> int:
        began = time.perf_counter()
        code = 0
        try:
            anyio.run(work, backend="asyncio")
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        except TailraceError:
            if lines:
                say(self.console, self.progress.shortfall())
            raise
        say(self.console, self.progress.summary(self.topic, time.perf_counter() - began))
        show_document(self.console, {"records": self.progress.metadata})
        return code

    async def _open(self, client: Client) -> Producer[bytes, bytes]:
        """Find the topic, and say so if asking for it created it."""
        metadata = await client.cluster.topic(self.topic, auto_create=True)
        if metadata.created:
            count = plural(len(metadata.partitions), "partition")
            say(self.console, f"created topic {self.topic} ({count}, auto-create)")
        return client.producer(
            acks=self.acks,
            idempotent=self.acks == "all",
            compression=self.compression,
            timeout=self.console.timeout_seconds,
        )

    async def _send_lines(
        self, producer: Producer[bytes, bytes], descriptor: int, parse: Parse
    ) -> None:
        async for lines in read_lines(descriptor):
            number = self.progress.read
            self.progress.read += len(lines)
            records: list[InputRecord] = []
            for line in lines:
                number += 1
                try:
                    records.append(parse(line, number))
                except TailraceError:
                    await self._send(producer, records)  # what came before the bad line counts
                    raise
            await self._send(producer, records)

    async def _send(self, producer: Producer[bytes, bytes], records: Sequence[InputRecord]) -> None:
        """Send and count; at most ``rate_per_s`` a second."""
        step = len(records)
        if self.rate_per_s is not None:
            step = max(1, int(self.rate_per_s * RATE_STEP_SECONDS))
        for at in range(0, len(records), max(1, step)):
            part = records[at : at + step]
            if self.rate_per_s is not None:
                await anyio.sleep_until(self.due)
                self.due = max(anyio.current_time(), self.due) + len(part) / self.rate_per_s
            await self._send_part(producer, part)

    async def _send_part(
        self, producer: Producer[bytes, bytes], records: Sequence[InputRecord]
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        headers: list[HeaderColumn] = [record.headers for record in records]
        try:
            sent = await producer.send_many(
                self.topic,
                [record.value for record in records],
                keys=[record.key for record in records],
                timestamps=[now_ms if r.timestamp is None else r.timestamp for r in records],
                headers=headers if any(headers) else None,
                partition=self.partition,
            )
        except SendManyError as error:
            self.progress.add(error.metadata)
            raise error.failures[min(error.failures)] from error
        self.progress.add(sent)
