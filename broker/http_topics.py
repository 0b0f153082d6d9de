"""Topics over HTTP."""

from dataclasses import dataclass

from tailrace.broker.http_endpoint import (
    LIST_PARAMETERS,
    Context,
    Endpoint,
    Parameter,
    Reply,
    page,
)
from tailrace.protocol import shaping
from tailrace.protocol.messages import DescribeTopicsRequest, DescribeTopicsResponse
from tailrace.protocol.shapes import TopicInfo

TOPICS = "/api/v1/topics"


@dataclass(frozen=True)
class TopicList:
    """A part of all topics, sorted by name."""

    topics: list[TopicInfo]
    next: str | None  # to be asked for with ``after``; null: there are no more


async def list_topics(context: Context) -> Reply:
    request = DescribeTopicsRequest(None, context.values["internal"])
    response = await context.gateway.ask(request, DescribeTopicsResponse)
    topics = sorted(response.topics, key=lambda topic: topic.name)
    first, end, following = page([topic.name for topic in topics], context.values)
    return Reply(TopicList([shaping.topic_info(one) for one in topics[first:end]], following))


ENDPOINTS = (
    Endpoint(
        "GET",
        TOPICS,
        "list_topics",
        "All topics, sorted by name",
        list_topics,
        {200: TopicList},
        (
            *LIST_PARAMETERS,
            Parameter("internal", "Also those whose names begin with `__`.", bool, False),
        ),
    ),
)
