"""Every request and response of protocol 1, a sentence per field (docs/wire_format.md).

A message is a frozen dataclass; its head on the wire is the positional msgpack array of its
fields (``codec.py`` derives that from the annotations). Rules:

- a field is only ever added at the end, in a new version of its api;
- record batches never stand in a head: a head says how many bytes of the body are whose;
- integers carry their range in the annotation and are refused outside of it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from tailrace.protocol.fields import (
    I8 as I8,
    I16 as I16,
    I32 as I32,
    I64 as I64,
    U64 as U64,
    Count as Count,
    IntRange as IntRange,
    Scalar as Scalar,
    WireError as WireError,
)
from tailrace.protocol.messages_admin import (
    AlterTopicRequest as AlterTopicRequest,
    BrokerDescription as BrokerDescription,
    CompactionDescription as CompactionDescription,
    ConfigChange as ConfigChange,
    ConfigEntry as ConfigEntry,
    ConfigItem as ConfigItem,
    CreateTopicRequest as CreateTopicRequest,
    DeleteRecordsRequest as DeleteRecordsRequest,
    DeleteRecordsResponse as DeleteRecordsResponse,
    DeleteTopicRequest as DeleteTopicRequest,
    DeleteTopicResponse as DeleteTopicResponse,
    DescribeClusterRequest as DescribeClusterRequest,
    DescribeClusterResponse as DescribeClusterResponse,
    DescribeTopicsRequest as DescribeTopicsRequest,
    DescribeTopicsResponse as DescribeTopicsResponse,
    EraseRequest as EraseRequest,
    ErasureResponse as ErasureResponse,
    ExplainRequest as ExplainRequest,
    ExplainResponse as ExplainResponse,
    GetErasureRequest as GetErasureRequest,
    PartitionDescription as PartitionDescription,
    RecordPosition as RecordPosition,
    ReplicaErasure as ReplicaErasure,
    StartOffset as StartOffset,
    TopicDescription as TopicDescription,
    TopicResponse as TopicResponse,
)
from tailrace.protocol.messages_cluster import (
    ConfirmedLeader as ConfirmedLeader,
    DescribeMovesRequest as DescribeMovesRequest,
    DescribeMovesResponse as DescribeMovesResponse,
    DescribeReplicasRequest as DescribeReplicasRequest,
    DescribeReplicasResponse as DescribeReplicasResponse,
    DrainBrokerRequest as DrainBrokerRequest,
    DrainBrokerResponse as DrainBrokerResponse,
    ElectLeadersRequest as ElectLeadersRequest,
    ElectLeadersResponse as ElectLeadersResponse,
    LeaderMove as LeaderMove,
    PartitionRange as PartitionRange,
    ReassignRequest as ReassignRequest,
    ReassignResponse as ReassignResponse,
    ReplicaDescription as ReplicaDescription,
    ReplicaMove as ReplicaMove,
)
from tailrace.protocol.messages_data import (
    ACKS_ALL as ACKS_ALL,
    OFFSET_EARLIEST as OFFSET_EARLIEST,
    OFFSET_LATEST as OFFSET_LATEST,
    READ_COMMITTED as READ_COMMITTED,
    READ_UNCOMMITTED as READ_UNCOMMITTED,
    FetchPartition as FetchPartition,
    FetchRequest as FetchRequest,
    FetchResponse as FetchResponse,
    FetchResult as FetchResult,
    InitProducerIdRequest as InitProducerIdRequest,
    InitProducerIdResponse as InitProducerIdResponse,
    ListOffsetsRequest as ListOffsetsRequest,
    ListOffsetsResponse as ListOffsetsResponse,
    OffsetFound as OffsetFound,
    OffsetQuery as OffsetQuery,
    ProducePartition as ProducePartition,
    ProduceRequest as ProduceRequest,
    ProduceResponse as ProduceResponse,
    ProduceResult as ProduceResult,
)
from tailrace.protocol.messages_group import (
    AWAY_EPOCH as AWAY_EPOCH,
    JOIN_EPOCH as JOIN_EPOCH,
    LEAVE_EPOCH as LEAVE_EPOCH,
    NO_EPOCH as NO_EPOCH,
    NO_MEMBER as NO_MEMBER,
    AssignedPartition as AssignedPartition,
    AssignedPartitionName as AssignedPartitionName,
    AssignedTopic as AssignedTopic,
    CommitOffsetsRequest as CommitOffsetsRequest,
    CommitOffsetsResponse as CommitOffsetsResponse,
    CommitPartition as CommitPartition,
    CommitResult as CommitResult,
    CommittedOffset as CommittedOffset,
    DeleteGroupRequest as DeleteGroupRequest,
    DeleteGroupResponse as DeleteGroupResponse,
    DescribeGroupRequest as DescribeGroupRequest,
    DescribeGroupResponse as DescribeGroupResponse,
    FetchOffsetsRequest as FetchOffsetsRequest,
    FetchOffsetsResponse as FetchOffsetsResponse,
    FindCoordinatorRequest as FindCoordinatorRequest,
    FindCoordinatorResponse as FindCoordinatorResponse,
    GroupSummary as GroupSummary,
    HeartbeatRequest as HeartbeatRequest,
    HeartbeatResponse as HeartbeatResponse,
    ListGroupsRequest as ListGroupsRequest,
    ListGroupsResponse as ListGroupsResponse,
    MemberDescription as MemberDescription,
    MovedPartitions as MovedPartitions,
    OffsetMove as OffsetMove,
    OffsetTarget as OffsetTarget,
    OwnedPartitions as OwnedPartitions,
    PartitionProgress as PartitionProgress,
    Rebalance as Rebalance,
    ResetOffsetsRequest as ResetOffsetsRequest,
    ResetOffsetsResponse as ResetOffsetsResponse,
)


class Api(IntEnum):
    """What a frame is about. A response carries its request's api, or ``ERROR``."""

    HELLO = 0
    METADATA = 1
    PRODUCE = 2
    FETCH = 3
    LIST_OFFSETS = 4
    INIT_PRODUCER_ID = 5
    CREATE_TOPIC = 6
    DELETE_TOPIC = 7
    ALTER_TOPIC = 8
    DESCRIBE_TOPICS = 9
    DESCRIBE_CLUSTER = 10
    DELETE_RECORDS = 11
    ERASE = 12
    GET_ERASURE = 13
    FIND_COORDINATOR = 14
    HEARTBEAT = 15
    COMMIT_OFFSETS = 16
    FETCH_OFFSETS = 17
    LIST_GROUPS = 18
    DESCRIBE_GROUP = 19
    RESET_OFFSETS = 20
    DELETE_GROUP = 21
    EXPLAIN = 22
    ELECT_LEADERS = 23
    REASSIGN = 24
    DRAIN_BROKER = 25
    DESCRIBE_MOVES = 26
    DESCRIBE_REPLICAS = 27
    ERROR = 0x7FFF


