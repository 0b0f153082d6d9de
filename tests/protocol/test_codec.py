"""Heads: what was encoded comes back; whatever is not exactly a message is T121."""

import tracemalloc
from dataclasses import fields, replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings, strategies as st

from tailrace.protocol.codec import ARRAY_MAX, MAP_MAX, decode_message, encode_message
from tailrace.protocol.connection import HEAD_BYTES_MAX
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.messages import (
    REQUESTS,
    RESPONSES,
    ErrorResponse,
    FetchPartition,
    FetchRequest,
    HelloRequest,
    InitProducerIdResponse,
    MetadataRequest,
    ProducePartition,
    ProduceRequest,
    ProduceResult,
    WireError,
)

CLASSES: list[type[Any]] = sorted(
    {*REQUESTS.values(), *RESPONSES.values()}, key=lambda c: c.__name__
)
PRODUCE = ProduceRequest(-1, 30_000, (ProducePartition(b"0123456789abcdef", 3, 100),))
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.text(max_size=5)
) | st.floats(allow_nan=False, allow_infinity=False)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value the schema allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return st.none() | values(arguments[0])
    if origin is Annotated:
        return st.integers(arguments[1].low, arguments[1].high)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(
            st.text(max_size=5), SCALAR | st.lists(SCALAR, max_size=3), max_size=4
        )
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=10),
        bytes: st.binary(max_size=20),
        bool: st.booleans(),
    }
    return plain[hint] if hint in plain else messages_of(hint)


def messages_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, *(values(hints[field.name]) for field in fields(cls)))


@settings(max_examples=max(1, settings().max_examples // 8))  # of each message
@given(data=st.data())
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_message_comes_back_as_it_was(cls: type[Any], data: st.DataObject) -> None:
    message = data.draw(messages_of(cls))
    assert decode_message(cls, encode_message(message)) == message


def refused(cls: type[Any], row: object, reason: str) -> None:
    with pytest.raises(ConnectError) as caught:
        decode_message(cls, msgpack.packb(row))
    assert caught.value.code == "T121"
    assert reason in caught.value.message


ROW: list[Any] = [-1, 30_000, [[b"0123456789abcdef", 3, 100]]]


def with_field(at: int, value: object) -> list[Any]:
    return [*ROW[:at], value, *ROW[at + 1 :]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW[:2], "ProduceRequest has 2 fields, expected 3"),
        ([*ROW, 1], "ProduceRequest has 4 fields, expected 3"),
        ({"acks": -1}, "ProduceRequest is not an array"),
        (7, "ProduceRequest is not an array"),
        (None, "ProduceRequest is not an array"),
        (with_field(0, "all"), "ProduceRequest.acks has the wrong type"),
        (with_field(0, True), "ProduceRequest.acks has the wrong type"),
        (with_field(0, 1.0), "ProduceRequest.acks has the wrong type"),
        (with_field(0, float("nan")), "ProduceRequest.acks has the wrong type"),
        (with_field(0, None), "ProduceRequest.acks has the wrong type"),
        (with_field(0, 128), "ProduceRequest.acks 128 is outside -128 to 127"),
        (with_field(0, -129), "ProduceRequest.acks -129 is outside"),
        (with_field(1, -1), "ProduceRequest.timeout_ms -1 is outside 0 to 9223372036854775807"),
        (with_field(1, 1 << 63), "ProduceRequest.timeout_ms"),
        (with_field(2, None), "ProduceRequest.partitions has the wrong type"),
        (with_field(2, {}), "ProduceRequest.partitions has the wrong type"),
        (with_field(2, [[b"x", 3]]), "ProducePartition has 2 fields, expected 3"),
        (with_field(2, [7]), "ProduceRequest.partitions[] holds a value of the wrong type"),
        (with_field(2, [["text", 3, 1]]), "ProducePartition.topic_id has the wrong type"),
        (with_field(2, [[b"x", 1 << 31, 1]]), "ProducePartition.partition 2147483648 is outside"),
    ],
)
def test_what_is_not_the_schema_is_named(row: object, reason: str) -> None:
    refused(ProduceRequest, row, reason)


