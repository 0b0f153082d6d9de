"""``tailrace produce``: lines of stdin, or one value, as records."""

import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio
import click

from tailrace.client.cli_run import connect_by, say
from tailrace.client.cli_topic import plural
from tailrace.client.client import Client
from tailrace.client.producer import Producer
from tailrace.client.record_json import InputRecord, parse_line
from tailrace.client.records import RecordMetadata
from tailrace.client.shapes import to_json
from tailrace.protocol import texts_cli
from tailrace.protocol.console import EXIT_INTERRUPTED, Console
from tailrace.protocol.errors import SendManyError, TailraceError
from tailrace.protocol.units import format_count

READ_BYTES = 1 << 20
RATE_STEP_SECONDS = 0.05

Parse = Callable[[bytes, int], InputRecord]


@dataclass
class Progress:
    """What has been delivered so far, for the summary in every ending."""

    keep: bool  # keep each record's metadata, for -O json
    lines: int = 0
    delivered: int = 0
    first_missing: int | None = None
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    metadata: list[RecordMetadata] = field(default_factory=list[RecordMetadata])

    def add(self, sent: Sequence[RecordMetadata | None]) -> None:
        for at, metadata in enumerate(sent):
            if metadata is None:
                if self.first_missing is None:
                    self.first_missing = self.lines + at + 1
                continue
            self.delivered += 1
            first, last = self.ranges.get(metadata.partition, (metadata.offset, metadata.offset))
            self.ranges[metadata.partition] = (
                min(first, metadata.offset),
                max(last, metadata.offset),
            )
            if self.keep:
                self.metadata.append(metadata)
        self.lines += len(sent)

    def places(self) -> str:
        """``p0@0-499 p1@0-499``"""
        return " ".join(
            f"p{partition}@{first}" if first == last else f"p{partition}@{first}-{last}"
            for partition, (first, last) in sorted(self.ranges.items())
        )


@click.command()
@click.argument("topic")
@click.option("-f", "--file", "path", type=click.Path(exists=True, dir_okay=False))
@click.option("-K", "delimiter", metavar="DELIM", help="Split each line into key and value.")
@click.option("--ndjson", is_flag=True, help="Each line is a record as JSON.")
@click.option("--value", help="One record with this value.")
@click.option("--tombstone", is_flag=True, help="One record without a value; needs -k.")
@click.option("-k", "--key", help="Key of every record.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME=VALUE")
@click.option("-p", "--partition", type=click.IntRange(min=0))
@click.option("--acks", type=click.Choice(["all", "1", "0"]), default="all")
@click.option("--compression", type=click.Choice(["lz4", "zstd", "none"]), default="lz4")
@click.option("--rate", metavar="N/s", help="Send no more than so many records a second.")
@click.pass_context
def produce(
    ctx: click.Context,
    topic: str,
    path: str | None,
    delimiter: str | None,
    ndjson: bool,
    value: str | None,
    tombstone: bool,
    key: str | None,
    headers: tuple[str, ...],
    partition: int | None,
    acks: Literal["all", "1", "0"],
    compression: Literal["lz4", "zstd", "none"],
    rate: str | None,
) -> None:
    """Send records to TOPIC: each line of stdin (or FILE) is one.

    The newline is removed, an empty line is an empty value, a last line without newline counts.
    """
    console: Console = ctx.obj
    given = [delimiter is not None, ndjson, value is not None, tombstone]
    if sum(given) > 1:
        raise click.UsageError("give only one of -K, --ndjson, --value, --tombstone")
    if tombstone and key is None:
        raise click.UsageError("--tombstone needs -k KEY: it deletes that key")
    parse = parser(delimiter, ndjson, key, parse_headers(headers))
    fixed = [parse(b"" if value is None else value.encode(), 0)] if value is not None else None
    if tombstone:
        fixed = [InputRecord(encoded(key), None, None, parse_headers(headers))]
    progress = Progress(keep=console.output != "table")
    job = Job(console, topic, partition, parse_rate(rate), progress)
    began = time.perf_counter()

    async def work() -> None:
        async with connect_by(console) as client:
            await announce(client, console, topic)
            chosen: Literal["all", 1, 0] = "all" if acks == "all" else 1 if acks == "1" else 0
            async with client.producer(
                acks=chosen, idempotent=acks == "all", compression=compression
            ) as producer:
                if fixed is not None:
                    await job.send(producer, fixed)
                else:
                    await job.send_lines(producer, path, parse)

    try:
        anyio.run(work, backend="asyncio")
    except KeyboardInterrupt:
        summarise(console, topic, progress, time.perf_counter() - began)
        ctx.exit(EXIT_INTERRUPTED)
    except TailraceError:
        missing = progress.first_missing or progress.lines + 1
        total = f" of {progress.lines:,}" if progress.lines > progress.delivered else ""
        say(
            console,
            f"{progress.delivered:,}{total} records delivered; first missing: line {missing:,}",
        )
        raise
    summarise(console, topic, progress, time.perf_counter() - began)


