"""Removing records: log starts that move up, and erasures."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from tailrace.broker.call import Call, Later
from tailrace.broker.catalog import Topic, check_not_internal
from tailrace.broker.describing import describe, newest
from tailrace.broker.erasure import KEYS_MAX, RECORDS_MAX, Erasure, fingerprint_of, shares_of
from tailrace.broker.limits import POLL_WAIT_MS_MAX, check_each_once
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.protocol import texts, texts_wire
from tailrace.protocol.errors import BrokerError, NotLeader
from tailrace.protocol.messages import (
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    EraseRequest,
    GetErasureRequest,
    Response,
    StartOffset,
)
from tailrace.storage.disk import NO_ROOM
from tailrace.storage.erasure import KeyDigest, digest_of

log = logging.getLogger("tailrace.broker.handlers")

HIGH_WATERMARK = -1  # in DeleteRecords
ID_BYTES = 16


# ── log starts ───────────────────────────────────────────────────────────────────────────────


def delete_records(node: Node, call: Call, request: DeleteRecordsRequest) -> Later:
    check_not_internal(request.topic)
    check_each_once([one.partition for one in request.partitions], kind="partition")

    async def work() -> Response:
        topic = await newest(node, request.topic)
        starts = [_new_start(node, topic, one) for one in request.partitions]
        for partition, offset in starts:
            await _move_start(node, partition, offset)
        found = (StartOffset(one.number, one.log.start) for one, _ in starts)
        return DeleteRecordsResponse(tuple(found))

    return work


def _new_start(node: Node, topic: Topic, asked: StartOffset) -> tuple[Partition, int]:
    """Where a log shall begin. T011, T032, T033, T041."""
    partition = node.shelf.serving(topic.topic_id, asked.partition)
    high_watermark = partition.high_watermark
    offset = high_watermark if asked.offset == HIGH_WATERMARK else asked.offset
    if not 0 <= offset <= high_watermark:
        raise texts.position_out_of_range(
            *(topic.name, asked.partition),
            requested=offset,
            start=partition.log.start,
            end=high_watermark,
        )
    return partition, offset


async def _move_start(node: Node, partition: Partition, offset: int) -> None:
    """Durably; what lies wholly below is removed, what else does leaves the disk soon after."""
    async with partition.maintenance:
        try:
            if offset > partition.log.flushed:  # durability "os": ahead of every sync
                await node.flusher.flush([partition])
            if partition.offline is not None:
                raise partition.offline
            await _trim(node, partition, offset)
        except BrokerError as error:  # T093: an answer to one client is not enough
            node.flusher.broke(error)
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise node.shelf.ran_out(partition, error) from error
            raise partition.unreadable(error) from error
    node.erasures.asked.ring()


async def _trim(node: Node, partition: Partition, offset: int) -> None:
    job = partition.log.trim(offset, exact=True)
    if job is None:
        return
    await node.world.offload.run(job.publish)
    partition.log.trimmed(job)
    try:
        await node.world.offload.run(job.finish)
    except OSError as error:  # the records are gone; the files go with the next pass
        log.warning(
            "files of %s[%d] below its start could not be removed, trying again: %s",
            *(partition.topic, partition.number, error),
            extra={"event": "retention.failed", "code": None, "topic": partition.topic},
        )


# ── erasures ─────────────────────────────────────────────────────────────────────────────────


def erase(node: Node, call: Call, request: EraseRequest) -> Later:
    check_not_internal(request.topic)
    wanted = len(request.keys) + len(request.records)
    if not wanted or len(request.keys) > KEYS_MAX or len(request.records) > RECORDS_MAX:
        raise texts_wire.malformed_frame(
            f"{len(request.keys)} keys and {len(request.records)} records to erase; "
            f"1 to {KEYS_MAX} and {RECORDS_MAX} are allowed"
        )
    if len(request.erasure_id) != ID_BYTES:
        raise texts_wire.malformed_frame(f"an erasure id of {len(request.erasure_id)} bytes")

    async def work() -> Response:
        topic = await newest(node, request.topic)
        keys = tuple(map(digest_of, sorted(set(request.keys))))
        records = [(one.partition, one.offset) for one in request.records]
        fingerprint = fingerprint_of(keys, records)
        known = node.erasures.known(topic.topic_id, request.erasure_id, fingerprint)
        if known is None:
            ends = await _ends(node, topic, request)
            erasure = replace(_erasure(node, topic, request, keys, ends), fingerprint=fingerprint)
            known = await node.erasures.ask(erasure)
        return known.receipt(node.replicas_of)

    return work


async def _ends(node: Node, topic: Topic, request: EraseRequest) -> dict[int, tuple[int, int]]:
    """Where the logs begin and end that are concerned, by partition. T011, T033, T034."""
    for record in request.records:
        if record.partition >= len(topic.partitions):
            raise texts.partition_not_found(
                topic.name, record.partition, partitions=len(topic.partitions)
            )
    numbers = [
        number
        for number in range(len(topic.partitions))
        if request.keys or any(one.partition == number for one in request.records)
    ]
    ends: dict[int, tuple[int, int]] = {}
    elsewhere: list[int] = []
    for number in numbers:
        try:
            log_ = node.shelf.serving(topic.topic_id, number).log
        except NotLeader:
            elsewhere.append(number)
        else:
            ends[number] = (log_.start, log_.end)
    if elsewhere:
        (described,) = await describe(node, [topic])
        for number in elsewhere:
            one = described.partitions[number]
            if one.log_end < 0:
                raise texts.partition_offline(
                    topic.name, number, reason="its leader is not known, or does not answer"
                )
            ends[number] = (one.log_start, one.log_end)
    return ends


def _erasure(
    node: Node,
    topic: Topic,
    request: EraseRequest,
    keys: tuple[KeyDigest, ...],
    logs: Mapping[int, tuple[int, int]],
) -> Erasure:
    """The request as of now. ``logs``: where they begin and end. T041."""
    ends = {number: end for number, (_, end) in sorted(logs.items())}
    for record in request.records:
        start, end = logs[record.partition]
        if not start <= record.offset < end:
            raise texts.position_out_of_range(
                *(topic.name, record.partition), requested=record.offset, start=start, end=end
            )
    return Erasure(
        erasure_id=request.erasure_id,
        topic_id=topic.topic_id,
        topic=topic.name,
        requested_at=node.world.clock.wall_ms(),
        keys=keys,
        shares=shares_of(
            ends, [(one.partition, one.offset) for one in request.records], keys=bool(request.keys)
        ),
    )


def get_erasure(node: Node, call: Call, request: GetErasureRequest) -> Response | Later:
    topic = node.topics.catalog.find(request.topic)
    found = None if topic is None else node.erasures.get(topic.topic_id, request.erasure_id)
    if found is None and not node.clustered:
        found = node.erasures.find(node.topics.find(request.topic), request.erasure_id)
    if found is not None and (found.completed_at is not None or not request.wait_ms):
        return found.receipt(node.replicas_of)

    async def work() -> Response:
        topic = await newest(node, request.topic)
        if node.erasures.get(topic.topic_id, request.erasure_id) is None:
            await node.erasures.refresh()  # another broker took it on just now, perhaps
        found = node.erasures.find(topic, request.erasure_id)
        await node.erasures.wait(found, min(request.wait_ms, POLL_WAIT_MS_MAX) / 1000)
        return node.erasures.find(topic, request.erasure_id).receipt(node.replicas_of)

    return work
