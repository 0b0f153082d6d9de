"""``tailrace consume -g``: reading as a member of a group.

Only what was written to stdout and flushed is committed: a batch counts as processed when it is
out, not when the next one is asked for.
"""

from collections.abc import Sequence

from tailrace.client.cli_reading import BATCH_RECORDS, Run, finish
from tailrace.client.cli_run import say
from tailrace.client.client import Client
from tailrace.client.records import At
from tailrace.protocol.errors import GroupNotFound
from tailrace.protocol.positions import Position
from tailrace.protocol.shapes import TopicPartition


def consume(
    run: Run,
    topics: Sequence[str],
    group: str,
    start: Position,
    *,
    stop_at_end: bool,
    idle_seconds: float | None,
) -> int:
    """Read what the group gives to this member; the exit code."""

    async def work(client: Client) -> None:
        # Asked before joining: a new member that starts at the end commits that place at once.
        goes_on = start.kind != "committed" and await _has_committed(client, group, topics)
        async with client.consumer(
            *topics,
            group=group,
            start=start_of(start),
            stop_at_end=stop_at_end,
            idle_timeout=idle_seconds,
        ) as consumer:
            if goes_on:
                hint = f"to move it: tailrace group reset {group} --to start"
                say(run.console, f"group '{group}' goes on where it has committed; {hint}")
            if run.done():
                return
            batches = consumer.batches(max_records=BATCH_RECORDS, max_wait=0)
            async for batch in batches:
                run.take(batch)
                batches.processed(run.positions[TopicPartition(batch.topic, batch.partition)])
                if run.done():
                    return

    return finish(run, work)


async def _has_committed(client: Client, group: str, topics: Sequence[str]) -> bool:
    try:
        found = (await client.admin.group_lag(group)).partition_list
    except GroupNotFound:
        return False
    return any(one.committed is not None and one.topic in topics for one in found)


def start_of(position: Position) -> At:
    """Where to begin in partitions of which the group has committed nothing."""
    if position.kind == "time":
        assert position.time is not None
        return position.time
    return "latest" if position.kind == "end" else "earliest"
