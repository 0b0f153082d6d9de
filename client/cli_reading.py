"""Reading records for ``consume``, ``tail`` and ``cat``: where to start, where to stop, what next.

stdout gets records only. What a reader of the pipe has not taken is not counted as read: the
position printed on Ctrl-C is behind the last record that was written and flushed.
"""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from tailrace.client.cli_format import AnyRecord, Write
from tailrace.client.cli_pipes import until_stdout_closes
from tailrace.client.cli_run import connect_by, say
from tailrace.client.client import Client
from tailrace.client.consumer import Consumer
from tailrace.client.offsets import list_offsets
from tailrace.client.records import Batch
from tailrace.protocol import texts
from tailrace.protocol.console import EXIT_INTERRUPTED, Console
from tailrace.protocol.positions import Position
from tailrace.protocol.shapes import TopicPartition

BATCH_RECORDS = 10_000


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


def consume(
    run: Run,
    topics: Sequence[str],
    numbers: Sequence[int],
    start: Position,
    to: Position | None,
    *,
    stop_at_end: bool,
    idle_seconds: float | None,
) -> int:
    """Read the partitions ``numbers`` (none given: all) of the topics; the exit code."""

    async def work(client: Client) -> None:
        partitions = await find_partitions(client, topics, numbers)
        if to is not None:
            run.ends = await resolve(client, partitions, to)
        async with client.consumer(
            partitions=partitions, stop_at_end=stop_at_end, idle_timeout=idle_seconds
        ) as consumer:
            run.positions = await resolve(client, partitions, start)
            if start.kind == "offset":
                await check_range(client, run.positions)
            await print_from(consumer, run)

    return finish(run, work)


def tail(run: Run, topic: str, numbers: Sequence[int], count: int, *, follow: bool) -> int:
    """Read the last ``count`` records, and ``follow``; the exit code."""

    async def work(client: Client) -> None:
        partitions = await find_partitions(client, (topic,), numbers)
        ends = await resolve(client, partitions, Position("end"))
        for record in await last_records(client, partitions, ends, count):
            run.write(Batch[bytes, bytes].of([record]))
        sys.stdout.buffer.flush()
        run.positions = dict(ends)
        if follow:
            async with client.consumer(partitions=partitions) as consumer:
                await print_from(consumer, run)

    return finish(run, work)


def cat(run: Run, topic: str, number: int, first: int, last: int) -> int:
    """Read the records of one partition from ``first`` to ``last``; the exit code."""
    partition = TopicPartition(topic, number)

    async def work(client: Client) -> None:
        await find_partitions(client, (topic,), (number,))
        end = (await check_range(client, {partition: first}, readable=True))[partition]
        run.positions = {partition: first}
        run.ends = {partition: min(last + 1, end)}
        async with client.consumer(partitions=[partition], stop_at_end=True) as consumer:
            await print_from(consumer, run)

    return finish(run, work)


def finish(run: Run, work: Callable[[Client], Awaitable[None]]) -> int:
    """Run to the end; on Ctrl-C say where to go on. The exit code."""

    async def session() -> None:
        async with connect_by(run.console) as client:
            await work(client)

    try:
        anyio.run(until_stdout_closes, session, backend="asyncio")
    except KeyboardInterrupt:
        say(run.console, run.resume_line())
        return EXIT_INTERRUPTED
    run.at_end()
    return 0


async def print_from(consumer: Consumer[bytes, bytes], run: Run) -> None:
    """Print from ``run.positions`` on until it is done."""
    for partition, offset in run.positions.items():
        await consumer.seek(partition, offset)
    for partition, end in run.ends.items():  # there may be no record left to tell that it is past
        buffer = consumer.feed.buffer(partition)
        buffer.stop = end if buffer.stop is None else min(end, buffer.stop)
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
    """The last ``count`` records of all partitions together, oldest first.

    Where many of them were removed it looks farther back, twice as far each time.
    """
    found: list[AnyRecord] = []
    left, back = list(partitions) if count else [], count
    while left:
        first = await resolve(client, left, Position("start"))
        starts = {at: max(first[at], ends[at] - back) for at in left}
        for at, records in (await read_between(client, starts, ends)).items():
            if len(records) >= count or starts[at] == first[at]:
                found += records[-count:]
                left.remove(at)
        back *= 2
    found.sort(key=lambda record: (record.append_time, record.partition, record.offset))
    return found[-count:] if count else []


async def read_between(
    client: Client, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, list[AnyRecord]]:
    """All records of these partitions from ``starts`` up to ``ends``."""
    found: dict[TopicPartition, list[AnyRecord]] = {at: [] for at in starts}
    async with client.consumer(partitions=list(starts), stop_at_end=True) as consumer:
        for at, start in starts.items():
            await consumer.seek(at, start)
        async for batch in consumer.batches(max_records=BATCH_RECORDS, max_wait=0):
            at = TopicPartition(batch.topic, batch.partition)
            found[at] += [record for record in batch if record.offset < ends[at]]
    return found
