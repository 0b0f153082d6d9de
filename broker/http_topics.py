"""Topics and their partitions over HTTP."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trio
from msgspec import Struct, field

from tailrace.broker.describing import list_here, needs_others
from tailrace.broker.gateway import Gateway
from tailrace.broker.http_endpoint import (
    LIST_PARAMETERS,
    PARTITION_MAX,
    Body,
    Context,
    Count,
    Endpoint,
    Parameter,
    Reply,
    Setting,
    page,
)
from tailrace.broker.topics import Topics
from tailrace.protocol import shaping, texts
from tailrace.protocol.config_items import config_changes, config_items
from tailrace.protocol.messages import (
    AlterTopicRequest,
    Api,
    CreateTopicRequest,
    DeleteTopicRequest,
    DeleteTopicResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    TopicDescription,
    TopicResponse,
)
from tailrace.protocol.shapes import PartitionInfo, TopicDetail, TopicInfo

TOPICS = "/api/v1/topics"
TOPIC = f"{TOPICS}/{{topic}}"
TOPIC_NAME = Parameter("topic", "The topic's name.", required=True, example="orders")
PARTITION = Parameter("partition", "Its number.", int, required=True, high=PARTITION_MAX)
PARTITIONS_AT_ONCE = 100  # described in one piece, some 3 ms
SETTING_ERRORS = ("T080", "T081", "T082", "T083", "T086")


@dataclass(frozen=True)
class TopicList:
    """A part of all topics, sorted by name."""

    topics: list[TopicInfo]
    next: str | None  # to be asked for with ``after``; null: there are no more


@dataclass(frozen=True)
class PartitionList:
    """Every partition of a topic."""

    partitions: list[PartitionInfo]


class NewTopic(Struct, forbid_unknown_fields=True):
    """A topic to be created; what is null or missing is as [topic] of the broker says."""

    name: str
    partitions: Count | None = None
    replicas: Count | None = None
    config: dict[str, Setting] = field(default_factory=dict[str, Setting])


class TopicChange(Struct, forbid_unknown_fields=True):
    """Settings of a topic; null takes one back to its default."""

    config: dict[str, Setting | None]


async def list_topics(context: Context) -> Reply:
    """Some at a time: a thousand at once would hold everybody up for as long as all of them."""
    topics = context.gateway.node.topics
    names = topics.catalog.names(internal=context.values["internal"])
    first, end, following = page(names, context.values)
    wanted, found = names[first:end], list[TopicInfo]()
    for few in _in_parts(topics, wanted):
        found += await _infos(context.gateway, few)
        if few[-1] != wanted[-1]:
            await context.gateway.node.flusher.give_way()
    return Reply(TopicList(found, following))


async def _infos(gateway: Gateway, names: tuple[str, ...]) -> list[TopicInfo]:
    """Of topics that are there."""
    node = gateway.node
    there = [topic for topic in map(node.topics.catalog.find, names) if topic is not None]
    if len(there) < len(names) or (node.clustered and needs_others(node, there)):
        response = await gateway.ask(DescribeTopicsRequest(names, True), DescribeTopicsResponse)
        return [shaping.topic_info(one) for one in response.topics]
    began = time.monotonic()
    found = list_here(node, there)
    node.count(Api.DESCRIBE_TOPICS, "ok", time.monotonic() - began)
    return found


def _in_parts(topics: Topics, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Names of topics that are there, when they are asked for, of some partitions together."""
    part: list[str] = []
    partitions = 0
    for name in names:
        topic = topics.catalog.find(name)
        if topic is None:
            continue  # it was deleted meanwhile
        part.append(name)
        partitions += len(topic.partitions)
        if partitions >= PARTITIONS_AT_ONCE:
            yield tuple(part)
            part, partitions = [], 0
    if part:
        yield tuple(part)


async def create_topic(context: Context) -> Reply:
    new: NewTopic = context.document
    items = config_items(new.config)
    request = CreateTopicRequest(new.name, new.partitions, new.replicas, items, False)
    response = await context.gateway.ask(request, TopicResponse)
    return Reply(shaping.topic_detail(response.topic), 201)


async def get_topic(context: Context) -> Reply:
    return Reply(shaping.topic_detail(await _describe(context)))


async def alter_topic(context: Context) -> Reply:
    change: TopicChange = context.document
    request = AlterTopicRequest(context.values["topic"], config_changes(change.config))
    response = await context.gateway.ask(request, TopicResponse)
    return Reply(shaping.topic_detail(response.topic))


async def delete_topic(context: Context) -> Reply:
    await context.gateway.ask(DeleteTopicRequest(context.values["topic"]), DeleteTopicResponse)
    return Reply(status=204)


async def list_partitions(context: Context) -> Reply:
    topic = await _describe(context)
    return Reply(PartitionList([shaping.partition_info(topic.name, p) for p in topic.partitions]))


async def get_partition(context: Context) -> Reply:
    topic = await _describe(context)
    number = context.values["partition"]
    for one in topic.partitions:
        if one.partition == number:
            return Reply(shaping.partition_info(topic.name, one))
    raise texts.partition_not_found(topic.name, number, partitions=len(topic.partitions))


async def _describe(context: Context) -> TopicDescription:
    request = DescribeTopicsRequest((context.values["topic"],), True)
    response = await context.gateway.ask(request, DescribeTopicsResponse)
    await trio.lowlevel.checkpoint()  # of 1,000 partitions this took 10 ms
    return response.topics[0]


ENDPOINTS = (
    Endpoint(
        *("GET", TOPICS, "list_topics", "All topics, sorted by name", list_topics),
        {200: TopicList},
        (
            *LIST_PARAMETERS,
            Parameter("internal", "Also those whose names begin with `__`.", bool, False),
        ),
    ),
    Endpoint(
        *("POST", TOPICS, "create_topic", "Create a topic", create_topic),
        {201: TopicDetail},
        body=Body(NewTopic),
        errors=("T012", "T013", *SETTING_ERRORS, "T100"),
    ),
    Endpoint(
        *("GET", TOPIC, "get_topic", "A topic, its settings and partitions", get_topic),
        {200: TopicDetail},
        (TOPIC_NAME,),
        errors=("T010",),
    ),
    Endpoint(
        *("PATCH", TOPIC, "alter_topic", "Change settings, all of them or none", alter_topic),
        {200: TopicDetail},
        (TOPIC_NAME,),
        Body(TopicChange),
        ("T010", "T013", *SETTING_ERRORS, "T100"),
    ),
    Endpoint(
        *("DELETE", TOPIC, "delete_topic", "Delete a topic and its records", delete_topic),
        {204: None},
        (TOPIC_NAME,),
        errors=("T010", "T013", "T033", "T100"),
    ),
    Endpoint(
        *("GET", f"{TOPIC}/partitions", "list_partitions", "Its partitions", list_partitions),
        {200: PartitionList},
        (TOPIC_NAME,),
        errors=("T010",),
    ),
    Endpoint(
        *("GET", f"{TOPIC}/partitions/{{partition}}", "get_partition", "One partition"),
        get_partition,
        {200: PartitionInfo},
        (TOPIC_NAME, PARTITION),
        errors=("T010", "T011"),
    ),
)
