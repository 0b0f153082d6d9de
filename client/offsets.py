"""Offsets by time: where a log starts, ends, and where it stood at some moment."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import anyio

from tailrace.client.metrics import instruments
from tailrace.client.records import At
from tailrace.client.retry import LEADER_LIMIT_S, Backoff, passes
from tailrace.protocol import texts, texts_config
from tailrace.protocol.errors import TailraceError, from_wire
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX, pieces
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    OFFSET_LATEST,
    READ_COMMITTED,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetQuery,
    PartitionMetadata,
    TopicMetadata,
)
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.client import Client

# Ask for the metadata again.
_STALE = ("T001", "T010", "T032", "T033", "T037", "T045", "T093", "T100")


def time_of(at: object, *, call: str, key: str) -> int:
    """What ListOffsets takes for an ``At``. ConfigError T082 if it is none."""
    if at == "earliest":
        return OFFSET_EARLIEST
    if at == "latest":
        return OFFSET_LATEST
    if isinstance(at, datetime) and at.tzinfo is not None:
        return max(0, int(at.timestamp() * 1000))
    raise texts_config.bad_argument(
        key,
        at,
        call=call,
        expected="'earliest', 'latest' or a datetime with a time zone",
        hint="Example: datetime.now(UTC) - timedelta(hours=2)",
    )


async def list_offsets(
    client: "Client",
    partitions: Iterable[TopicPartition],
    at: At | int,
    *,
    isolation: int = READ_COMMITTED,
) -> dict[TopicPartition, int]:
    """For each partition the first offset appended at or after ``at``, or the readable end.

    ``at`` as an int is ms since the epoch. Tries again until ``request_timeout``. Raises
    TopicNotFound T010, PartitionNotFound T011, ConfigError T082 for a naive datetime, and the last
    error when time is up.
    """
    time_ms = at if isinstance(at, int) else time_of(at, call="offsets", key="at")
    left = list(dict.fromkeys(partitions))
    found: dict[TopicPartition, int] = {}
    several = client.cluster.several
    backoff = Backoff(client.random, LEADER_LIMIT_S if several else None)
    ends_at = client.clock.now() + client.options.request_timeout
    while left:
        try:
            await _ask_all(client, left, time_ms, isolation, found)
        except TailraceError as error:
            pause_s = backoff.next()
            again = passes(error, several=several) and error.code not in ("T005", "T034")
            if error.code == "T010" and not backoff.attempts > 1:
                again = True  # what is remembered of the topic may be older than the topic
            if not again or client.clock.now() + pause_s >= ends_at:
                raise
            if error.code in _STALE:
                for topic in {at.topic for at in left}:
                    client.cluster.misled(topic)
            instruments.retried(error.code)
            await anyio.sleep(pause_s)
        left = [partition for partition in left if partition not in found]
    return found


def partition_of(metadata: TopicMetadata, partition: int) -> PartitionMetadata:
    """One partition of a topic, or PartitionNotFound T011."""
    for one in metadata.partitions:
        if one.partition == partition:
            return one
    raise texts.partition_not_found(metadata.name, partition, partitions=len(metadata.partitions))


async def _ask_all(
    client: "Client",
    partitions: Sequence[TopicPartition],
    time_ms: int,
    isolation: int,
    found: dict[TopicPartition, int],
) -> None:
    """What each leader is to be asked, in as few requests as it takes. Fills ``found``; raises the
    first error, after all was asked."""
    by_leader: dict[str, list[tuple[TopicPartition, OffsetQuery]]] = {}
    for at in partitions:
        metadata = await client.cluster.topic(at.topic)
        leader = partition_of(metadata, at.partition).leader
        if leader is None:
            raise texts.partition_offline(*at, reason="it has no leader")
        query = OffsetQuery(metadata.topic_id, at.partition, time_ms)
        by_leader.setdefault(leader, []).append((at, query))
    wrong: TailraceError | None = None
    requests = [
        (leader, piece)
        for leader, queries in by_leader.items()
        for piece in pieces(queries, PARTITIONS_PER_REQUEST_MAX)
    ]
    for leader, asked in requests:
        request = ListOffsetsRequest(isolation, tuple(query for _, query in asked))
        response, _ = await client.cluster.leader_request(
            leader, request, kind="control", timeout=client.options.request_timeout
        )
        assert isinstance(response, ListOffsetsResponse)
        for (at, _), result in zip(asked, response.results, strict=True):
            if result.error is None:
                found[at] = result.offset
            else:
                wrong = wrong or from_wire(result.error)
    if wrong is not None:
        raise wrong
