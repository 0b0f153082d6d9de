"""What the parts of one broker share: its identity, its partitions, its pace-makers.

Built by ``server.py``; connections and handlers get it whole. It decides nothing.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from tailrace.broker.appender import Appender
from tailrace.broker.bell import Bell
from tailrace.broker.cleaner import Cleaner
from tailrace.broker.clock import Timekeeper
from tailrace.broker.cluster_status import Sightings, leadership
from tailrace.broker.config import Config
from tailrace.broker.coordinator import Coordinator
from tailrace.broker.copiers import Copiers
from tailrace.broker.erasures import Erasures
from tailrace.broker.flusher import Flusher
from tailrace.broker.health import Health
from tailrace.broker.isr_keeper import IsrKeeper
from tailrace.broker.keeper import Keeper
from tailrace.broker.lag_report import LagReport
from tailrace.broker.latest import Latest
from tailrace.broker.limits import Admission, MemoryBudget
from tailrace.broker.metrics import Histogram, Metrics, Series
from tailrace.broker.peer import Peers
from tailrace.broker.producer_ids import ProducerIds
from tailrace.broker.registry import Registry
from tailrace.broker.replicator import Replicator
from tailrace.broker.session import Session
from tailrace.broker.shelf import Shelf
from tailrace.broker.timers import Timers
from tailrace.broker.topics import Topics
from tailrace.broker.views import Views
from tailrace.broker.world import World
from tailrace.protocol.bodies import Spares
from tailrace.protocol.messages import Api

if TYPE_CHECKING:
    from tailrace.broker.connection import Connection
    from tailrace.broker.copying import CopierSession
    from tailrace.broker.fetch import Fetch

log = logging.getLogger("tailrace.broker.node")

SLOW_S = 1.0
LONG_POLLS = (Api.FETCH, Api.GET_ERASURE, Api.HEARTBEAT)  # they may wait for what they are about
State = Literal["starting", "running", "read_only", "draining"]


class Outbox:
    """Connections that have answers to send. One flush per wake-up joins them."""

    def __init__(self) -> None:
        self._waiting: list[Connection] = []

    def add(self, connection: "Connection") -> None:
        self._waiting.append(connection)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()


@dataclass(eq=False)
class Node:
    """One running broker."""

    world: World
    config: Config
    metrics: Metrics
    broker_id: str
    cluster_id: str
    registry: Registry
    session: Session
    views: Views
    keeper: Keeper
    latest: Latest
    peers: Peers
    software: str  # name and version, for the handshake
    shelf: Shelf
    topics: Topics
    erasures: Erasures
    groups: Coordinator
    lag: LagReport
    producer_ids: ProducerIds
    appender: Appender
    flusher: Flusher
    cleaner: Cleaner
    timers: Timers
    time: Timekeeper
    outbox: Outbox
    memory: MemoryBudget
    admission: Admission
    state: Callable[[], State]
    health: Health
    addresses: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    http: str | None = None
    left: Bell = field(default_factory=Bell)  # rung when a connection has ended
    connections: "dict[Connection, None]" = field(default_factory=dict["Connection", None])
    parked: "dict[Fetch | CopierSession, None]" = field(  # long polls
        default_factory=dict["Fetch | CopierSession", None]
    )
    sightings: Sightings = field(default_factory=Sightings)  # of other brokers
    explaining: trio.Lock = field(default_factory=trio.Lock)  # one batch is opened at a time
    started_at: float = 0.0  # trio's time
    _counted: dict[tuple[Api, str], tuple[Series, Histogram]] = field(
        default_factory=dict[tuple[Api, str], tuple[Series, Histogram]]
    )

    def __post_init__(self) -> None:
        # What large requests lay in; ``memory`` has found room for all of one before it comes.
        self.spares = Spares(ahead_bytes=self.config.limits.request_size_bytes)
        self.copiers = Copiers(self.timers, self.outbox.flush)
        self.appender.appended = self.copiers.serve
        self.isr = IsrKeeper(self)
        self.replicator = Replicator(self)

    @property
    def broker_epoch(self) -> int:
        """Of the present registration (R6)."""
        return self.session.epoch

    @property
    def clustered(self) -> bool:
        """Whether other brokers may change what the store says."""
        return self.session.lease is not None or len(self.views.view.brokers) > 1

    def replicas_of(self, topic_id: bytes, partition: int) -> tuple[str, ...]:
        """Who holds a copy of a partition now, as far as is known here."""
        return leadership(self.views.view, (topic_id, partition)).replicas

    def count(self, api: Api, code: str, seconds: float) -> None:
        """One more request answered; ``code`` is "ok" or an error's."""
        if seconds > SLOW_S and api not in LONG_POLLS:
            log.warning(
                "%s took %.1f s (%s)",
                *(api.name.lower(), seconds, code),
                extra={
                    **{"event": "request.slow", "code": None if code == "ok" else code},
                    **{"api": api.name.lower(), "elapsed_ms": round(seconds * 1000)},
                },
            )
        counted = self._counted.get((api, code))
        if counted is None:
            name = api.name.lower()
            counted = (
                self.metrics.requests.of(name, code),
                self.metrics.request_duration.histogram(name),
            )
            self._counted[api, code] = counted
        counted[0].inc()
        counted[1].observe(seconds)
