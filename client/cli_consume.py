"""``tailrace consume``, ``tail`` and ``cat``: records to stdout.

stdout gets records only. What a reader of the pipe has not taken is not counted as read: the
position printed on Ctrl-C is behind the last record that was written and flushed.
"""

import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

import anyio
import click

from tailrace.client.cli_format import AnyRecord, Write, printer
from tailrace.client.cli_offsets import Position, parse_range
from tailrace.client.cli_pipes import until_stdout_closes
from tailrace.client.cli_run import connect_by, duration_s, say
from tailrace.client.client import Client
from tailrace.client.consumer import Consumer
from tailrace.client.offsets import list_offsets
from tailrace.client.records import Batch, TopicPartition
from tailrace.protocol import texts, texts_cli
from tailrace.protocol.console import EXIT_INTERRUPTED, Console
from tailrace.protocol.record_json import Decode

BATCH_RECORDS = 10_000
DECODES = click.Choice(get_args(Decode))


@dataclass
class Run:
    """What to read, how to print it, and how far it got."""

    console: Console
    write: Write
    at_end: Callable[[], None]
    limit: int | None = None
    ends: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    positions: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])
    written: int = 0

    def done(self) -> bool:
        if self.limit is not None and self.written >= self.limit:
            return True
        return bool(self.ends) and all(
            self.positions.get(partition, 0) >= end for partition, end in self.ends.items()
        )

    def take(self, batch: Batch[bytes, bytes]) -> None:
        """Write a batch, or the part of it that is still wanted."""
        at = TopicPartition(batch.topic, batch.partition)
        count = len(batch)
        if self.limit is not None:
            count = min(count, self.limit - self.written)
        if (end := self.ends.get(at)) is not None:
            count = min(count, sum(1 for offset in batch.offsets if offset < end))
        if count:
            self.write(batch if count == len(batch) else batch[:count])
            sys.stdout.buffer.flush()
            self.written += count
        whole = count == len(batch)
        self.positions[at] = batch.next_offset if whole else batch.offsets[count]

    def resume_line(self) -> str:
        places = " ".join(f"{p.topic}:{p.partition}:{o}" for p, o in sorted(self.positions.items()))
        return f"resume at {places}" if places else "nothing was read"


@click.command()
@click.argument("topics", nargs=-1, required=True)
@click.option("-g", "--group", help="Consumer group (comes in a later release).")
@click.option("-o", "--offset", "offset", default="start", help="Where to start, or FROM:TO.")
@click.option("-p", "--partition", "numbers", type=click.IntRange(min=0), multiple=True)
@click.option("-n", "--number", "limit", type=click.IntRange(min=0), help="Stop after N records.")
@click.option("-e", "--end", "stop_at_end", is_flag=True, help="Stop at the end seen at the start.")
@click.option("-f", "--format", "template", help="%t %p %o %k %v %h %d %a, \\n \\t.")
@click.option("--decode", type=DECODES, default="auto")
@click.option("--idle", metavar="DUR", help="Stop when nothing came for so long.")
@click.pass_obj
def consume(
    console: Console,
    topics: tuple[str, ...],
    group: str | None,
    offset: str,
    numbers: tuple[int, ...],
    limit: int | None,
    stop_at_end: bool,
    template: str | None,
    decode: Decode,
    idle: str | None,
) -> int:
    """Print the records of TOPICS, and go on until Ctrl-C, -n, -e or --idle."""
    if group is not None:
        raise texts_cli.later_command(command="consume -g")
    start, to = parse_range(offset, datetime.now(UTC))
    if console.output == "json" and limit is None and not stop_at_end and idle is None and not to:
        raise click.UsageError("-O json needs an end: -n, -e or --idle (or use -O ndjson)")
    run = Run(console, *printer(console, template, decode), limit=limit)
    idle_seconds = duration_s("--idle", idle)

    async def work() -> None:
        async with connect_by(console) as client:
            partitions = await find_partitions(client, topics, numbers)
            if to is not None:
                run.ends = await resolve(client, partitions, to)
            async with client.consumer(
                partitions=partitions, stop_at_end=stop_at_end, idle_timeout=idle_seconds
            ) as consumer:
                await seek_all(client, consumer, partitions, start, run)
                await print_all(consumer, run)

    return finish(run, work)


