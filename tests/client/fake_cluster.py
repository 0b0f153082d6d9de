"""Brokers in memory that share their logs: leaders move, brokers die, and one may know less.

What is appended is replicated at once; what a broker says of the cluster is the view they share, or
an older one that it is stuck with (``stuck``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tailrace.client import asking, cluster, link, retry
from tailrace.client.client import Client
from tailrace.protocol import texts
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import (
    BrokerAddress,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
    InitProducerIdRequest,
    MetadataRequest,
    MetadataResponse,
    PartitionMetadata,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
    Response,
    TopicMetadata,
)
from tailrace.protocol.routing import even_ranges
from tests.client.fake_broker import FakeConnection, FakeNet, Topic
from tests.client.fetch_broker import FetchBroker
from tests.client.world import World

Place = tuple[bytes, int]
REFUSED = ConnectionRefusedError(111, "refused")


@dataclass(frozen=True)
class View:
    """What a broker knows: who is there, and who leads in which epoch."""

    brokers: tuple[str, ...]
    leaders: dict[Place, tuple[str | None, int]] = field(
        default_factory=dict[Place, tuple[str | None, int]]
    )


class ClusterBroker(FetchBroker):
    """One of them."""

    def __init__(self, together: "FakeCluster", broker_id: str) -> None:
        super().__init__()
        self.together = together
        self.broker_id = self.host = broker_id
        self.advertised = broker_id, 7400
        self.stuck: View | None = None  # what it believes for ever
        self.near: str | None = None  # whom it names to readers with a rack
        self.serves_readers = False  # as a follower
        self.metadata_asked = 0
        self.no_ids: TailraceError | None = None  # what it answers instead of a producer id

    @property
    def view(self) -> View:
        return self.stuck or self.together.view

    def kill(self) -> None:
        """Like SIGKILL: connections break, new ones are refused."""
        self.refusing = REFUSED
        self.parked.clear()
        self.disconnect(ConnectionResetError(104, "reset"))

    def start(self) -> None:
        self.refusing = None

    def leads(self, place: Place) -> bool:
        return self.view.leaders[place][0] == self.broker_id

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        message = request.message
        if isinstance(message, ProduceRequest) and not self.script:
            wrong = [self._wrong((one.topic_id, one.partition)) for one in message.partitions]
            if any(wrong):
                self.requests.append(request)
                self.produced.append(message)
                refused = [
                    ProduceResult(to_wire(error or _not_asked()), -1, -1, 0) for error in wrong
                ]
                connection.respond(request, ProduceResponse(tuple(refused)))
                return
        super().serve(connection, request)

    def _wrong(self, place: Place) -> TailraceError | None:
        if self.leads(place):
            return None
        name = self.together.names[place[0]]
        return texts.not_leader(name, place[1], broker=self.broker_id)

    def _outside(self, part: FetchPartition) -> TailraceError | None:
        place = part.topic_id, part.partition
        if not self.leads(place):
            return None if self.serves_readers else self._wrong(place)
        current = self.view.leaders[place][1]
        if part.leader_epoch not in (-1, current):
            name = self.together.names[part.topic_id]
            return texts.epoch_fenced(
                name, part.partition, yours=part.leader_epoch, current=current
            )
        return super()._outside(part)

    def _fetch(self, connection: FakeConnection, request: Incoming, message: FetchRequest) -> None:
        if self.near is None or message.rack is None or connection.ended:
            super()._fetch(connection, request, message)
            return
        results = tuple(
            FetchResult(one.topic_id, one.partition, None, 0, 0, 0, 0, 0, -1, -1, -1, self.near)
            for one in message.partitions
        )
        connection.respond(request, FetchResponse(results))

    def _answer(self, message: object) -> Response:
        own = self.together.answer(self.broker_id, message)
        if own is not None:
            return own
        if isinstance(message, InitProducerIdRequest) and self.no_ids is not None:
            raise self.no_ids
        if not isinstance(message, MetadataRequest):
            return super()._answer(message)
        self.metadata_asked += 1
        if self.metadata_script:
            raise self.metadata_script.popleft()
        names = tuple(self.topics) if message.topics is None else message.topics
        topics = tuple(self._metadata(name, message.auto_create) for name in names)
        brokers = tuple(BrokerAddress(one, one, 7400, None) for one in self.view.brokers)
        return MetadataResponse("cluster", self.broker_id, brokers, topics)

    def _metadata(self, name: str, auto_create: bool) -> TopicMetadata:
        created = name not in self.topics and auto_create and self.auto_create
        if created:
            self.together.create(name)
        if name not in self.topics:
            return super()._metadata(name, auto_create)
        topic = self.topics[name]
        partitions: list[PartitionMetadata] = []
        for number, (first, last) in enumerate(even_ranges(topic.partitions)):
            leader, epoch = self.view.leaders[topic.topic_id, number]
            isr = self.view.brokers
            partitions.append(PartitionMetadata(number, leader, epoch, isr, isr, first, last))
        limit = topic.record_bytes_max
        return TopicMetadata(
            name, None, topic.topic_id, False, created, limit, "fsync", tuple(partitions)
        )


def _not_asked() -> TailraceError:
    """For the other batches of a request that is refused as a whole."""
    return texts.commit_timeout("", 0, waited_s=0.0, offset=0)


class FakeCluster(World):
    """Brokers n1, n2 ... at hosts of their names; topics are led by the first of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, brokers: int = 3) -> None:
        super().__init__()
        for module, name, seconds in (
            *((retry, "FIRST_MAX_S", 0.002), (retry, "LIMIT_S", 0.01)),
            *((asking, "NEXT_S", 0.01), (cluster, "SLOW_S", 0.03), (link, "DIAL_S", 0.05)),
        ):
            monkeypatch.setattr(module, name, seconds)
        monkeypatch.setattr("tailrace.client.outlet.SLOW_S", 0.03)
        ids = [f"n{number}" for number in range(1, brokers + 1)]
        self.view = View(tuple(ids))
        # What a broker answers to a message, or raises; None: as ever.
        self.answer: Callable[[str, object], Response | None] = lambda broker_id, message: None
        self.names: dict[bytes, str] = {}
        self.brokers = {name: ClusterBroker(self, name) for name in ids}
        first = self.brokers["n1"]
        for one in self.brokers.values():  # what is replicated, at once
            one.topics, one.entries, one.starts = first.topics, first.entries, first.starts
            one.known = first.known
        self.broker = first
        self.net = FakeNet(*self.brokers.values())

    def client(self, url: str = "tailrace://n1,n2,n3", **options: Any) -> Client:
        return super().client(url, **options)

    def create(self, name: str, partitions: int = 1, leader: str = "n1") -> Topic:
        topic = self.brokers["n1"].create(name, partitions)
        self.names[topic.topic_id] = name
        for number in range(partitions):
            self.elect(topic, leader, number)
        return topic

    def elect(self, topic: Topic, leader: str | None, partition: int = 0) -> None:
        """In the next epoch, if it is somebody."""
        place = topic.topic_id, partition
        _, epoch = self.view.leaders.get(place, (None, 0))
        new = leader, epoch + (leader is not None)
        self.view = replace(self.view, leaders={**self.view.leaders, place: new})

    def leave(self, broker_id: str) -> None:
        """Its lease ends: nobody lists it any more."""
        left = tuple(one for one in self.view.brokers if one != broker_id)
        self.view = replace(self.view, brokers=left)

    def come(self, broker_id: str) -> None:
        self.view = replace(self.view, brokers=(*self.view.brokers, broker_id))

    def append(self, topic: Topic, *values: bytes, partition: int = 0) -> None:
        """One batch, at the leader."""
        self.brokers["n1"].append(topic, list(values), partition)
        for one in self.brokers.values():
            one.wake()
