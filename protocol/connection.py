"""One connection without I/O: handshake, versions, correlation ids, what may be in flight.

Bytes go in by ``feed``, messages come out; messages go in, bytes come out. Broker, client and the
simulation wrap these two machines in a thin shell each, so that the rules of docs/wire_format.md
(sections 1 to 4) stand here once:

- both sides open with the preamble, the client first; who speaks something else is named (T004);
- the first frame is Hello, there is only one, and nothing is asked before it is answered;
- a request has an api and version that Hello allows (T122); an answer has the api and the
  correlation id of a request that waits for it, or is an error for it;
- only produce requests and fetch answers carry a body, exactly as long as their head says;
- a broker takes at most ``in_flight`` requests at once: the rest waits unread (back-pressure).

After any error the connection is only good for closing. No clock: who waits too long is the
shell's business.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tailrace.protocol import foreign
from tailrace.protocol.bodies import KEPT_BYTES_MIN, Spares
from tailrace.protocol.codec import decode_message, encode_message
from tailrace.protocol.errors import TailraceError, from_wire, to_wire
from tailrace.protocol.frame import PREAMBLE, Frame, FrameLimits, FrameReader, encode_frame
from tailrace.protocol.messages import (
    PROTOCOL,
    REQUESTS,
    RESPONSES,
    VERSIONS,
    Api,
    ApiRange,
    ErrorResponse,
    FetchResponse,
    HelloRequest,
    HelloResponse,
    ProduceRequest,
    Request,
    Response,
)
from tailrace.protocol.texts_wire import (
    malformed_frame,
    other_protocol,
    unsupported_api,
    version_mismatch,
)

KIB, MIB = 1 << 10, 1 << 20
ERROR_VERSION = 1
WHOLE_CONNECTION = 0xFFFF_FFFF  # correlation id of an error that answers no single request

HELLO_BYTES_MAX = 16 * KIB
ADMIN_BYTES_MAX = 64 * KIB
GENERAL_BYTES_MAX = 1 * MIB
PRODUCE_BYTES_MAX = 16 * MIB
HEAD_BYTES_MAX = 256 * KIB  # an empty array costs 1 byte in a head and 64 in memory
ANSWER_BYTES_MAX = 64 * MIB  # whatever a broker claims of itself
ANSWER_HEAD_BYTES_MAX = 16 * MIB  # a description of every topic
IN_FLIGHT_MAX = 16
_FRAME_BYTES_MAX: dict[int, int] = {
    **dict.fromkeys((Api.CREATE_TOPIC, Api.DELETE_TOPIC, Api.ALTER_TOPIC), ADMIN_BYTES_MAX),
    **dict.fromkeys((Api.DESCRIBE_TOPICS, Api.DESCRIBE_CLUSTER), ADMIN_BYTES_MAX),
    **dict.fromkeys((Api.DELETE_RECORDS, Api.ERASE, Api.GET_ERASURE), ADMIN_BYTES_MAX),
    **dict.fromkeys((Api.FIND_COORDINATOR, Api.LIST_GROUPS, Api.DESCRIBE_GROUP), ADMIN_BYTES_MAX),
    **dict.fromkeys((Api.DELETE_GROUP, Api.EXPLAIN), ADMIN_BYTES_MAX),
    **dict.fromkeys((Api.ELECT_LEADERS, Api.REASSIGN, Api.DRAIN_BROKER), ADMIN_BYTES_MAX),
    **dict.fromkeys((Api.DESCRIBE_MOVES, Api.DESCRIBE_REPLICAS), ADMIN_BYTES_MAX),
}
_VERSIONS: dict[int, tuple[int, int]] = {int(api): versions for api, versions in VERSIONS.items()}
SERVED = tuple(ApiRange(api, *versions) for api, versions in _VERSIONS.items())  # for HelloResponse
_API_OF: dict[type, Api] = {cls: api for api, cls in REQUESTS.items()}


def request_limits(produce_bytes_max: int = PRODUCE_BYTES_MAX) -> FrameLimits:
    """What a broker takes once Hello was read. ``produce_bytes_max``: limits.request_size."""
    limits = {**_FRAME_BYTES_MAX, Api.PRODUCE: produce_bytes_max}
    return FrameLimits(lambda api: limits.get(api, GENERAL_BYTES_MAX), HEAD_BYTES_MAX)


def answer_limits(hello: HelloResponse) -> FrameLimits:
    """What a client takes from this broker: a fetch answer may hold one batch of any size."""
    fetched = max(hello.fetch_bytes_max, hello.request_bytes_max) + GENERAL_BYTES_MAX
    fetch_max = min(fetched, ANSWER_BYTES_MAX)
    return FrameLimits(
        lambda api: fetch_max if api == Api.FETCH else ANSWER_HEAD_BYTES_MAX, ANSWER_HEAD_BYTES_MAX
    )


_HELLO_LIMITS = FrameLimits(lambda api: HELLO_BYTES_MAX, HELLO_BYTES_MAX)


class _Opening:
    """The peer's preamble, found or refused at its first wrong byte."""

    def __init__(self, address: str) -> None:
        self.done = False
        self._address = address
        self._bytes = b""

    @property
    def missing_bytes(self) -> int:
        """Bytes until the preamble is complete; also before its first."""
        return len(PREAMBLE) - len(self._bytes)

    def strip(self, data: bytes) -> bytes:
        """What follows the preamble. Raises ConnectError T004 with ``found`` in its details."""
        if self.done:
            return data
        self._bytes += data
        begun = self._bytes[: len(PREAMBLE)]
        if not PREAMBLE.startswith(begun):
            found = foreign.identify(begun) or "something else"
            raise other_protocol(self._address, found=found)
        self.done = len(begun) == len(PREAMBLE)
        return self._bytes[len(PREAMBLE) :] if self.done else b""


