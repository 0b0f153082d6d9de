"""Consumer groups: where they are, their members, what they have committed."""

from collections.abc import Awaitable, Callable

from tailrace.broker.call import Call
from tailrace.broker.coordinator import check_group
from tailrace.broker.node import Node
from tailrace.protocol import texts_group
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    DeleteGroupRequest,
    DescribeGroupRequest,
    FetchOffsetsRequest,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatRequest,
    ListGroupsRequest,
    ResetOffsetsRequest,
    Response,
)

Later = Callable[[], Awaitable[Response]]


def find_coordinator(node: Node, call: Call, request: FindCoordinatorRequest) -> Later:
    check_group(request.group)

    async def work() -> Response:
        partition = await node.groups.find(request.group)
        return FindCoordinatorResponse(node.broker_id, partition)

    return work


def loading(
    node: Node,
    call: Call,
    request: HeartbeatRequest
    | CommitOffsetsRequest
    | FetchOffsetsRequest
    | DescribeGroupRequest
    | ResetOffsetsRequest
    | DeleteGroupRequest,
) -> Response:
    check_group(request.group)
    raise texts_group.coordinator_loading(request.group, broker=node.broker_id)


def list_groups(node: Node, call: Call, request: ListGroupsRequest) -> Response:
    raise texts_group.coordinator_loading("", broker=node.broker_id)
