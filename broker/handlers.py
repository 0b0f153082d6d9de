"""What each request does: the table, and the handlers that answer at once.

A handler returns its response; or nothing, if the answer follows later (produce, fetch); or work
for a task of its own, if it must wait for the metadata store. A TailraceError it raises is the
answer; a ConnectError among them ends the connection.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from tailrace.broker import (
    handlers_admin as admin,
    handlers_cluster as cluster,
    handlers_explain,
    handlers_groups as groups,
    handlers_records as records,
)
from tailrace.broker.call import Call, Later
from tailrace.broker.copying import fetch
from tailrace.broker.fetch import check_isolation
from tailrace.broker.limits import (
    IN_FLIGHT_MAX,
    PARTITIONS_PER_REQUEST_MAX,
    check_count,
    is_id,
)
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.broker.produce import produce
from tailrace.protocol import texts, texts_wire
from tailrace.protocol.connection import SERVED
from tailrace.protocol.errors import ConnectError, TailraceError, to_wire
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    OFFSET_LATEST,
    PROTOCOL,
    Api,
    HelloRequest,
    HelloResponse,
    InitProducerIdRequest,
    InitProducerIdResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetFound,
    OffsetQuery,
    Response,
)


def take_up(node: Node, call: Call) -> None:
    """Do what was asked: answer now, later, or with an error. ConnectError: close."""
    try:
        outcome = HANDLERS[call.incoming.api](node, call, call.incoming.message)
    except ConnectError:
        raise
    except TailraceError as error:
        call.fail(error)
        return
    if callable(outcome):
        work: Later = outcome

        async def go_on() -> None:
            call.answer(await work())

        call.spawn(go_on)
    elif outcome is not None:
        call.answer(outcome)


def hello(node: Node, call: Call, request: HelloRequest) -> Response:
    if not is_id(request.client_id):
        raise texts.invalid_id("client id", request.client_id)
    call.greeted(request.client_id)
    limits = node.config.limits
    return HelloResponse(
        protocol=PROTOCOL,
        broker_id=node.broker_id,
        cluster_id=node.cluster_id,
        software=node.software,
        apis=SERVED,
        request_bytes_max=limits.request_size_bytes,
        fetch_bytes_max=limits.fetch_size_bytes,
        in_flight_max=IN_FLIGHT_MAX,
        idle_ms=int(limits.idle_connection_s * 1000),
    )


def list_offsets(node: Node, call: Call, request: ListOffsetsRequest) -> Response | Later:
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="partitions")
    check_isolation(request.isolation)
    if any(_unverified(node, query) for query in request.partitions):
        return partial(_verify_and_list, node, request)
    return _list_offsets(node, request)


async def _verify_and_list(node: Node, request: ListOffsetsRequest) -> Response:
    for query in request.partitions:
        while (found := _unverified(node, query)) is not None:
            partition, offset = found
            try:
                await partition.verify(offset, node.world.offload)
            except OSError as error:
                raise partition.unreadable(error) from error
    return _list_offsets(node, request)


def _unverified(node: Node, query: OffsetQuery) -> tuple[Partition, int] | None:
    """What must be verified in a thread before the log is searched by time (R24)."""
    partition = node.shelf.get(query.topic_id, query.partition)
    if query.time < 0 or partition is None or not partition.serving:
        return None
    offset = partition.log.doubtful_for_time(query.time)
    return None if offset is None else (partition, offset)


def _list_offsets(node: Node, request: ListOffsetsRequest) -> Response:
    return ListOffsetsResponse(tuple(_find_offset(node, query) for query in request.partitions))


def _find_offset(node: Node, query: OffsetQuery) -> OffsetFound:
    where = query.topic_id, query.partition
    try:
        partition = node.shelf.serving(*where)
        node.session.check()  # others may lead by now, and have more (R14)
    except TailraceError as error:
        return OffsetFound(*where, to_wire(error), -1, -1, -1)
    end = partition.high_watermark
    epoch = partition.leadership.leader_epoch
    if query.time == OFFSET_EARLIEST:
        return OffsetFound(*where, None, partition.log.start, -1, epoch)
    if query.time != OFFSET_LATEST:
        try:
            found = partition.log.offset_for_time(query.time, end)
        except OSError as error:
            return OffsetFound(*where, to_wire(partition.unreadable(error)), -1, -1, -1)
        if found is not None:
            return OffsetFound(*where, None, *found, epoch)
    if partition.shown_high_watermark is None:
        return OffsetFound(*where, to_wire(partition.offset_not_available()), -1, -1, -1)
    return OffsetFound(*where, None, end, -1, epoch)


def init_producer_id(node: Node, call: Call, request: InitProducerIdRequest) -> Response | Later:
    if request.transactional_id is not None:
        raise texts_wire.malformed_frame("transactional_id must be nil: transactions come later")
    taken = node.producer_ids.take_now()
    if taken is not None:
        return InitProducerIdResponse(taken, 0)

    async def take() -> Response:
        return InitProducerIdResponse(await node.producer_ids.take(), 0)

    return take


Handler = Callable[[Node, Call, Any], "Response | Later | None"]
HANDLERS: dict[Api, Handler] = {
    Api.HELLO: hello,
    Api.METADATA: admin.metadata,
    Api.PRODUCE: produce,
    Api.FETCH: fetch,
    Api.LIST_OFFSETS: list_offsets,
    Api.INIT_PRODUCER_ID: init_producer_id,
    Api.CREATE_TOPIC: admin.create_topic,
    Api.DELETE_TOPIC: admin.delete_topic,
    Api.ALTER_TOPIC: admin.alter_topic,
    Api.DESCRIBE_TOPICS: admin.describe_topics,
    Api.DESCRIBE_CLUSTER: admin.describe_cluster,
    Api.DELETE_RECORDS: records.delete_records,
    Api.ERASE: records.erase,
    Api.GET_ERASURE: records.get_erasure,
    Api.FIND_COORDINATOR: groups.find_coordinator,
    Api.HEARTBEAT: groups.heartbeat,
    Api.COMMIT_OFFSETS: groups.commit_offsets,
    Api.FETCH_OFFSETS: groups.fetch_offsets,
    Api.LIST_GROUPS: groups.list_groups,
    Api.DESCRIBE_GROUP: groups.describe_group,
    Api.RESET_OFFSETS: groups.reset_offsets,
    Api.DELETE_GROUP: groups.delete_group,
    Api.EXPLAIN: handlers_explain.explain,
    Api.ELECT_LEADERS: cluster.elect_leaders,
    Api.REASSIGN: cluster.reassign,
    Api.DRAIN_BROKER: cluster.drain_broker,
    Api.DESCRIBE_MOVES: cluster.describe_moves,
    Api.DESCRIBE_REPLICAS: cluster.describe_replicas,
}
