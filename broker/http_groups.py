"""Consumer groups over HTTP."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from tailrace.broker.http_endpoint import (
    LIST_PARAMETERS,
    PARTITION_MAX,
    Body,
    Context,
    Endpoint,
    Number,
    Parameter,
    Reply,
    page,
)
from tailrace.broker.limits import PARTITIONS_PER_REQUEST_MAX
from tailrace.protocol import shaping
from tailrace.protocol.messages import (
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeGroupRequest,
    DescribeGroupResponse,
    ListGroupsRequest,
    ListGroupsResponse,
    OffsetTarget,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
)
from tailrace.protocol.shapes import GroupDetail, GroupInfo, GroupLag, OffsetChange, to_json

GROUPS = "/api/v1/groups"
GROUP = f"{GROUPS}/{{group}}"
GROUP_NAME = Parameter("group", "The group's name.", required=True, example="billing")


@dataclass(frozen=True)
class GroupList:
    """A part of all groups, sorted by name."""

    groups: list[GroupInfo]
    next: str | None  # to be asked for with ``after``; null: there are no more


@dataclass(frozen=True)
class OffsetChanges:
    """What a reset changed, or would change."""

    changes: list[OffsetChange]
    applied: bool


class NewOffset(Struct, forbid_unknown_fields=True):
    """The next offset to read of one partition."""

    topic: str
    partition: Annotated[int, Meta(ge=0, le=PARTITION_MAX)]
    offset: Number


class NewOffsets(Struct, forbid_unknown_fields=True):
    """Where a group shall go on; all of it or none. ``dry_run``: only say what would change."""

    offsets: Annotated[list[NewOffset], Meta(max_length=PARTITIONS_PER_REQUEST_MAX)]
    dry_run: bool = False


async def list_groups(context: Context) -> Reply:
    groups = (await context.gateway.ask(ListGroupsRequest(), ListGroupsResponse)).groups
    first, end, following = page([one.name for one in groups], context.values)
    return Reply(GroupList([shaping.group_info(one) for one in groups[first:end]], following))


async def get_group(context: Context) -> Reply:
    # The one shape with TopicPartitions, which are tuples, and objects in JSON.
    return Reply(to_json(shaping.group_detail(await _describe(context))))


async def get_group_lag(context: Context) -> Reply:
    return Reply(shaping.group_lag(await _describe(context)))


async def _describe(context: Context) -> DescribeGroupResponse:
    group = context.values["group"]
    return await context.gateway.ask_group(
        group, DescribeGroupRequest(group), DescribeGroupResponse
    )


async def put_offsets(context: Context) -> Reply:
    new: NewOffsets = context.document
    gateway, group = context.gateway, context.values["group"]
    topics = {name: await gateway.topic(name) for name in {one.topic for one in new.offsets}}
    targets = tuple(
        OffsetTarget(topics[one.topic].topic_id, one.partition, one.offset) for one in new.offsets
    )
    request = ResetOffsetsRequest(group, targets, new.dry_run)
    response = await gateway.ask_group(group, request, ResetOffsetsResponse)
    starts = await gateway.log_starts(
        [(topics[move.topic], move.partition) for move in response.moves]
    )
    return Reply(
        OffsetChanges(shaping.offset_changes(response.moves, starts), applied=not new.dry_run)
    )


async def delete_group(context: Context) -> Reply:
    group = context.values["group"]
    await context.gateway.ask_group(group, DeleteGroupRequest(group), DeleteGroupResponse)
    return Reply(status=204)


ENDPOINTS = (
    Endpoint(
        *("GET", GROUPS, "list_groups", "All consumer groups, sorted by name", list_groups),
        {200: GroupList},
        LIST_PARAMETERS,
    ),
    Endpoint(
        *("GET", GROUP, "get_group", "A group, its members and partitions", get_group),
        {200: GroupDetail},
        (GROUP_NAME,),
        errors=("T013", "T043"),
    ),
    Endpoint(
        *("GET", f"{GROUP}/lag", "get_group_lag", "How far behind it is", get_group_lag),
        {200: GroupLag},
        (GROUP_NAME,),
        errors=("T013", "T043"),
    ),
    Endpoint(
        *("PUT", f"{GROUP}/offsets", "put_offsets", "Move committed offsets", put_offsets),
        {200: OffsetChanges},
        (GROUP_NAME,),
        Body(NewOffsets),
        ("T010", "T011", "T013", "T041", "T043", "T044", "T031"),
    ),
    Endpoint(
        *("DELETE", GROUP, "delete_group", "Forget a group and its offsets", delete_group),
        {204: None},
        (GROUP_NAME,),
        errors=("T013", "T043", "T044", "T031"),
    ),
)