# ── client ───────────────────────────────────────────────────────────────────────────────────


class Answer(NamedTuple):
    """What came back for one request."""

    correlation_id: int
    message: Response | TailraceError  # the error if the request as a whole failed
    body: memoryview  # of a fetch; the caller's to keep


class ClientConnection:
    """The client's side. ``open``, then ``request`` as soon as ``hello`` is there."""

    def __init__(
        self, client_id: str, software: str, cluster_id: str | None = None, address: str = "broker"
    ) -> None:
        self.hello: HelloResponse | None = None  # the broker's answer, once it came
        self._hello_request = HelloRequest(PROTOCOL, PROTOCOL, client_id, software, cluster_id)
        self._opening = _Opening(address)
        self._spares = Spares()
        self._reader = FrameReader(_HELLO_LIMITS, self._spares)
        self._waiting: dict[int, tuple[Api, int]] = {}
        self._next_id = 0
        self._versions: dict[int, int] = {Api.HELLO: 1}

    @property
    def in_flight(self) -> int:
        """Requests that wait for an answer."""
        return len(self._waiting)

    def open(self) -> bytes:
        """The first bytes to send: preamble and Hello."""
        return PREAMBLE + self.request(self._hello_request)[1]

    def request(self, message: Request, body_length: int = 0) -> tuple[int, bytes]:
        """Correlation id and bytes of a request; send ``body_length`` bytes of batches behind it.

        A produce request with acks 0 gets no answer. Raises ConnectError T122 if the broker does
        not serve the api, T121 if a text in the message is no Unicode.
        """
        api = _API_OF[type(message)]
        version = self._versions.get(api)
        if version is None:
            raise unsupported_api(api, VERSIONS[api][1])
        correlation_id = self._take_id()
        data = encode_frame(api, version, correlation_id, encode_message(message), body_length)
        if not (isinstance(message, ProduceRequest) and message.acks == 0):
            self._waiting[correlation_id] = (api, version)
        return correlation_id, data

    def feed(self, data: bytes) -> Iterator[Answer]:
        """The answers that are complete now, one by one; Hello's own is among them.

        While iterating, raises ConnectError: T004 (the peer speaks something else), T120 (no
        common version), T121 or T124 (malformed); or what the broker says about the connection
        as a whole.
        """
        data = self._opening.strip(data)
        if data:
            self._reader.feed(data)
        return self._answers()

    def room(self) -> memoryview | None:
        """Where the next bytes may be received to, say then ``filled``; None: ``feed`` them.

        The view must be gone before the next call, or its memory is not used again.
        """
        return self._reader.room()

    def filled(self, count: int) -> Iterator[Answer]:
        """So many bytes were received into ``room``; the same as feeding them."""
        self._reader.filled(count)
        return self._answers()

    def _answers(self) -> Iterator[Answer]:
        while self._opening.done and (frame := self._reader.next()) is not None:
            if len(frame.body) < KEPT_BYTES_MIN:  # large ones have stopped coming
                self._spares.clear()
            yield self._answer(frame)

    def _take_id(self) -> int:
        while self._next_id in self._waiting or self._next_id == WHOLE_CONNECTION:
            self._next_id = (self._next_id + 1) & WHOLE_CONNECTION
        taken = self._next_id
        self._next_id = (taken + 1) & WHOLE_CONNECTION
        return taken

    def _answer(self, frame: Frame) -> Answer:
        if (frame.api, frame.version) == (Api.ERROR, ERROR_VERSION):
            return self._refused(frame)
        api, version = self._waiting.pop(frame.correlation_id, (None, 0))
        if api is None or (frame.api, frame.version) != (api, version):
            raise malformed_frame(
                f"answer {frame.correlation_id} of api {frame.api} version {frame.version} was not "
                "asked for"
            )
        message = decode_message(RESPONSES[api], frame.head)
        expected = 0
        if isinstance(message, FetchResponse):
            expected = sum([result.length for result in message.results])
        _check_body(api, frame.body, expected)
        if isinstance(message, HelloResponse):
            self._welcome(message)
        return Answer(frame.correlation_id, message, frame.body)

    def _refused(self, frame: Frame) -> Answer:
        error = from_wire(decode_message(ErrorResponse, frame.head).error)
        _check_body(Api.ERROR, frame.body, 0)
        asked = self._waiting.pop(frame.correlation_id, None)
        if frame.correlation_id == WHOLE_CONNECTION or (asked and asked[0] is Api.HELLO):
            raise error
        if asked is None:
            raise malformed_frame(f"error for request {frame.correlation_id}, which does not wait")
        return Answer(frame.correlation_id, error, frame.body)

    def _welcome(self, hello: HelloResponse) -> None:
        if hello.protocol != PROTOCOL:
            raise version_mismatch(
                client=self._hello_request.software,
                client_range=(PROTOCOL, PROTOCOL),
                broker=hello.software,
                broker_range=(hello.protocol, hello.protocol),
            )
        self.hello = hello
        self._reader.limits = answer_limits(hello)
        for served in hello.apis:
            low, high = _VERSIONS.get(served.api, (1, 0))
            version = min(high, served.version_max)
            if version >= max(low, served.version_min):
                self._versions[served.api] = version