@dataclass
class Job:
    """One run of the command: where the records go, and how fast."""

    console: Console
    topic: str
    partition: int | None
    rate_per_s: float | None
    progress: Progress

    async def send_lines(
        self, producer: Producer[bytes, bytes], path: str | None, parse: Parse
    ) -> None:
        descriptor = sys.stdin.fileno() if path is None else os.open(path, os.O_RDONLY)
        number = 0
        async for lines in read_lines(descriptor):
            records: list[InputRecord] = []
            for line in lines:
                number += 1
                try:
                    records.append(parse(line, number))
                except TailraceError:
                    await self.send(producer, records)  # what came before the bad line counts
                    raise
            await self.send(producer, records)

    async def send(self, producer: Producer[bytes, bytes], records: Sequence[InputRecord]) -> None:
        """Send and count; at most ``rate_per_s`` a second."""
        step = len(records) if self.rate_per_s is None else self._step()
        for at in range(0, len(records), max(1, step)):
            part = records[at : at + step]
            await self._send_part(producer, part)
            if self.rate_per_s is not None:
                await anyio.sleep(len(part) / self.rate_per_s)

    def _step(self) -> int:
        assert self.rate_per_s is not None
        return max(1, int(self.rate_per_s * RATE_STEP_SECONDS))

    async def _send_part(
        self, producer: Producer[bytes, bytes], records: Sequence[InputRecord]
    ) -> None:
        if not records:
            return
        now_ms = time.time_ns() // 1_000_000
        try:
            sent = await producer.send_many(
                self.topic,
                [record.value for record in records],
                keys=[record.key for record in records],
                timestamps=[now_ms if r.timestamp is None else r.timestamp for r in records],
                headers=[r.headers for r in records] if any(r.headers for r in records) else None,
                partition=self.partition,
            )
        except SendManyError as error:
            metadata = error.metadata
            self.progress.add([m if isinstance(m, RecordMetadata) else None for m in metadata])
            first = error.failures[min(error.failures)]
            raise first from error
        self.progress.add(sent)


async def read_lines(descriptor: int) -> AsyncIterator[list[bytes]]:
    """Lines without their newline, as many at a time as are there; a regular file never waits."""
    waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    rest: list[bytes] = []
    while True:
        if waits:
            await anyio.wait_readable(descriptor)
        data = os.read(descriptor, READ_BYTES)
        if not data:
            break
        *lines, last = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*rest, lines[0]))
            rest = []
            yield lines
        rest.append(last)
    if tail := b"".join(rest):
        yield [tail]


async def announce(client: Client, console: Console, topic: str) -> None:
    """Find the topic, and say so if asking for it created it."""
    metadata = await client.cluster.topic(topic, auto_create=True)
    if metadata.created:
        count = plural(len(metadata.partitions), "partition")
        say(console, f"created topic {topic} ({count}, auto-create)")


def parser(
    delimiter: str | None,
    ndjson: bool,
    key: str | None,
    headers: tuple[tuple[str, bytes | None], ...],
) -> Parse:
    """How a line becomes a record."""
    fixed_key = encoded(key)

    def plain(line: bytes, number: int) -> InputRecord:
        return InputRecord(fixed_key, line, None, headers)

    def split(line: bytes, number: int) -> InputRecord:
        assert delimiter is not None
        found, separator, value = line.partition(delimiter.encode())
        if not separator:
            raise texts_cli.invalid_input(reason=f"no '{delimiter}' in the line", line=number)
        return InputRecord(found, value, None, headers)

    def json_line(line: bytes, number: int) -> InputRecord:
        record = parse_line(line, line=number)
        return InputRecord(
            fixed_key if record.key is None else record.key,
            record.value,
            record.timestamp,
            (*record.headers, *headers),
        )

    return json_line if ndjson else plain if delimiter is None else split


def encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def parse_headers(pairs: tuple[str, ...]) -> tuple[tuple[str, bytes | None], ...]:
    found: list[tuple[str, bytes | None]] = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"-H takes NAME=VALUE, not '{pair}'")
        found.append((name, value.encode()))
    return tuple(found)


def parse_rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text.removesuffix("/s"))
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise click.UsageError(f"--rate takes a number of records a second, not '{text}'")
    return rate


def summarise(console: Console, topic: str, progress: Progress, elapsed: float) -> None:
    count = f"{format_count(progress.delivered)} record" + ("s" if progress.delivered != 1 else "")
    took = "" if progress.delivered == 1 else f" in {elapsed:.2f} s"
    places = f": {progress.places()}" if progress.ranges else ""
    say(console, f"produced {count} to {topic}{took}{places}")
    if console.output != "table":
        records = [to_json(metadata) for metadata in progress.metadata]
        if shown := console.render({"records": records}, ""):
            click.echo(shown)