def test_a_text_among_texts_must_be_one() -> None:
    refused(MetadataRequest, [["orders", b"refunds"], False], "MetadataRequest.topics[]")
    refused(MetadataRequest, [["orders", None], False], "MetadataRequest.topics[]")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",  # never used
        b"\x93\x01",  # ends early
        encode_message(PRODUCE)[:-1],
        encode_message(PRODUCE) + b"\x00",  # something behind it
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1
        b"\xdc\x27\x11" + b"\x00" * (ARRAY_MAX + 1),
        b"\xdb\xff\xff\xff\xff",  # a text of 4 GiB
        b"\xc6\x7f\xff\xff\xff",  # bytes of 2 GiB
        b"\xdf\xff\xff\xff\xff",  # a map of 2^32 - 1
        b"\x91" * 2_000 + b"\xc0",  # depth
        b"\x91" * 9 + b"\xc0",
        b"\xd4\x01\x00",  # ext
        b"\xc7\x00\x05",  # ext without content
        b"\xd6\xff\x00\x00\x00\x00",  # timestamp
        b"\x91\xa1\xff",  # no UTF-8
        b"\x91\xa3\xed\xa0\x80",  # a surrogate
        b"\x81\x01\x02",  # a key that is no text
    ],
)
def test_hostile_msgpack_is_refused(head: bytes) -> None:
    for cls in (ProduceRequest, HelloRequest, ErrorResponse):
        with pytest.raises(ConnectError, match="T121: malformed frame"):
            decode_message(cls, head)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_message_or_t121(head: bytes) -> None:
    for cls in CLASSES:
        try:
            assert isinstance(decode_message(cls, head), cls)
        except ConnectError as error:
            assert error.code == "T121"  # noqa: PT017 - most inputs are refused, some are messages


def error_head(details: bytes) -> bytes:
    return b"\x91\x94\x0a\xa0\xa0" + details


@pytest.mark.parametrize(
    "details",
    [
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\xc4\x01a\x01",  # a key of bytes
        b"\x81\xa1a\xc4\x01a",  # bytes are no scalar
        b"\x81\xa1a\x91\x91\x01",  # arrays hold scalars only
        b"\x81\xa1a\x81\xa1b\x01",  # and so do maps
        b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
        b"\x81\xa1a\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",  # infinity
        b"\xde\x01\x01" + b"".join(b"\xa2%02x\x00" % i for i in range(MAP_MAX)) + b"\xa3end\x00",
        b"\x90",
        b"\xc0",
    ],
)
def test_details_of_an_error_are_scalars_by_name(details: bytes) -> None:
    with pytest.raises(ConnectError, match="T121"):
        decode_message(ErrorResponse, error_head(details))


def test_details_hold_scalars_and_lists_of_them() -> None:
    head = error_head(b"\x82\xa1a\x92\x01\xc0\xa1b\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00")
    assert decode_message(ErrorResponse, head).error.details == {"a": [1, None], "b": 1.0}


@pytest.mark.parametrize(
    "message",
    [
        HelloRequest(1, 1, "\ud800", "x", None),
        InitProducerIdResponse(1 << 70, 0),
        InitProducerIdResponse(0, 1 << 15),
        ErrorResponse(WireError(1, "", "", {"odd": 1 << 70})),
    ],
)
def test_what_cannot_travel_is_refused_at_the_sender(message: object) -> None:
    with pytest.raises(ConnectError, match=r"T121: malformed frame: \w+ cannot be encoded"):
        encode_message(message)


def test_the_longest_arrays_pass() -> None:
    many = replace(PRODUCE, partitions=PRODUCE.partitions * ARRAY_MAX)
    assert decode_message(ProduceRequest, encode_message(many)) == many


def test_limits_of_integers_pass() -> None:
    high = FetchPartition(
        b"", (1 << 31) - 1, (1 << 63) - 1, (1 << 63) - 1, -1, -(1 << 31), -(1 << 63)
    )
    request = FetchRequest(0, 0, 0, -128, None, 0, (high,))
    assert decode_message(FetchRequest, encode_message(request)) == request
    assert ProduceResult(None, -1, -1, -1).error is None


@pytest.mark.parametrize("filler", [b"\x90", b"\x80", b"\xa1a"])
def test_the_worst_head_costs_little_memory(filler: bytes) -> None:
    """Empty containers are 1 byte on the wire and 64 in memory: the head's limit bounds that."""
    inner = b"\xdc\x27\x10" + filler * ARRAY_MAX
    rows = HEAD_BYTES_MAX // len(inner)
    head = b"\xdc" + rows.to_bytes(2, "big") + inner * rows
    tracemalloc.start()
    with pytest.raises(ConnectError, match="T121"):
        decode_message(ProduceRequest, head)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
