"""Consumer groups: where they are, their members, what they have committed."""

from collections.abc import Callable, Iterable

from tailrace.broker.call import Call, Later
from tailrace.broker.group_members import Who
from tailrace.broker.limits import (
    PARTITIONS_PER_REQUEST_MAX,
    check_count,
    check_each_once,
    is_id,
)
from tailrace.broker.node import Node
from tailrace.protocol import texts, texts_wire
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeGroupRequest,
    FetchOffsetsRequest,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatRequest,
    ListGroupsRequest,
    OffsetMove,
    OffsetTarget,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
    Response,
)


def find_coordinator(node: Node, call: Call, request: FindCoordinatorRequest) -> Later:
    check_group(request.group)

    async def work() -> Response:
        partition = await node.groups.find(request.group)
        return FindCoordinatorResponse(node.broker_id, partition)

    return work


# ── members ──────────────────────────────────────────────────────────────────────────────────


def heartbeat(node: Node, call: Call, request: HeartbeatRequest) -> None:
    """Held back until there is news for the member. How many topics, and what they are called,
    is for the group to refuse: T082 and T013 say it, a malformed frame would not."""
    check_group(request.group)
    for kind, name in (("member_id", request.member_id), ("instance_id", request.instance_id)):
        if name is not None and not is_id(name):
            raise texts_wire.malformed_frame(f"{kind} of {len(name)} characters")
    if list(request.topics) != sorted(set(request.topics)):
        raise texts_wire.malformed_frame("topics must be sorted, each named once")
    who = Who(call.hello.client_id, call.host, call.hello.software.rpartition("/")[2])
    _once_there(node, call, request.group, lambda: node.groups.heartbeat(call, request, who))


def commit_offsets(node: Node, call: Call, request: CommitOffsetsRequest) -> None:
    """Answered once it is durable."""
    check_group(request.group)
    _check_partitions((one.topic_id, one.partition) for one in request.partitions)
    _once_there(node, call, request.group, lambda: node.groups.commit(call, request))


def _once_there(node: Node, call: Call, group: str, work: Callable[[], None]) -> None:
    """Do it now, or as soon as there is an ``__offsets``."""
    if node.groups.exists:
        work()
        return

    async def first() -> None:
        await node.groups.find(group)
        work()

    call.spawn(first)


# ── offsets ──────────────────────────────────────────────────────────────────────────────────


def fetch_offsets(node: Node, call: Call, request: FetchOffsetsRequest) -> Response:
    check_group(request.group)
    if request.partitions is not None:
        _check_partitions(
            (topic.topic_id, number) for topic in request.partitions for number in topic.partitions
        )
    return node.groups.fetch(request)


def reset_offsets(node: Node, call: Call, request: ResetOffsetsRequest) -> Response | None:
    """All of them are moved, or none."""
    check_group(request.group)
    _check_partitions((one.topic_id, one.partition) for one in request.targets)
    group = node.groups.get(request.group)
    group.check_empty()
    moves: list[OffsetMove] = []
    for one in request.targets:
        topic = _check_target(node, one)
        committed = group.offsets.get((one.topic_id, one.partition))
        before = None if committed is None else committed.offset
        moves.append(OffsetMove(topic, one.partition, before, one.offset))
    response = ResetOffsetsResponse(tuple(moves))
    if request.dry_run:
        return response
    targets = {(one.topic_id, one.partition): one.offset for one in request.targets}
    node.groups.reset(request.group, targets, _answering(call, response))
    return None


def _check_target(node: Node, target: OffsetTarget) -> str:
    """The topic's name. T010, T011, T033, T041."""
    partition = node.shelf.serving(target.topic_id, target.partition)
    start, end = partition.log.start, partition.high_watermark
    if not start <= target.offset <= end:
        raise texts.position_out_of_range(
            *(partition.topic, partition.number),
            requested=target.offset,
            start=start,
            end=end,
        )
    return partition.topic


# ── groups ───────────────────────────────────────────────────────────────────────────────────


def delete_group(node: Node, call: Call, request: DeleteGroupRequest) -> None:
    check_group(request.group)
    node.groups.delete(request.group, _answering(call, DeleteGroupResponse()))


def list_groups(node: Node, call: Call, request: ListGroupsRequest) -> Later:
    node.groups.check_loaded()

    async def work() -> Response:
        return await node.lag.list_groups(node.groups.all())

    return work


def describe_group(node: Node, call: Call, request: DescribeGroupRequest) -> Later:
    check_group(request.group)
    group = node.groups.get(request.group)

    async def work() -> Response:
        return await node.lag.describe_group(group)

    return work


# ── how ──────────────────────────────────────────────────────────────────────────────────────


def check_group(name: str) -> None:
    """Raise T013 for a name no group may have."""
    if not is_id(name):
        raise texts.invalid_id("group", name)


def _check_partitions(partitions: Iterable[tuple[bytes, int]]) -> None:
    asked = list(partitions)
    check_count(len(asked), PARTITIONS_PER_REQUEST_MAX, of="partitions")
    check_each_once(asked, kind="partition")


def _answering(call: Call, response: Response) -> Callable[[TailraceError | None], None]:
    """Answers a call once it is known how it went."""

    def answered(error: TailraceError | None) -> None:
        if error is None:
            call.answer(response)
        else:
            call.fail(error)

    return answered