# ── broker ───────────────────────────────────────────────────────────────────────────────────


class Incoming(NamedTuple):
    """One request to be answered, or to be dropped if it wants no answer."""

    api: Api
    version: int
    correlation_id: int
    message: Request
    body: memoryview  # of a produce: writable, the handler's to keep


class ServerConnection:
    """The broker's side: ``feed``, then ``answer``, ``refuse`` or ``drop`` each request.

    ``spares``: where memory for large bodies comes from, of all connections together.
    """

    def __init__(
        self,
        software: str,
        peer: str = "client",
        *,
        produce_bytes_max: int = PRODUCE_BYTES_MAX,
        in_flight_max: int = IN_FLIGHT_MAX,
        spares: Spares | None = None,
    ) -> None:
        self.hello: HelloRequest | None = None  # once it came
        self.in_flight = 0  # requests handed out and not yet answered, refused or dropped
        self._software = software
        self._in_flight_max = in_flight_max
        self._opening = _Opening(peer)
        self._reader = FrameReader(_HELLO_LIMITS, spares)
        self._limits = request_limits(produce_bytes_max)
        self._preamble_sent = False
        self._welcomed = False

    @property
    def full(self) -> bool:
        """Nothing more is taken until a request is answered: do not receive either."""
        return self.in_flight >= self._in_flight_max

    @property
    def missing_bytes(self) -> int:
        """Bytes that complete what has begun (preamble, header or frame); 0 between frames."""
        return self._reader.missing_bytes if self._opening.done else self._opening.missing_bytes

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """The requests that are complete now, one by one, until ``full``.

        While iterating, raises ConnectError T004 (with ``found``), T120, T121, T122 or T124: send
        ``refuse(None, error)`` (for T004 what ``foreign.refusal`` gives) and close.
        """
        data = self._opening.strip(data)
        if data:
            self._reader.feed(data)
        return self.resume()

    def room(self) -> memoryview | None:
        """Where the next bytes may be received to, say then ``filled``; None: ``feed`` them.

        The view must be gone before the next call, or its memory is not used again.
        """
        return self._reader.room()

    def filled(self, count: int) -> Iterator[Incoming]:
        """So many bytes were received into ``room``; the same as feeding them."""
        self._reader.filled(count)
        return self.resume()

    def resume(self) -> Iterator[Incoming]:
        """The requests that waited while the connection was full."""
        while self._opening.done and not self.full and (frame := self._reader.next()) is not None:
            incoming = self._incoming(frame)
            self.in_flight += 1
            yield incoming

    def answer(self, request: Incoming, message: Response, body_length: int = 0) -> bytes:
        """The bytes of an answer; send ``body_length`` bytes of batches right behind them."""
        if request.api is Api.HELLO:
            self._welcomed = True
        self.drop(request)
        head = encode_message(message)
        frame = encode_frame(
            request.api, request.version, request.correlation_id, head, body_length
        )
        return self._opened(frame)

    def refuse(self, request: Incoming | None, error: TailraceError) -> bytes:
        """The bytes of an error for one request, or for the whole connection, then to be closed."""
        if request is not None:
            self.drop(request)
        correlation_id = WHOLE_CONNECTION if request is None else request.correlation_id
        head = encode_message(ErrorResponse(to_wire(error)))
        return self._opened(encode_frame(Api.ERROR, ERROR_VERSION, correlation_id, head))

    def drop(self, request: Incoming) -> None:
        """The request needs no answer (produce with acks 0): it is no longer in flight."""
        assert self.in_flight > 0, f"{request.api.name} was answered twice"
        self.in_flight -= 1

    def _opened(self, frame: bytes) -> bytes:
        if self._preamble_sent:
            return frame
        self._preamble_sent = True
        return PREAMBLE + frame

    def _incoming(self, frame: Frame) -> Incoming:
        api, version = frame.api, frame.version
        if (api == Api.HELLO) != (self.hello is None):
            raise malformed_frame("Hello is the first frame, and there is only one")
        if self.hello is not None and not self._welcomed:
            raise malformed_frame("a request came before Hello was answered")
        low, high = _VERSIONS.get(api, (1, 0))
        if not low <= version <= high:
            raise unsupported_api(api, version)
        known = Api(api)
        message = decode_message(REQUESTS[known], frame.head)
        expected = 0
        if isinstance(message, ProduceRequest):
            expected = sum([part.length for part in message.partitions])
        _check_body(known, frame.body, expected)
        if isinstance(message, HelloRequest):
            self._meet(message)
        return Incoming(known, version, frame.correlation_id, message, frame.body)

    def _meet(self, hello: HelloRequest) -> None:
        if not hello.protocol_min <= PROTOCOL <= hello.protocol_max:
            raise version_mismatch(
                client=hello.software,
                client_range=(hello.protocol_min, hello.protocol_max),
                broker=self._software,
                broker_range=(PROTOCOL, PROTOCOL),
            )
        self.hello = hello
        self._reader.limits = self._limits


def _check_body(api: Api, body: memoryview, expected: int) -> None:
    if len(body) != expected:
        raise malformed_frame(
            f"{api.name} has a body of {len(body)} bytes, its head says {expected}"
        )
