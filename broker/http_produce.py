"""Records that came over HTTP, on their way into the log: routed, packed into batches, produced.

Routed as the SDK does it: a key by hash range, records without a key into one partition per
request, the next in turn. There is no producer id: a request that is sent again writes again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from tailrace.broker.gateway import Gateway
from tailrace.broker.http_intake import record_bytes
from tailrace.protocol import texts
from tailrace.protocol.batch import encode_batch, header_seed
from tailrace.protocol.columns import RECORDS_MAX, BatchError
from tailrace.protocol.errors import TailraceError, from_wire
from tailrace.protocol.messages import (
    ACKS_ALL,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
    TopicMetadata,
)
from tailrace.protocol.record_json import InputRecord
from tailrace.protocol.routing import Router

BATCH_BYTES_MAX = 262_144  # uncompressed: some 2 ms to pack and compress; one larger record alone
REQUEST_BYTES_MAX = 1024 * 1024  # of batches in one request to a leader, save one larger batch
TIMEOUT_MS = 30_000
OVERHEAD_BYTES = 16  # of a record in a batch


class Written(NamedTuple):
    """Where a record stands; ``append_time`` in ms."""

    partition: int
    offset: int
    append_time: int


Outcome = Written | TailraceError


class Group(NamedTuple):
    """Records of one partition that go into one batch, by their place in the request."""

    partition: int
    places: Sequence[int]


@dataclass(slots=True)
class _Request:
    """Batches for one leader."""

    groups: list[Group] = field(default_factory=list[Group])
    parts: list[ProducePartition] = field(default_factory=list[ProducePartition])
    body: bytearray = field(default_factory=bytearray)


async def write(
    gateway: Gateway,
    topic: TopicMetadata,
    records: Sequence[InputRecord | TailraceError],
    *,
    acks: str,
) -> list[Outcome]:
    """One outcome per record, in their order; an error among them is its own outcome.

    Cancelled: some may have been written.
    """
    now_ms = gateway.node.world.clock.wall_ms()
    outcomes: list[Outcome | None] = [
        one if isinstance(one, TailraceError) else None for one in records
    ]
    for leader_groups in plan(topic, records, turn=gateway.records.next_turn()):
        request = _Request()
        for group in leader_groups:
            await _pack(topic, group, records, now_ms, request, outcomes)
            if len(request.body) >= REQUEST_BYTES_MAX:
                await _send(gateway, topic, request, acks, outcomes)
                request = _Request()
        await _send(gateway, topic, request, acks, outcomes)
    assert None not in outcomes, "every record has an outcome"
    return [one for one in outcomes if one is not None]


def plan(
    topic: TopicMetadata, records: Sequence[InputRecord | TailraceError], *, turn: int
) -> list[list[Group]]:
    """What goes into which batch, in the records' order within a partition; by leader."""
    router = Router([one.key_first for one in topic.partitions])
    led = [one.partition for one in topic.partitions if one.leader is not None]
    choice = led or [one.partition for one in topic.partitions]
    keyless = choice[turn % len(choice)]
    places: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        if isinstance(record, InputRecord):
            number = keyless if record.key is None else router.partition(record.key)
            places.setdefault(number, []).append(place)
    by_leader: dict[str | None, list[Group]] = {}
    for number, of_partition in sorted(places.items()):
        groups = by_leader.setdefault(topic.partitions[number].leader, [])
        groups += [Group(number, some) for some in _cut(records, of_partition)]
    return list(by_leader.values())


def _cut(
    records: Sequence[InputRecord | TailraceError], places: Sequence[int]
) -> Iterator[list[int]]:
    part: list[int] = []
    size_bytes = 0
    for place in places:
        record = records[place]
        assert isinstance(record, InputRecord)
        size = record_bytes(record) + OVERHEAD_BYTES
        if part and (size_bytes + size > BATCH_BYTES_MAX or len(part) == RECORDS_MAX):
            yield part
            part, size_bytes = [], 0
        part.append(place)
        size_bytes += size
    if part:
        yield part


async def _pack(
    topic: TopicMetadata,
    group: Group,
    records: Sequence[InputRecord | TailraceError],
    now_ms: int,
    request: _Request,
    outcomes: list[Outcome | None],
) -> None:
    """Put the group's batch into the request."""
    chosen = [records[place] for place in group.places]
    some = [one for one in chosen if isinstance(one, InputRecord)]
    try:
        entry = encode_batch(
            header_seed(topic.topic_id, group.partition),
            values=[one.value for one in some],
            keys=[one.key for one in some],
            timestamps=[now_ms if one.timestamp is None else one.timestamp for one in some],
            headers=[one.headers for one in some],
            compression="lz4",
        )
    except BatchError as error:
        refused = texts.batch_refused(topic.name, group.partition, reason=error.reason)
        _settle(group, refused, outcomes)
        return
    request.groups.append(group)
    request.parts.append(ProducePartition(topic.topic_id, group.partition, len(entry)))
    request.body += entry
    await trio.lowlevel.checkpoint()


async def _send(
    gateway: Gateway,
    topic: TopicMetadata,
    request: _Request,
    acks: str,
    outcomes: list[Outcome | None],
) -> None:
    if not request.groups:
        return
    message = ProduceRequest(
        ACKS_ALL if acks == "all" else int(acks), TIMEOUT_MS, tuple(request.parts)
    )
    try:
        response, _ = await gateway.ask_leader(
            topic.name, request.groups[0].partition, message, ProduceResponse, bytes(request.body)
        )
    except TailraceError as error:
        for group in request.groups:
            _settle(group, error, outcomes)
        return
    for group, result in zip(request.groups, response.results, strict=True):
        _settle(group, result, outcomes)


def _settle(
    group: Group, result: ProduceResult | TailraceError, outcomes: list[Outcome | None]
) -> None:
    if isinstance(result, ProduceResult) and result.error is not None:
        result = from_wire(result.error)
    for index, place in enumerate(group.places):
        if isinstance(result, TailraceError):
            outcomes[place] = result
        else:
            outcomes[place] = Written(
                group.partition, result.base_offset + index, result.append_time
            )