# ── 0 Hello ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ApiRange:
    """The versions of one api that the broker serves."""

    api: I16
    version_min: I16
    version_max: I16


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """The first frame of every connection."""

    protocol_min: I16  # oldest protocol the client speaks
    protocol_max: I16  # newest protocol the client speaks
    client_id: str  # 1-255 printable characters, for logs and quotas
    software: str  # name and version of the client, for the logs: "tailrace/0.1.0"
    cluster_id: str | None  # the cluster the client believes it talks to, or nil


@dataclass(frozen=True, slots=True)
class HelloResponse:
    """Who answers, what it can do, and the limits a client must keep."""

    protocol: I16  # the protocol chosen: the newest that both speak
    broker_id: str  # the broker's id in its cluster
    cluster_id: str  # the cluster's id
    software: str  # name and version of the broker
    apis: tuple[ApiRange, ...]  # every api that may be called
    request_bytes_max: Count  # the largest frame the broker takes
    fetch_bytes_max: Count  # the largest fetch answer it sends, save a single larger batch
    in_flight_max: Count  # requests one connection may have unanswered
    idle_ms: Count  # a connection silent for so long is closed


# ── 1 Metadata ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class MetadataRequest:
    """Where the partitions of some topics are."""

    topics: tuple[str, ...] | None  # names, or nil for all topics
    auto_create: bool  # a producer asks: create what is missing, if the broker allows that


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One broker, by the address of the listener the client came in by."""

    broker_id: str
    host: str
    port: Annotated[int, IntRange(0, 65535)]
    rack: str | None


@dataclass(frozen=True, slots=True)
class PartitionMetadata:
    """One partition of a topic."""

    partition: I32
    leader: str | None  # broker id, or nil while there is none
    leader_epoch: I32
    replicas: tuple[str, ...]
    isr: tuple[str, ...]
    key_first: U64  # the range of xxh3-64(key) the partition owns, inclusive
    key_last: U64


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """One topic, or the error that stands in its place."""

    name: str
    error: WireError | None  # if set, the fields below are empty
    topic_id: bytes  # 16 bytes, the topic's UUID
    internal: bool
    created: bool  # this very request created it
    record_bytes_max: Count  # max_record: the client checks before it buffers
    durability: str
    partitions: tuple[PartitionMetadata, ...]


@dataclass(frozen=True, slots=True)
class MetadataResponse:
    """Brokers and topics, as the answering broker knows them."""

    cluster_id: str
    controller: str | None
    brokers: tuple[BrokerAddress, ...]
    topics: tuple[TopicMetadata, ...]  # in the order asked, or sorted by name


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Stands in for a response when the request as a whole failed."""

    error: WireError


