"""The two connection machines, joined in memory: they must agree, whatever the network cuts."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol import foreign, texts, texts_wire
from tailrace.protocol.codec import encode_message
from tailrace.protocol.connection import (
    ADMIN_BYTES_MAX,
    GENERAL_BYTES_MAX,
    HELLO_BYTES_MAX,
    IN_FLIGHT_MAX,
    PRODUCE_BYTES_MAX,
    SERVED,
    WHOLE_CONNECTION,
    Answer,
    ClientConnection,
    Incoming,
    ServerConnection,
)
from tailrace.protocol.errors import ConnectError, NotLeader, TopicNotFound
from tailrace.protocol.frame import HEADER_BYTES, PREAMBLE, encode_frame
from tailrace.protocol.messages import (
    Api,
    ApiRange,
    DescribeClusterRequest,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
    HelloRequest,
    HelloResponse,
    InitProducerIdRequest,
    InitProducerIdResponse,
    MetadataRequest,
    MetadataResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from tests.protocol.reference_frame import body_of, load, paths

NOTHING = memoryview(b"")
TOPIC = b"0123456789abcdef"
HELLO = HelloResponse(1, "n1", "c1", "tailrace/0.1.0", SERVED, 1 << 24, 1 << 23, 16, 600_000)
ASKED = [p for p in paths() if "_request" in p.stem and "hello" not in p.stem]
METADATA = MetadataResponse("c1", "n1", (), ())


def produce(*lengths: int, acks: int = -1) -> ProduceRequest:
    return ProduceRequest(acks, 1_000, tuple(ProducePartition(TOPIC, 0, n) for n in lengths))


def fetch_result(length: int) -> FetchResult:
    return FetchResult(TOPIC, 0, None, 0, 9, 9, 9, length)


class Pair:
    """A client and a broker, and the wire between them."""

    def __init__(self, *, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self.client = ClientConnection("orders-1", "tailrace/0.1.0", address="127.0.0.1:7400")
        self.server = ServerConnection("tailrace/0.1.0", "peer", in_flight_max=in_flight_max)

    def greet(self) -> "Pair":
        (hello,) = self.server.feed(self.client.open())
        list(self.client.feed(self.server.answer(hello, HELLO)))
        return self


@pytest.fixture
def pair() -> Pair:
    return Pair().greet()


def refusal_of(feed: Callable[[], object]) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        feed()
    return caught.value


# ── agreement ────────────────────────────────────────────────────────────────────────────────


def test_both_open_with_the_preamble_and_hello() -> None:
    pair = Pair()
    opening = pair.client.open()
    assert opening.startswith(PREAMBLE)
    (hello,) = pair.server.feed(opening)
    assert isinstance(hello.message, HelloRequest)
    assert pair.server.hello == hello.message
    welcome = pair.server.answer(hello, HELLO)
    assert welcome.startswith(PREAMBLE)
    (answer,) = pair.client.feed(welcome)
    assert answer.message == pair.client.hello == HELLO


def test_a_produce_carries_its_batches_and_a_fetch_brings_them(pair: Pair) -> None:
    sent, data = pair.client.request(produce(3, 2), 5)
    (request,) = pair.server.feed(data + b"abcde")
    assert (request.api, request.correlation_id) == (Api.PRODUCE, sent)
    assert bytes(request.body) == b"abcde"
    request.body[0:3] = b"ABC"  # the broker patches in place
    result = ProduceResponse((ProduceResult(None, 0, 0, 0), ProduceResult(None, 1, 0, 0)))
    assert list(pair.client.feed(pair.server.answer(request, result))) == [
        Answer(sent, result, NOTHING)
    ]

    asked = FetchRequest(0, 0, 100, 1, None, -1, (FetchPartition(TOPIC, 0, 0, 100, -1, -1, -1),))
    sent, data = pair.client.request(asked)
    (request,) = pair.server.feed(data)
    found = FetchResponse((fetch_result(5),))
    answer = pair.server.answer(request, found, 5) + b"ABCde"
    assert list(pair.client.feed(answer)) == [Answer(sent, found, memoryview(b"ABCde"))]
    assert (pair.client.in_flight, pair.server.in_flight) == (0, 0)


def test_answers_may_come_out_of_order(pair: Pair) -> None:
    first, data = pair.client.request(MetadataRequest(None, False))
    second, more = pair.client.request(InitProducerIdRequest(None))
    one, two = pair.server.feed(data + more)
    late = pair.server.answer(two, InitProducerIdResponse(17, 0)) + pair.server.answer(
        one, METADATA
    )
    answers = list(pair.client.feed(late))
    assert [(a.correlation_id, a.message) for a in answers] == [
        (second, InitProducerIdResponse(17, 0)),
        (first, METADATA),
    ]


def test_an_error_answers_its_request_only(pair: Pair) -> None:
    failed, data = pair.client.request(MetadataRequest(("ordrs",), False))
    _, more = pair.client.request(MetadataRequest(None, False))
    first, _ = pair.server.feed(data + more)
    error = texts.topic_not_found("ordrs", similar=["orders"])
    (answer,) = pair.client.feed(pair.server.refuse(first, error))
    assert answer.correlation_id == failed
    assert isinstance(answer.message, TopicNotFound)
    assert str(answer.message) == str(error)
    assert answer.message.similar == ["orders"]
    assert pair.client.in_flight == 1


def test_an_error_of_the_whole_connection_is_raised(pair: Pair) -> None:
    error = texts_wire.connection_limit("connections", limit=10_000)
    seen = refusal_of(lambda: list(pair.client.feed(pair.server.refuse(None, error))))
    assert str(seen) == str(error)
    assert seen.retriable


def test_a_refused_connection_hears_why_before_it_said_hello() -> None:
    pair = Pair()
    pair.client.open()
    refusal = pair.server.refuse(None, texts_wire.connection_limit("connections", limit=1))
    assert refusal_of(lambda: list(pair.client.feed(refusal))).code == "T123"


def test_an_internal_error_arrives_as_its_class(pair: Pair) -> None:
    _, data = pair.client.request(InitProducerIdRequest(None))
    (request,) = pair.server.feed(data)
    error = texts.not_leader("orders", 2, broker="n1", leader="n2")
    (answer,) = pair.client.feed(pair.server.refuse(request, error))
    assert isinstance(answer.message, NotLeader)


def test_produce_without_acks_waits_for_nothing(pair: Pair) -> None:
    _, data = pair.client.request(produce(1, acks=0), 1)
    (request,) = pair.server.feed(data + b"x")
    pair.server.drop(request)
    assert (pair.client.in_flight, pair.server.in_flight) == (0, 0)


@given(cuts=st.lists(st.integers(1, 400), max_size=20))
def test_any_cut_of_both_streams_gives_the_same_talk(cuts: list[int]) -> None:
    pair = Pair()
    requests: list[Incoming] = []
    answers: list[Answer] = []

    def pieces(data: bytes) -> list[bytes]:
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        return [data[a:b] for a, b in pairwise(edges)]

    def talk(data: bytes) -> None:
        for piece in pieces(data):
            for request in pair.server.feed(piece):
                requests.append(request)
                given = HELLO if request.api is Api.HELLO else METADATA
                answered = pair.server.answer(request, given)
                for part in pieces(answered):
                    answers.extend(pair.client.feed(part))

    talk(pair.client.open())
    talk(b"".join(pair.client.request(MetadataRequest(("x" * 50,), False))[1] for _ in range(5)))
    assert [request.correlation_id for request in requests] == list(range(6))
    assert [answer.correlation_id for answer in answers] == list(range(6))
    assert pair.server.missing_bytes == 0


def test_correlation_ids_turn_over_and_spare_the_reserved_one(pair: Pair) -> None:
    pair.client._next_id = WHOLE_CONNECTION - 1
    ids = [pair.client.request(DescribeClusterRequest())[0] for _ in range(3)]
    assert ids == [WHOLE_CONNECTION - 1, 0, 1]


# ── back-pressure ────────────────────────────────────────────────────────────────────────────


def test_a_thousand_pipelined_requests_are_taken_sixteen_at_a_time(pair: Pair) -> None:
    stream = b"".join(pair.client.request(MetadataRequest(None, False))[1] for _ in range(1_000))
    taken = list(pair.server.feed(stream))
    assert len(taken) == IN_FLIGHT_MAX
    assert pair.server.full
    assert list(pair.server.resume()) == []
    done = 0
    while taken:
        for request in taken:
            done += len(list(pair.client.feed(pair.server.answer(request, METADATA))))
        taken = list(pair.server.resume())
    assert done == 1_000


def test_requests_answered_while_iterating_never_fill_the_connection(pair: Pair) -> None:
    stream = b"".join(pair.client.request(MetadataRequest(None, False))[1] for _ in range(100))
    assert sum(len(pair.server.answer(r, METADATA)) > 0 for r in pair.server.feed(stream)) == 100


# ── what the broker refuses ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ASKED, ids=lambda path: path.stem)
def test_every_prefix_of_every_request_waits_and_its_damage_is_typed(path: Path) -> None:
    vector = load(path)
    data = bytes.fromhex(vector["hex"])
    for length in range(len(data)):
        server = Pair().greet().server
        assert list(server.feed(data[:length])) == []
        assert (server.missing_bytes > 0) == (length > 0)
    for position in range(len(data) - len(body_of(vector))):
        server = Pair().greet().server
        damaged = data[:position] + bytes([data[position] ^ 0x21]) + data[position + 1 :]
        assert refusal_of(lambda: list(server.feed(damaged))).code in ("T121", "T124")  # noqa: B023


def request_frame(api: int, version: int, message: object, body: bytes = b"") -> bytes:
    return encode_frame(api, version, 9, encode_message(message), len(body)) + body


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (request_frame(99, 1, MetadataRequest(None, False)), "T122", "api 99 version 1"),
        (request_frame(Api.METADATA, 2, MetadataRequest(None, False)), "T122", "version 2"),
        (request_frame(Api.METADATA, 0, MetadataRequest(None, False)), "T122", "version 0"),
        (request_frame(Api.ERROR, 1, MetadataRequest(None, False)), "T122", "api 32767"),
        (request_frame(Api.METADATA, 1, produce()), "T121", "MetadataRequest has 3 fields"),
        (request_frame(Api.METADATA, 1, MetadataRequest(None, False), b"x"), "T121", "body of 1"),
        (request_frame(Api.PRODUCE, 1, produce(4), b"abc"), "T121", "body of 3 bytes"),
        (request_frame(Api.PRODUCE, 1, produce(2), b"abc"), "T121", "its head says 2"),
        (request_frame(Api.HELLO, 1, HelloRequest(1, 1, "x", "y", None)), "T121", "only one"),
        (encode_frame(Api.CREATE_TOPIC, 1, 1, b"", ADMIN_BYTES_MAX), "T124", "65,556 bytes"),
        (encode_frame(Api.METADATA, 1, 1, b"", GENERAL_BYTES_MAX), "T124", "exceeds the limit"),
        (encode_frame(Api.PRODUCE, 1, 1, b"", PRODUCE_BYTES_MAX), "T124", "exceeds the limit"),
    ],
)
def test_a_wrong_request_is_refused(pair: Pair, data: bytes, code: str, reason: str) -> None:
    error = refusal_of(lambda: list(pair.server.feed(data)))
    assert (error.code, reason in error.message) == (code, True), str(error)


def test_requests_before_a_wrong_one_are_still_handed_out(pair: Pair) -> None:
    _, good = pair.client.request(MetadataRequest(None, False))
    requests = pair.server.feed(good + request_frame(99, 1, MetadataRequest(None, False)))
    assert next(requests).api is Api.METADATA
    assert refusal_of(lambda: next(requests)).code == "T122"


def test_the_first_frame_is_hello_and_it_is_answered_first() -> None:
    metadata = request_frame(Api.METADATA, 1, MetadataRequest(None, False))
    server = ServerConnection("tailrace/0.1.0")
    assert "Hello is the first" in str(refusal_of(lambda: list(server.feed(PREAMBLE + metadata))))
    pair = Pair()
    requests = pair.server.feed(pair.client.open() + metadata)
    assert next(requests).api is Api.HELLO
    assert "before Hello was answered" in str(refusal_of(lambda: next(requests)))


def test_before_hello_frames_are_small() -> None:
    server = ServerConnection("tailrace/0.1.0")
    large = encode_frame(Api.PRODUCE, 1, 1, b"", HELLO_BYTES_MAX - HEADER_BYTES + 1)
    assert refusal_of(lambda: list(server.feed(PREAMBLE + large))).code == "T124"


def test_request_size_is_a_setting() -> None:
    pair = Pair()
    pair.server = ServerConnection("tailrace/0.1.0", produce_bytes_max=100)
    pair.greet()
    _, data = pair.client.request(produce(200), 200)
    assert refusal_of(lambda: list(pair.server.feed(data))).code == "T124"


def test_a_newer_client_hears_which_versions_there_are() -> None:
    server = ServerConnection("tailrace/0.1.0")
    hello = HelloRequest(2, 3, "x", "tailrace/1.0.0", None)
    error = refusal_of(lambda: list(server.feed(PREAMBLE + request_frame(Api.HELLO, 1, hello))))
    assert str(error) == (
        "T120: client 1.0.0 speaks protocol 2-3, broker 0.1.0 speaks 1-1. "
        "pip install 'tailrace~=0.1.0', or upgrade the broker."
    )
    client = ClientConnection("x", "tailrace/1.0.0")
    client.open()
    assert str(refusal_of(lambda: list(client.feed(server.refuse(None, error))))) == str(error)


# ── what the client refuses ──────────────────────────────────────────────────────────────────


def answer_frame(api: int, correlation_id: int, message: object, body: bytes = b"") -> bytes:
    return encode_frame(api, 1, correlation_id, encode_message(message), len(body)) + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (answer_frame(Api.METADATA, 77, METADATA), "answer 77 of api 1 version 1 was not asked"),
        (answer_frame(Api.FETCH, 1, FetchResponse(())), "was not asked for"),
        (answer_frame(Api.METADATA, 1, METADATA, b"x"), "METADATA has a body of 1 bytes"),
        (answer_frame(Api.METADATA, 1, FetchResponse(())), "MetadataResponse has 1 fields"),
    ],
)
def test_an_answer_nobody_waits_for_is_refused(pair: Pair, data: bytes, reason: str) -> None:
    sent, _ = pair.client.request(MetadataRequest(None, False))
    assert sent == 1
    error = refusal_of(lambda: list(pair.client.feed(data)))
    assert error.code == "T121"
    assert reason in error.message


def test_an_answer_comes_once(pair: Pair) -> None:
    _, data = pair.client.request(MetadataRequest(None, False))
    (request,) = pair.server.feed(data)
    answers = pair.client.feed(pair.server.answer(request, METADATA) * 2)
    assert next(answers).message == METADATA
    assert refusal_of(lambda: next(answers)).code == "T121"


def test_a_fetch_answer_has_the_bytes_it_announces(pair: Pair) -> None:
    asked = FetchRequest(0, 0, 100, 1, None, -1, ())
    sent, _ = pair.client.request(asked)
    short = answer_frame(Api.FETCH, sent, FetchResponse((fetch_result(5),)), b"abcd")
    assert "its head says 5" in str(refusal_of(lambda: list(pair.client.feed(short))))


def test_an_api_the_broker_does_not_serve_is_not_asked() -> None:
    pair = Pair()
    (hello,) = pair.server.feed(pair.client.open())
    older = HelloResponse(
        *(
            1,
            "n1",
            "c1",
            "tailrace/0.1.0",
            (ApiRange(1, 1, 9), ApiRange(2, 2, 3), ApiRange(99, 1, 1)),
        ),
        *(1 << 24, 1 << 23, 16, 600_000),
    )
    list(pair.client.feed(pair.server.answer(hello, older)))
    pair.client.request(MetadataRequest(None, False))
    for unserved in (produce(), DescribeClusterRequest()):
        assert refusal_of(lambda: pair.client.request(unserved)).code == "T122"  # noqa: B023


def test_nothing_is_asked_before_hello_is_answered() -> None:
    client = ClientConnection("x", "tailrace/0.1.0")
    client.open()
    assert refusal_of(lambda: client.request(MetadataRequest(None, False))).code == "T122"


def test_a_broker_of_another_protocol_version_is_refused() -> None:
    pair = Pair()
    (hello,) = pair.server.feed(pair.client.open())
    newer = HelloResponse(2, "n1", "c1", "tailrace/2.0.0", (), 0, 0, 1, 0)
    error = refusal_of(lambda: list(pair.client.feed(pair.server.answer(hello, newer))))
    assert error.code == "T120"


# ── strangers ────────────────────────────────────────────────────────────────────────────────

STRANGERS = [
    (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
    (b"POST /api/v1/topics HTTP/1.1\r\n", "HTTP"),
    (b"PRI * HTTP/2.0\r\n\r\n", "HTTP"),
    (b"HTTP/1.1 400 Bad Request\r\n", "HTTP"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "TLS"),
    (b"\x15\x03\x03\x00\x02\x02\x46", "TLS"),
    (b"\x00\x00\x00\x2c\x00\x12\x00\x03\x00\x00", "Kafka"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    (b"AMQP\x00\x00\x09\x01", "AMQP"),
    (b"*1\r\n$4\r\nPING\r\n", "Redis"),
    (b'INFO {"server_id":"x"}\r\n', "NATS"),
    (PREAMBLE[:-1] + b"\x02", "tailrace/2"),
    (b"hello\r\n", "something else"),
    (b"\xff" * 20, "something else"),
    (PREAMBLE.replace(b"\r\n", b"\n") + b"\x00", "something else"),
]


@pytest.mark.parametrize(("opening", "found"), STRANGERS)
def test_a_stranger_is_named_on_both_sides(opening: bytes, found: str) -> None:
    client = ClientConnection("x", "tailrace/0.1.0", address="127.0.0.1:7480")
    client.open()
    machines: list[ServerConnection | ClientConnection] = [
        ServerConnection("x", "10.0.0.9:55"),
        client,
    ]
    for machine in machines:
        error = refusal_of(lambda: machine.feed(opening))  # noqa: B023
        assert error.code == "T004"
        assert error.details["found"] == found
        assert f"speaks {found}, not tailrace/1" in error.message


@pytest.mark.parametrize(("opening", "found"), STRANGERS)
def test_a_stranger_fails_at_its_first_wrong_byte(opening: bytes, found: str) -> None:
    server = ServerConnection("x")
    right = next(i for i, byte in enumerate(opening) if byte != PREAMBLE[i])
    for position in range(right):
        assert list(server.feed(opening[position : position + 1])) == []
    assert refusal_of(lambda: server.feed(opening[right : right + 1])).code == "T004", found


def test_strangers_are_refused_in_their_own_language() -> None:
    head, _, content = foreign.refusal("HTTP").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(content)}".encode() in head
    assert foreign.refusal("TLS")[:3] == b"\x15\x03\x01"
    assert foreign.refusal("something else") == b""


def test_every_prefix_of_the_preamble_waits() -> None:
    for length in range(len(PREAMBLE)):
        server = ServerConnection("x")
        assert list(server.feed(PREAMBLE[:length])) == []
        assert server.missing_bytes == len(PREAMBLE) - length


@given(pieces=st.lists(st.binary(max_size=80), max_size=4), greeted=st.booleans())
def test_any_bytes_end_in_a_message_a_typed_error_or_waiting(
    pieces: list[bytes], greeted: bool
) -> None:
    for side in ("server", "client"):
        pair = Pair()
        if greeted:
            pair.greet()
        machine: ServerConnection | ClientConnection = getattr(pair, side)
        try:
            for piece in pieces:
                assert not list(machine.feed(piece))
        except ConnectError as error:
            assert error.code in ("T004", "T121", "T122", "T124")  # noqa: PT017 - most inputs fail
