"""The memory of large bodies: whose it is, and when it is let go."""

import pytest

from tailrace.protocol.bodies import Spares
from tailrace.protocol.connection import ClientConnection, ServerConnection
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse, MetadataRequest
from tests.protocol.test_connection import METADATA, TOPIC, Pair, fetch_result, produce


@pytest.fixture
def pair() -> Pair:
    return Pair().greet()


def fetched(pair: Pair, body: bytes) -> memoryview:
    """As a client gets it that receives a large body straight into its memory."""
    part = FetchPartition(TOPIC, 0, 0, 100, -1, -1, -1)
    (request,) = pair.server.feed(
        pair.client.request(FetchRequest(0, 0, 100, 1, None, -1, (part,)))[1]
    )
    answer = pair.server.answer(request, FetchResponse((fetch_result(len(body)),)), len(body))
    assert list(pair.client.feed(answer)) == []
    return poured(pair.client, body)


def poured(into: ClientConnection | ServerConnection, body: bytes) -> memoryview:
    """What comes out of the rest of a frame."""
    found: list[memoryview] = []
    while body:
        room = into.room()
        assert room is not None
        room[:] = body[: len(room)]
        count, body = len(room), body[len(room) :]
        del room
        found += [one.body for one in into.filled(count)]
    assert into.room() is None
    return found[0]


def test_a_client_lets_go_of_memory_for_large_answers_with_the_first_small_one(pair: Pair) -> None:
    body = bytes(300_000)
    first = id(fetched(pair, body).obj)
    kept = fetched(pair, body)
    assert id(kept.obj) == first, "used again"
    _, data = pair.client.request(MetadataRequest(None, False))
    (request,) = pair.server.feed(data)
    list(pair.client.feed(pair.server.answer(request, METADATA)))
    memory = kept.obj
    del kept
    assert fetched(pair, body).obj is not memory


def test_connections_of_a_broker_take_each_others_memory_for_large_requests() -> None:
    spares = Spares()
    pairs = [Pair(), Pair()]
    found: list[int] = []
    for pair in pairs:
        pair.server = ServerConnection("tailrace/0.1.0", "peer", spares=spares)
        pair.greet()
        assert list(pair.server.feed(pair.client.request(produce(300_000), 300_000)[1])) == []
        assert pair.server.missing_bytes == 300_000
        body = poured(pair.server, b"x" * 300_000)
        assert body == b"x" * 300_000
        found.append(id(body.obj))
        del body
    assert found[0] == found[1]
