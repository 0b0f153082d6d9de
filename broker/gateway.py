"""Any broker answers for the whole cluster: a request goes to whoever it concerns.

Used by the broker's own rooms that answer users (HTTP). What concerns this broker goes to its own
handlers (``local.py``), as if a client had asked; what concerns another one goes to it over one
connection (``peer.py``). Who that is, this broker's own metadata say. Where they turn out to be old
(a leader or coordinator has moved, or is not ready), or nobody is there, it is tried again until
``TIMEOUT_S`` have passed.
"""

import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from tailrace.broker.describing import led_here
from tailrace.broker.feeds import Feeds
from tailrace.broker.local import LocalCaller
from tailrace.broker.members import Peer
from tailrace.broker.node import Node
from tailrace.broker.peer import Lost, Peers
from tailrace.protocol import texts, texts_client
from tailrace.protocol.errors import INTERNAL, RequestTimeout, TailraceError, from_wire
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    READ_COMMITTED,
    DescribeGroupRequest,
    ExplainRequest,
    FetchRequest,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    ListGroupsRequest,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
    MetadataResponse,
    OffsetQuery,
    Request,
    Response,
    TopicMetadata,
)
from tailrace.protocol.units import counted

R = TypeVar("R", bound=Response)

TIMEOUT_S = 10.0
RETRY_S = 0.1
LEADERLESS_S = 2.0  # longer than an election takes; then it is offline
ANEW = INTERNAL | {"T001"}  # another attempt may go well, and nothing was done in this one
READS = (  # asked twice they do no harm: another attempt follows where an answer got lost
    *(DescribeGroupRequest, ExplainRequest, FetchRequest),
    *(ListGroupsRequest, ListOffsetsRequest),
)