@click.command()
@click.argument("topic")
@click.option("-n", "--number", "count", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with new records.")
@click.option("-p", "--partition", "numbers", type=click.IntRange(min=0), multiple=True)
@click.option("--format", "template", help="As for consume.")
@click.option("--decode", type=DECODES, default="auto")
@click.pass_obj
def tail(
    console: Console,
    topic: str,
    count: int,
    follow: bool,
    numbers: tuple[int, ...],
    template: str | None,
    decode: Decode,
) -> int:
    """Print the last N records of TOPIC by append time, then exit or follow."""
    if console.output == "json" and follow:
        raise click.UsageError("-O json needs an end: leave out -f (or use -O ndjson)")
    run = Run(console, *printer(console, template, decode))

    async def work() -> None:
        async with connect_by(console) as client:
            partitions = await find_partitions(client, (topic,), numbers)
            ends = await resolve(client, partitions, Position("end"))
            last = await last_records(client, partitions, ends, count)
            for record in last:
                run.write(Batch.of([record]))
            sys.stdout.buffer.flush()
            run.positions = dict(ends)
            if follow:
                async with client.consumer(partitions=partitions) as consumer:
                    for partition, end in ends.items():
                        await consumer.seek(partition, end)
                    await print_all(consumer, run)

    return finish(run, work)


@click.command()
@click.argument("place", metavar="TOPIC:P:OFF[-OFF]")
@click.option("--decode", type=DECODES, default="auto")
@click.pass_obj
def cat(console: Console, place: str, decode: Decode) -> int:
    """Print records by offset; both ends are included."""
    partition, first, last = parse_place(place)
    run = Run(console, *printer(console, None, decode))

    async def work() -> None:
        async with connect_by(console) as client:
            await find_partitions(client, (partition.topic,), (partition.partition,))
            end = (await check_range(client, {partition: first}, readable=True))[partition]
            run.ends = {partition: min(last + 1, end)}
            async with client.consumer(partitions=[partition], stop_at_end=True) as consumer:
                await consumer.seek(partition, first)
                await print_all(consumer, run)

    return finish(run, work)


def parse_place(place: str) -> tuple[TopicPartition, int, int]:
    topic, _, rest = place.rpartition(":")
    topic, _, number = topic.rpartition(":")
    first, _, last = rest.partition("-")
    texts = (number, first, last or first)
    numbers = [int(text) for text in texts if re.fullmatch("[0-9]{1,18}", text)]
    if not topic or len(numbers) < len(texts) or numbers[1] > numbers[2]:
        raise click.UsageError(f"'{place}' is not TOPIC:P:OFF or TOPIC:P:OFF-OFF")
    return TopicPartition(topic, numbers[0]), numbers[1], numbers[2]


def finish(run: Run, work: Callable[[], Awaitable[None]]) -> int:
    """Run to the end; on Ctrl-C say where to go on. The exit code."""
    try:
        anyio.run(until_stdout_closes, work, backend="asyncio")
    except KeyboardInterrupt:
        say(run.console, run.resume_line())
        return EXIT_INTERRUPTED
    run.at_end()
    return 0


async def print_all(consumer: Consumer[bytes, bytes], run: Run) -> None:
    if run.done():
        return
    async for batch in consumer.batches(max_records=BATCH_RECORDS, max_wait=0):
        run.take(batch)
        if run.done():
            return


async def find_partitions(
    client: Client, topics: Sequence[str], numbers: Sequence[int]
) -> list[TopicPartition]:
    """Every partition of the topics, or those asked for; T010 or T011 if one does not exist."""
    found: list[TopicPartition] = []
    for topic in dict.fromkeys(topics):
        metadata = await client.cluster.topic(topic)
        existing = [partition.partition for partition in metadata.partitions]
        for number in numbers:
            if number not in existing:
                raise texts.partition_not_found(
                    topic=topic, partition=number, partitions=len(existing)
                )
        found += [TopicPartition(topic, number) for number in dict.fromkeys(numbers or existing)]
    return found


async def resolve(
    client: Client, partitions: Sequence[TopicPartition], position: Position
) -> dict[TopicPartition, int]:
    """A position as an offset of each partition."""
    if position.kind == "offset":
        return dict.fromkeys(partitions, position.number)
    if position.kind == "time":
        assert position.time is not None
        time_ms = int(position.time.timestamp() * 1_000)
        return await list_offsets(client, partitions, max(0, time_ms))
    if position.kind == "start":
        return await list_offsets(client, partitions, "earliest")
    ends = await list_offsets(client, partitions, "latest")
    if position.kind == "end":
        return ends
    starts = await list_offsets(client, partitions, "earliest")
    return {p: max(starts[p], ends[p] - position.number) for p in partitions}


async def seek_all(
    client: Client,
    consumer: Consumer[bytes, bytes],
    partitions: Sequence[TopicPartition],
    start: Position,
    run: Run,
) -> None:
    run.positions = await resolve(client, partitions, start)
    if start.kind == "offset":
        await check_range(client, run.positions)
    for partition, offset in run.positions.items():
        await consumer.seek(partition, offset)


async def check_range(
    client: Client, offsets: Mapping[TopicPartition, int], *, readable: bool = False
) -> dict[TopicPartition, int]:
    """The ends of these partitions; OffsetOutOfRange T041 for an offset outside of its log.

    ``readable``: there must be a record too, so the end itself will not do.
    """
    starts = await list_offsets(client, offsets, "earliest")
    ends = await list_offsets(client, offsets, "latest")
    for at, offset in offsets.items():
        start, end = starts[at], ends[at]
        if not start <= offset <= end - readable:
            raise texts.offset_out_of_range(*at, requested=offset, start=start, end=end)
    return ends


async def last_records(
    client: Client,
    partitions: Sequence[TopicPartition],
    ends: dict[TopicPartition, int],
    count: int,
) -> list[AnyRecord]:
    """The last ``count`` records of all partitions together, oldest first."""
    records: list[AnyRecord] = []
    if not count:
        return records
    starts = await resolve(client, partitions, Position("back", count))
    async with client.consumer(partitions=partitions, stop_at_end=True) as consumer:
        for partition, start in starts.items():
            await consumer.seek(partition, start)
        async for batch in consumer.batches(max_records=BATCH_RECORDS, max_wait=0):
            end = ends[TopicPartition(batch.topic, batch.partition)]
            records += [record for record in batch if record.offset < end]
    records.sort(key=lambda record: (record.append_time, record.partition, record.offset))
    return records[-count:]
