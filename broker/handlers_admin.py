"""Metadata and administration: what there is, where it is, and changing it."""

from collections.abc import Collection
from functools import partial

from tailrace.broker.call import Call, Later
from tailrace.broker.catalog import Topic
from tailrace.broker.cluster_status import leadership
from tailrace.broker.describing import (
    alive,
    describe,
    describe_broker,
    describe_cluster as describe_whole,
    describe_here,
    led_here,
    needs_others,
)
from tailrace.broker.limits import TOPICS_PER_REQUEST_MAX, check_count, check_each_once
from tailrace.broker.node import Node
from tailrace.protocol import texts
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import (
    AlterTopicRequest,
    BrokerAddress,
    CreateTopicRequest,
    DeleteTopicRequest,
    DeleteTopicResponse,
    DescribeClusterRequest,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    MetadataRequest,
    MetadataResponse,
    PartitionMetadata,
    Response,
    TopicMetadata,
    TopicResponse,
)

SIMILAR_FOR_MAX = 10  # missing topics of one request that get similar names: each costs a search


def check_names(names: Collection[str]) -> None:
    """At most so many topics in one request, each once: an answer may cost a broker's catalog."""
    check_count(len(names), TOPICS_PER_REQUEST_MAX, of="topics")
    check_each_once(names, kind="topic")


# ── where topics are ─────────────────────────────────────────────────────────────────────────


def metadata(node: Node, call: Call, request: MetadataRequest) -> Response | Later:
    """Topics by name, or all. What a producer misses is created, if that is allowed."""
    if request.topics is None:
        names = tuple(node.topics.catalog.names())
        return _metadata(node, call, request, names, {})
    check_names(request.topics)
    missing = [name for name in request.topics if node.topics.catalog.find(name) is None]
    if missing and (node.clustered or (request.auto_create and node.config.broker.auto_create)):
        return partial(_look_again, node, call, request, request.topics)
    return _metadata(node, call, request, request.topics, {})


async def _look_again(
    node: Node, call: Call, request: MetadataRequest, names: tuple[str, ...]
) -> Response:
    """For what is missing: another broker may have made it just now; else it may be made here."""
    outcomes: dict[str, bool | TailraceError] = {}
    failed = await _refresh(node)
    for name in names:
        if name in outcomes or node.topics.catalog.find(name) is not None:
            continue
        if request.auto_create and node.config.broker.auto_create:
            try:
                _, outcomes[name] = await node.topics.create(name, exist_ok=True)
            except TailraceError as error:
                outcomes[name] = error
        elif failed is not None:
            outcomes[name] = failed
    return _metadata(node, call, request, names, outcomes)


async def _refresh(node: Node) -> TailraceError | None:
    """Know what others did before now, or why that cannot be known: T100."""
    if not node.clustered:
        return None
    try:
        await node.latest.read()
    except TailraceError as error:
        return error
    return None


def _metadata(
    node: Node,
    call: Call,
    request: MetadataRequest,
    names: tuple[str, ...],
    outcomes: dict[str, bool | TailraceError],
) -> MetadataResponse:
    """``outcomes``: by name, whether it was created just now, or why it could not be."""
    found: list[TopicMetadata] = []
    missing = 0
    for name in names:
        outcome = outcomes.get(name, False)
        topic = node.topics.catalog.find(name)
        if isinstance(outcome, TailraceError):
            found.append(_no_topic(name, outcome))
        elif topic is not None:
            found.append(_topic_metadata(node, topic, created=outcome))
        else:
            missing += 1
            similar = node.topics.catalog.similar(name) if missing <= SIMILAR_FOR_MAX else ()
            error = texts.topic_not_found(
                name, similar=similar, auto_create_off=request.auto_create
            )
            found.append(_no_topic(name, error))
    view = node.views.view
    controller = node.broker_id if not node.clustered else view.controller
    return MetadataResponse(
        node.cluster_id, controller, tuple(_brokers(node, call.listener)), tuple(found)
    )


