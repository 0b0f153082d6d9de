"""The cluster, its brokers, the configuration and explanations over HTTP."""

from dataclasses import dataclass

from tailrace.broker.config_entries import ConfigSetting, settings_of
from tailrace.broker.http_endpoint import (
    PARTITION_MAX,
    Context,
    Endpoint,
    Parameter,
    Reply,
)
from tailrace.broker.http_errors import Refused
from tailrace.protocol import shaping, texts_http
from tailrace.protocol.errors import PartitionOffline
from tailrace.protocol.messages import (
    DescribeClusterRequest,
    DescribeClusterResponse,
    ExplainRequest,
    ExplainResponse,
)
from tailrace.protocol.shapes import BrokerInfo, ClusterHealth, ClusterInfo, Explanation

CLUSTER = "/api/v1/cluster"
BROKERS = "/api/v1/brokers"


@dataclass(frozen=True)
class BrokerList:
    """Every broker."""

    brokers: list[BrokerInfo]


@dataclass(frozen=True)
class Settings:
    """The effective configuration of the broker that answers; secrets are ``***``."""

    settings: list[ConfigSetting]


async def get_cluster(context: Context) -> Reply:
    return Reply(await _describe(context))


async def get_cluster_health(context: Context) -> Reply:
    return Reply(shaping.cluster_health(await _describe(context)))


async def list_brokers(context: Context) -> Reply:
    return Reply(BrokerList((await _describe(context)).brokers))


async def get_broker(context: Context) -> Reply:
    broker_id = context.values["id"]
    brokers = (await _describe(context)).brokers
    for broker in brokers:
        if broker.id == broker_id:
            return Reply(broker)
    raise Refused(404, texts_http.no_broker(broker_id, known=[one.id for one in brokers]))


async def _describe(context: Context) -> ClusterInfo:
    response = await context.gateway.ask(DescribeClusterRequest(), DescribeClusterResponse)
    return shaping.cluster_info(response)


async def get_config(context: Context) -> Reply:
    return Reply(Settings(settings_of(context.config.values)))


async def explain(context: Context) -> Reply:
    topic, partition = context.values["topic"], context.values["partition"]
    offset, group = context.values["offset"], context.values["group"]
    request = ExplainRequest(topic, partition, offset, group)
    gateway = context.gateway
    if topic is not None and partition is not None:
        try:
            response, _ = await gateway.ask_leader(topic, partition, request, ExplainResponse)
        except PartitionOffline:  # nobody leads it: any broker can say why
            response = await gateway.ask(request, ExplainResponse)
    elif group is not None:
        response = await gateway.ask_group(group, request, ExplainResponse)
    else:
        response = await gateway.ask(request, ExplainResponse)
    return Reply(shaping.explanation(response))


ENDPOINTS = (
    Endpoint(
        *("GET", CLUSTER, "get_cluster", "The cluster and its brokers", get_cluster),
        {200: ClusterInfo},
    ),
    Endpoint(
        *("GET", f"{CLUSTER}/health", "get_cluster_health", "Whether it is healthy"),
        get_cluster_health,
        {200: ClusterHealth},
    ),
    Endpoint(
        *("GET", BROKERS, "list_brokers", "Every broker", list_brokers),
        {200: BrokerList},
    ),
    Endpoint(
        *("GET", f"{BROKERS}/{{id}}", "get_broker", "One broker", get_broker),
        {200: BrokerInfo},
        (Parameter("id", "The broker's id.", required=True, example="n1"),),
        statuses=(404,),
    ),
    Endpoint(
        *("GET", "/api/v1/config", "get_config", "Every setting, and where it is set"),
        get_config,
        {200: Settings},
    ),
    Endpoint(
        *("GET", "/api/v1/explain", "explain", "Why something is as it is", explain),
        {200: Explanation},
        (
            Parameter("topic", "About a topic, or with the others about a part of it."),
            Parameter("partition", "Of the topic.", int, high=PARTITION_MAX),
            Parameter("offset", "Of a record in the partition.", int),
            Parameter("group", "Alone: about a group; else: as far as it reads the topic."),
        ),
        errors=("T010", "T011", "T013", "T043"),
    ),
)
