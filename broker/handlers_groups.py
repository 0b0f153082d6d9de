"""Consumer groups: where they are, their members, what they have committed."""

from collections.abc import Callable, Iterable

from tailrace.broker.asking import ask_brokers
from tailrace.broker.call import Call, Later
from tailrace.broker.catalog import Topic
from tailrace.broker.cluster_status import leadership
from tailrace.broker.coordinator import OFFSETS
from tailrace.broker.describing import alive, describe
from tailrace.broker.group_members import Who
from tailrace.broker.limits import (
    PARTITIONS_PER_REQUEST_MAX,
    check_count,
    check_each_once,
    is_id,
)
from tailrace.broker.node import Node
from tailrace.protocol import texts, texts_group, texts_wire
from tailrace.protocol.errors import NotLeader, TailraceError
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
    ListGroupsResponse,
    OffsetMove,
    OffsetTarget,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
    Response,
    TopicDescription,
)


def find_coordinator(node: Node, call: Call, request: FindCoordinatorRequest) -> Later:
    check_group(request.group)

    async def work() -> Response:
        partition = await node.groups.find(request.group)
        return FindCoordinatorResponse(_coordinator(node, request.group, partition), partition)

    return work


def _coordinator(node: Node, group: str, number: int) -> str:
    """The broker that leads a partition of ``__offsets``. T036 while there is none."""
    offsets = node.topics.find(OFFSETS)
    leader = leadership(node.views.view, (offsets.topic_id, number)).leader
    gone = leader is None or not alive(node, leader)
    if leader is None or gone or (leader == node.broker_id and not node.session.valid()):
        raise texts_group.coordinator_missing(
            group, partition=texts.partition_name(OFFSETS, number)
        )
    return leader


def _known(node: Node, work: Callable[[], Response]) -> Response | Later:
    """Answer, or do so as soon as it is sure that there are groups, or none (S25)."""
    if node.groups.exists or not node.clustered:
        return work()

    async def later() -> Response:
        await node.latest.read()
        return work()

    return later


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


def fetch_offsets(node: Node, call: Call, request: FetchOffsetsRequest) -> Response | Later:
    check_group(request.group)
    if request.partitions is not None:
        _check_partitions(
            (topic.topic_id, number) for topic in request.partitions for number in topic.partitions
        )
    return _known(node, lambda: node.groups.fetch(request))


def reset_offsets(node: Node, call: Call, request: ResetOffsetsRequest) -> Response | None:
    """All of them are moved, or none."""
    check_group(request.group)
    _check_partitions((one.topic_id, one.partition) for one in request.targets)
    group = node.groups.get(request.group)
    group.check_empty()
    elsewhere: dict[bytes, Topic] = {}
    for one in request.targets:
        try:
            partition = node.shelf.serving(one.topic_id, one.partition)
        except NotLeader:
            elsewhere[one.topic_id] = node.topics.catalog.by_id[one.topic_id]
        else:
            _check_target(partition.topic, one, partition.log.start, partition.high_watermark)
    if not elsewhere:
        return _reset(node, call, request)

    async def work() -> None:
        for topic in await describe(node, list(elsewhere.values())):
            for one in request.targets:
                if one.topic_id == topic.topic_id:
                    _check_described(topic, one)
        response = _reset(node, call, request)
        if response is not None:
            call.answer(response)

    call.spawn(work)
    return None


def _reset(node: Node, call: Call, request: ResetOffsetsRequest) -> Response | None:
    """Targets were looked at; nothing is answered yet if this is to be written. T032 T036 T043
    T044."""
    group, by_id = node.groups.get(request.group), node.topics.catalog.by_id
    group.check_empty()
    moves: list[OffsetMove] = []
    for one in request.targets:
        committed = group.offsets.get((one.topic_id, one.partition))
        before = None if committed is None else committed.offset
        if one.topic_id not in by_id:
            raise texts.topic_id_not_found(one.topic_id, broker=node.broker_id)
        moves.append(OffsetMove(by_id[one.topic_id].name, one.partition, before, one.offset))
    response = ResetOffsetsResponse(tuple(moves))
    if request.dry_run:
        return response
    targets = {(one.topic_id, one.partition): one.offset for one in request.targets}
    node.groups.reset(request.group, targets, _answering(call, response))
    return None


def _check_described(topic: TopicDescription, target: OffsetTarget) -> None:
    """Against what its leader says. T033, T041."""
    one = topic.partitions[target.partition]
    if one.log_end < 0:
        reason = "its leader is not known, or does not answer"
        raise texts.partition_offline(topic.name, target.partition, reason=reason)
    _check_target(topic.name, target, one.log_start, one.high_watermark)


def _check_target(topic: str, target: OffsetTarget, start: int, end: int) -> None:
    """T041."""
    if not start <= target.offset <= end:
        raise texts.position_out_of_range(
            *(topic, target.partition), requested=target.offset, start=start, end=end
        )


# ── groups ───────────────────────────────────────────────────────────────────────────────────


def delete_group(node: Node, call: Call, request: DeleteGroupRequest) -> None:
    check_group(request.group)
    node.groups.delete(request.group, _answering(call, DeleteGroupResponse()))


def list_groups(node: Node, call: Call, request: ListGroupsRequest) -> Later:
    """Those of all coordinators; a list that lacks some would be wrong. T036."""

    async def work() -> Response:
        if node.clustered and not node.groups.exists:
            await node.latest.read()
        node.groups.check_loaded()
        mine = await node.lag.list_groups(node.groups.all())
        if request.local or not node.clustered:
            return mine
        return await _with_others(node, mine)

    return work


async def _with_others(node: Node, mine: ListGroupsResponse) -> ListGroupsResponse:
    view = node.views.view
    offsets = view.catalog.find(OFFSETS)
    if offsets is None:
        return mine
    leaders = {
        leadership(view, (offsets.topic_id, number)).leader
        for number in range(len(offsets.partitions))
    }
    others = sorted(one for one in leaders if one is not None and one != node.broker_id)
    if None in leaders:
        raise texts_group.coordinators_missing([])
    answers = await ask_brokers(
        *(node.peers, view, node.config.cluster.peer_listener),
        dict.fromkeys(others, ListGroupsRequest(local=True)),
        ListGroupsResponse,
    )
    silent = [one for one in others if one not in answers]
    if silent:
        raise texts_group.coordinators_missing(silent)
    found = {one.name: one for answer in (*answers.values(), mine) for one in answer.groups}
    return ListGroupsResponse(tuple(one for _, one in sorted(found.items())))


def describe_group(node: Node, call: Call, request: DescribeGroupRequest) -> Later:
    check_group(request.group)

    async def work() -> Response:
        if node.clustered and not node.groups.exists:
            await node.latest.read()
        group = node.groups.get(request.group)
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