def _brokers(node: Node, listener: str) -> list[BrokerAddress]:
    """Every broker that has the listener by which the client came, and where that one is."""
    host, port = node.addresses[listener]
    mine = BrokerAddress(node.broker_id, host, port, node.config.broker.rack or None)
    others = (
        BrokerAddress(broker_id, at.host, at.port, one.rack)
        for broker_id, one in node.views.view.brokers.items()
        if broker_id != node.broker_id and (at := one.listeners.get(listener)) is not None
    )
    return sorted([mine, *others], key=lambda one: one.broker_id)


def _no_topic(name: str, error: TailraceError) -> TopicMetadata:
    return TopicMetadata(name, to_wire(error), b"", False, False, 0, "", ())


def _topic_metadata(node: Node, topic: Topic, *, created: bool) -> TopicMetadata:
    config = node.topics.config_of(topic)
    return TopicMetadata(
        name=topic.name,
        error=None,
        topic_id=topic.topic_id,
        internal=topic.internal,
        created=created,
        record_bytes_max=config.max_record_bytes,
        durability=config.durability,
        partitions=tuple(
            _partition_metadata(node, topic, number) for number in range(len(topic.partitions))
        ),
    )


def _partition_metadata(node: Node, topic: Topic, number: int) -> PartitionMetadata:
    """As the view has it. A leader that is not there, or does not serve, is none."""
    record = topic.partitions[number]
    here = led_here(node, topic, number)
    known = leadership(node.views.view, (topic.topic_id, number))
    if here is not None and here.leadership.leader_epoch >= known.leader_epoch:
        known = here.leadership
    leader = known.leader
    if leader is not None and not alive(node, leader):
        leader = None
    if leader == node.broker_id and here is None:
        leader = None
    return PartitionMetadata(
        partition=number,
        leader=leader,
        leader_epoch=known.leader_epoch,
        replicas=known.replicas or record.replicas,
        isr=known.isr if leader is not None else (),
        key_first=record.key_first,
        key_last=record.key_last,
    )


# ── changing topics ──────────────────────────────────────────────────────────────────────────


def create_topic(node: Node, call: Call, request: CreateTopicRequest) -> Later:
    async def work() -> Response:
        topic, _ = await node.topics.create(
            request.name,
            partitions=request.partitions,
            replicas=request.replicas,
            config={item.key: item.value for item in request.config},
            exist_ok=request.exist_ok,
        )
        (described,) = await describe(node, [topic])
        return TopicResponse(described)

    return work


def delete_topic(node: Node, call: Call, request: DeleteTopicRequest) -> Later:
    async def work() -> Response:
        return DeleteTopicResponse(await node.topics.delete(request.name))

    return work


def alter_topic(node: Node, call: Call, request: AlterTopicRequest) -> Later:
    async def work() -> Response:
        changes = {change.key: change.value for change in request.config}
        (described,) = await describe(node, [await node.topics.alter(request.name, changes)])
        return TopicResponse(described)

    return work


# ── describing ───────────────────────────────────────────────────────────────────────────────


def describe_topics(node: Node, call: Call, request: DescribeTopicsRequest) -> Response | Later:
    names, catalog = request.names, node.topics.catalog
    if names is None:
        names = tuple(catalog.names(internal=request.internal))
    else:
        check_names(names)
    found = [topic for topic in map(catalog.find, names) if topic is not None]
    if request.local:  # another broker asks, which may know of topics that are not known here yet
        return DescribeTopicsResponse(describe_here(node, found))
    missing = len(found) < len(names)
    if not (missing and node.clustered) and not needs_others(node, found):
        for name in names if missing else ():
            node.topics.find(name)  # T010
        return DescribeTopicsResponse(describe_here(node, found))

    async def work() -> Response:
        if missing and (failed := await _refresh(node)) is not None:
            raise failed
        return DescribeTopicsResponse(
            await describe(node, [node.topics.find(name) for name in names])
        )

    return work


def describe_cluster(node: Node, call: Call, request: DescribeClusterRequest) -> Response | Later:
    if request.local:
        return describe_broker(node, call.listener)

    async def work() -> Response:
        return await describe_whole(node, call.listener)

    return work
