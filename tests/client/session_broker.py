"""The fake broker with fetch sessions: what was named stands until it is told of."""

from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import to_wire
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse, FetchResult
from tests.client.fake_broker import FakeConnection, Topic
from tests.client.fetch_broker import FetchBroker

Place = tuple[bytes, int]
At = tuple[FakeConnection, int]  # a connection, and the number of a session


class SessionBroker(FetchBroker):
    """A request that is not answered waits in ``waiting``; the next one of its session ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[FetchRequest] = []  # those that name nothing, too
        self.standing: dict[At, dict[Place, FetchPartition]] = {}
        self.waiting: dict[At, Incoming] = {}
        self.crowded = False  # all that a request named is told when it ends
        self.named_by: dict[At, list[FetchPartition]] = {}  # the one that waits
        self.kept_back: list[tuple[FakeConnection, bytes]] | None = None  # answers kept back

    def ends(self) -> None:
        """The time of all that wait is up."""
        for at in list(self.waiting):
            self._respond(at, self._all_named(at))

    def wake(self) -> None:
        for at in list(self.waiting):
            self._look(at)

    def append_to(self, topic: Topic, *partitions: int) -> None:
        for partition in partitions:
            self.append(topic, [b"%d" % partition], partition)

    def named(self) -> list[list[int]]:
        """Partitions of each request."""
        return [[one.partition for one in request.partitions] for request in self.asked]

    def _fetch(self, connection: FakeConnection, request: Incoming, message: FetchRequest) -> None:
        if connection.ended or self.silent:
            return
        self.asked.append(message)
        at = connection, message.session
        if at in self.waiting:
            self._respond(at, self._all_named(at))
        self.named_by[at] = list(message.partitions)
        if message.sequence == 0:
            self.standing[at] = {}
        self.standing.setdefault(at, {}).update(
            {(o.topic_id, o.partition): o for o in message.partitions}
        )
        self.waiting[at] = request
        if message.sequence == 0 and not message.partitions:
            self._respond(at, [])
            del self.standing[at]
            return
        self._look(at)
        if at in self.waiting and (self.eager or message.wait_ms == 0):
            told = list(message.partitions) if message.wait_ms == 0 else []
            self._respond(at, [(self._quiet(one), b"") for one in told])

    def _all_named(self, at: At) -> list[tuple[FetchResult, bytes]]:
        if not self.crowded:
            return []
        stands = self.standing[at].values()
        return [(self._quiet(one), b"") for one in self.named_by[at] if one in stands]

    def _quiet(self, part: FetchPartition) -> FetchResult:
        place = part.topic_id, part.partition
        end = self.end(place)
        return FetchResult(*place, None, self.starts.get(place, 0), end, end, end, 0)

    def _look(self, at: At) -> None:
        told: list[tuple[FetchResult, bytes]] = []
        for place, part in list(self.standing[at].items()):
            error = self._outside(part)
            body = b"" if error else self._read(place, part.offset, part.bytes_max)
            end = self.end(place)
            if error or body:
                wire = to_wire(error) if error else None
                told.append((FetchResult(*place, wire, 0, end, end, end, len(body)), body))
        if told:
            self._respond(at, told)

    def _respond(self, at: At, told: list[tuple[FetchResult, bytes]]) -> None:
        connection, request = at[0], self.waiting.pop(at)
        if connection.ended:
            return
        for result, _ in told:
            self.standing[at].pop((result.topic_id, result.partition), None)
        body = b"".join(part for _, part in told)
        results = tuple(result for result, _ in told)
        data = connection.protocol.answer(request, FetchResponse(results), len(body)) + body
        if self.kept_back is None:
            connection.put(data)
        else:
            self.kept_back.append((connection, data))