Request = (
    HelloRequest
    | MetadataRequest
    | ProduceRequest
    | FetchRequest
    | ListOffsetsRequest
    | InitProducerIdRequest
    | CreateTopicRequest
    | DeleteTopicRequest
    | AlterTopicRequest
    | DescribeTopicsRequest
    | DescribeClusterRequest
    | DeleteRecordsRequest
    | EraseRequest
    | GetErasureRequest
    | FindCoordinatorRequest
    | HeartbeatRequest
    | CommitOffsetsRequest
    | FetchOffsetsRequest
    | ListGroupsRequest
    | DescribeGroupRequest
    | ResetOffsetsRequest
    | DeleteGroupRequest
    | ExplainRequest
    | ElectLeadersRequest
    | ReassignRequest
    | DrainBrokerRequest
    | DescribeMovesRequest
    | DescribeReplicasRequest
)
Response = (
    HelloResponse
    | MetadataResponse
    | ProduceResponse
    | FetchResponse
    | ListOffsetsResponse
    | InitProducerIdResponse
    | TopicResponse
    | DeleteTopicResponse
    | DescribeTopicsResponse
    | DescribeClusterResponse
    | DeleteRecordsResponse
    | ErasureResponse
    | FindCoordinatorResponse
    | HeartbeatResponse
    | CommitOffsetsResponse
    | FetchOffsetsResponse
    | ListGroupsResponse
    | DescribeGroupResponse
    | ResetOffsetsResponse
    | DeleteGroupResponse
    | ExplainResponse
    | ElectLeadersResponse
    | ReassignResponse
    | DrainBrokerResponse
    | DescribeMovesResponse
    | DescribeReplicasResponse
    | ErrorResponse
)

REQUESTS: dict[Api, type[Request]] = {
    Api.HELLO: HelloRequest,
    Api.METADATA: MetadataRequest,
    Api.PRODUCE: ProduceRequest,
    Api.FETCH: FetchRequest,
    Api.LIST_OFFSETS: ListOffsetsRequest,
    Api.INIT_PRODUCER_ID: InitProducerIdRequest,
    Api.CREATE_TOPIC: CreateTopicRequest,
    Api.DELETE_TOPIC: DeleteTopicRequest,
    Api.ALTER_TOPIC: AlterTopicRequest,
    Api.DESCRIBE_TOPICS: DescribeTopicsRequest,
    Api.DESCRIBE_CLUSTER: DescribeClusterRequest,
    Api.DELETE_RECORDS: DeleteRecordsRequest,
    Api.ERASE: EraseRequest,
    Api.GET_ERASURE: GetErasureRequest,
    Api.FIND_COORDINATOR: FindCoordinatorRequest,
    Api.HEARTBEAT: HeartbeatRequest,
    Api.COMMIT_OFFSETS: CommitOffsetsRequest,
    Api.FETCH_OFFSETS: FetchOffsetsRequest,
    Api.LIST_GROUPS: ListGroupsRequest,
    Api.DESCRIBE_GROUP: DescribeGroupRequest,
    Api.RESET_OFFSETS: ResetOffsetsRequest,
    Api.DELETE_GROUP: DeleteGroupRequest,
    Api.EXPLAIN: ExplainRequest,
    Api.ELECT_LEADERS: ElectLeadersRequest,
    Api.REASSIGN: ReassignRequest,
    Api.DRAIN_BROKER: DrainBrokerRequest,
    Api.DESCRIBE_MOVES: DescribeMovesRequest,
    Api.DESCRIBE_REPLICAS: DescribeReplicasRequest,
}
RESPONSES: dict[Api, type[Response]] = {
    Api.HELLO: HelloResponse,
    Api.METADATA: MetadataResponse,
    Api.PRODUCE: ProduceResponse,
    Api.FETCH: FetchResponse,
    Api.LIST_OFFSETS: ListOffsetsResponse,
    Api.INIT_PRODUCER_ID: InitProducerIdResponse,
    Api.CREATE_TOPIC: TopicResponse,
    Api.DELETE_TOPIC: DeleteTopicResponse,
    Api.ALTER_TOPIC: TopicResponse,
    Api.DESCRIBE_TOPICS: DescribeTopicsResponse,
    Api.DESCRIBE_CLUSTER: DescribeClusterResponse,
    Api.DELETE_RECORDS: DeleteRecordsResponse,
    Api.ERASE: ErasureResponse,
    Api.GET_ERASURE: ErasureResponse,
    Api.FIND_COORDINATOR: FindCoordinatorResponse,
    Api.HEARTBEAT: HeartbeatResponse,
    Api.COMMIT_OFFSETS: CommitOffsetsResponse,
    Api.FETCH_OFFSETS: FetchOffsetsResponse,
    Api.LIST_GROUPS: ListGroupsResponse,
    Api.DESCRIBE_GROUP: DescribeGroupResponse,
    Api.RESET_OFFSETS: ResetOffsetsResponse,
    Api.DELETE_GROUP: DeleteGroupResponse,
    Api.EXPLAIN: ExplainResponse,
    Api.ELECT_LEADERS: ElectLeadersResponse,
    Api.REASSIGN: ReassignResponse,
    Api.DRAIN_BROKER: DrainBrokerResponse,
    Api.DESCRIBE_MOVES: DescribeMovesResponse,
    Api.DESCRIBE_REPLICAS: DescribeReplicasResponse,
    Api.ERROR: ErrorResponse,
}
VERSIONS: dict[Api, tuple[int, int]] = {api: (1, 1) for api in REQUESTS}
PROTOCOL = 1