class Gateway:
    """Every method raises the TailraceError that a client would get, RequestTimeout T034 where
    nobody answers in time. Cancelled: a change may still take effect."""

    def __init__(self, node: Node, peers: Peers, who: str = "http") -> None:
        self.node = node
        self._in_hand: dict[object, tuple[str, float]] = {}  # what, and when it began
        self.stopping = trio.Event()  # set by ``stop``: wait for nothing any more
        self._waiting: dict[trio.CancelScope, float] = {}  # and how long each may after a stop
        self.records = Feeds(self)
        self._peers = peers
        self._who = who
        self._random = node.world.rng("gateway")

    def new_uuid(self) -> uuid.UUID:
        """For what is named by whoever asks for it."""
        return uuid.UUID(int=self._random.getrandbits(128), version=4)

    @property
    def in_hand(self) -> int:
        """Requests of users, tails not counted."""
        return len(self._in_hand)

    @contextmanager
    def hand(self, what: str) -> Generator[None]:
        """While a user's request is in hand: a broker that stops answers it first."""
        key = object()
        self._in_hand[key] = what, trio.current_time()
        try:
            yield
        finally:
            del self._in_hand[key]
            self.node.left.ring()

    def open_requests(self) -> list[str]:
        """What is in hand, one line each, and how many tails there are."""
        now = trio.current_time()
        found = [f"{what} for {now - began:.1f} s" for what, began in self._in_hand.values()]
        tails = len(self.records.sessions)
        return [*found, counted(tails, "tail") + f" over {self._who}"] if tails else found

    def stop(self) -> None:
        """The broker stops: what is in hand is to end, and nobody waits for what may come."""
        self.stopping.set()
        for scope, grace_s in self._waiting.items():
            scope.deadline = min(scope.deadline, trio.current_time() + grace_s)

    @contextmanager
    def patience(self, grace_s: float = 0.0) -> Generator[trio.CancelScope]:
        """For what may take long and changes nothing: a stop ends it, ``grace_s`` later.

        ``cancelled_caught`` says so.
        """
        with trio.CancelScope() as scope:
            self._waiting[scope] = grace_s
            if self.stopping.is_set():
                scope.deadline = trio.current_time() + grace_s
            try:
                yield scope
            finally:
                del self._waiting[scope]

    async def ask(self, request: Request, expected: type[R]) -> R:
        """What this broker itself says."""

        async def find() -> None:
            return None

        response, _ = await self._insist(type(request).__name__, find, request, b"", expected)
        return response

    async def ask_leader(
        self, topic: str, partition: int, request: Request, expected: type[R], body: bytes = b""
    ) -> tuple[R, bytes]:
        """What the leader of a partition says, and the bytes behind it. T010, T011, T033."""

        async def find() -> Peer | None:
            if self._leads(topic, partition):
                return None
            found = await self.metadata(topic)
            return self.peer(leader_of(found.topics[0], partition))

        what = texts.partition_name(topic, partition)
        return await self._insist(what, find, request, body, expected)

    async def ask_group(self, group: str, request: Request, expected: type[R]) -> R:
        """What the coordinator of a group says. T013."""

        async def find() -> Peer | None:
            return self.peer(await self.coordinator(group))

        response, _ = await self._insist(f"group '{group}'", find, request, b"", expected)
        return response

    # ── what is where ────────────────────────────────────────────────────────────────────────

    async def metadata(self, *topics: str, auto_create: bool = False) -> MetadataResponse:
        """As this broker knows it; a topic that is not there stands in it with its error."""
        response, _ = await self._ask_here(MetadataRequest(topics, auto_create), b"")
        assert isinstance(response, MetadataResponse)
        return response

    async def coordinator(self, group: str) -> str:
        """The broker that has a group. T013."""
        response, _ = await self._ask_here(FindCoordinatorRequest(group), b"")
        assert isinstance(response, FindCoordinatorResponse)
        return response.broker_id

    async def topic(self, name: str, *, auto_create: bool = False) -> TopicMetadata:
        """Where a topic's partitions are. T010 if there is none."""
        found = (await self.metadata(name, auto_create=auto_create)).topics[0]
        if found.error is not None:
            raise from_wire(found.error)
        return found

    def _leads(self, topic: str, partition: int) -> bool:
        """Whether this broker does: known without a description of the whole topic."""
        known = self.node.topics.catalog.find(topic)
        return known is not None and led_here(self.node, known, partition) is not None

    async def log_starts(self, partitions: Sequence[tuple[TopicMetadata, int]]) -> list[int]:
        """Where logs begin, in the order asked. T010, T011, T033."""
        found: list[int] = []
        for topic, partition in partitions:
            query = OffsetQuery(topic.topic_id, partition, OFFSET_EARLIEST)
            request = ListOffsetsRequest(READ_COMMITTED, (query,))
            response, _ = await self.ask_leader(topic.name, partition, request, ListOffsetsResponse)
            result = response.results[0]
            if result.error is not None:
                raise from_wire(result.error)
            found.append(result.offset)
        return found

    def peer(self, broker_id: str) -> Peer | None:
        """A broker, and where it is asked; None for this one. T001 if metadata do not know it."""
        if broker_id == self.node.broker_id:
            return None
        record = self.node.views.view.brokers.get(broker_id)
        listener = self.node.config.cluster.peer_listener
        peer = None if record is None else record.at(listener)
        if peer is not None:
            return peer
        reason = f"has no listener {listener}" if record else "not in the cluster's metadata"
        raise texts_client.no_broker([(broker_id, reason)], elapsed_s=0.0)

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    async def _insist(
        self,
        what: str,
        find: Callable[[], Awaitable[Peer | None]],
        request: Request,
        body: bytes,
        expected: type[R],
    ) -> tuple[R, bytes]:
        """The answer of whom ``find`` finds, None being this broker itself."""
        began = trio.current_time()
        while True:
            asked = False
            try:
                peer = await find()
                asked = True
                response, data = await self._ask_once(what, peer, request, body)
                assert isinstance(response, expected)
                return response, data
            except TailraceError as error:
                waited_s = trio.current_time() - began
                lost = isinstance(error, RequestTimeout) and isinstance(error.__cause__, Lost)
                leaderless = not asked and error.code == "T033" and waited_s < LEADERLESS_S
                again = error.code in ANEW or leaderless
                if not (again or (lost and isinstance(request, READS))):
                    raise
                if waited_s >= TIMEOUT_S:
                    raise _no_answer(what, str(error.message), waited_s) from error
            await trio.sleep(RETRY_S)

    async def _ask_once(
        self, what: str, peer: Peer | None, request: Request, body: bytes
    ) -> tuple[Response, bytes]:
        if peer is None:
            return await self._ask_here(request, body)
        wait_s = request.wait_ms / 1000 if isinstance(request, FetchRequest) else 0.0
        began = trio.current_time()
        with trio.move_on_after(TIMEOUT_S + wait_s):
            try:
                return await self._peers.ask(peer, request, body)
            except Lost as lost:
                waited_s = trio.current_time() - began
                raise _no_answer(what, f"broker {peer.broker_id}", waited_s) from lost
        raise _no_answer(what, f"broker {peer.broker_id}", trio.current_time() - began)

    async def _ask_here(self, request: Request, body: bytes) -> tuple[Response, bytes]:
        return await LocalCaller(self.node, self._who).ask(request, bytearray(body))


def leader_of(topic: TopicMetadata, partition: int) -> str:
    """The broker that leads a partition. T010, T011, T033."""
    if topic.error is not None:
        raise from_wire(topic.error)
    for one in topic.partitions:
        if one.partition == partition:
            if one.leader is None:
                raise texts.partition_offline(topic.name, partition, reason="it has no leader")
            return one.leader
    raise texts.partition_not_found(topic.name, partition, partitions=len(topic.partitions))


def _no_answer(what: str, whom: str, waited_s: float) -> RequestTimeout:
    return texts_client.request_timeout(what, address=whom, waited_s=waited_s)
