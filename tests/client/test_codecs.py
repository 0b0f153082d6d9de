"""Codecs: what goes in comes out, and what does not fit is named."""

import math
from typing import Any

import msgspec
import pydantic
import pytest

from tailrace.client.codecs import (
    BoundCodec,
    Undecodable,
    bind,
    decode_into,
    encode_column,
    encode_value,
    guess,
)
from tailrace.protocol.errors import ConfigError, EncodeError


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    name: str


class Reversed:
    name = "reversed"

    def encode(self, value: str) -> bytes:
        return value[::-1].encode()

    def decode(self, data: bytes) -> str:
        return data.decode()[::-1]


def bound(spec: Any) -> BoundCodec[Any]:
    return bind(spec, part="value", call="client.producer()")


def encode(spec: Any, value: Any) -> bytes | None:
    return encode_value(bound(spec), value, topic="orders", part="value")


def decode(spec: Any, data: bytes) -> Any:
    column: list[Any] = [None]
    stop, wrong = decode_into(bound(spec), [data], column, 0, 1)
    return column[0] if stop else wrong


@pytest.mark.parametrize(
    ("spec", "value", "data"),
    [
        (str, "tailrace ü", "tailrace ü".encode()),
        ("json", {"n": 1, "ü": [None, 1.5]}, '{"n":1,"ü":[null,1.5]}'.encode()),
        ("msgpack", {"n": [1, b"x"]}, b"\x81\xa1n\x92\x01\xc4\x01x"),
        (Point, Point(1, 2), b'{"x":1,"y":2}'),
        (Model, Model(name="a"), b'{"name":"a"}'),
        (Reversed(), "abc", b"cba"),
    ],
)
def test_values_travel_both_ways(spec: Any, value: Any, data: bytes) -> None:
    assert encode(spec, value) == data
    assert decode(spec, data) == value


def test_bytes_are_not_touched() -> None:
    data = b"\0\xff"
    assert encode(bytes, data) is data or encode(bytes, data) == data
    assert bound(bytes).decode is None


@pytest.mark.parametrize("spec", [bytes, str, "json", Point])
def test_none_skips_the_codec(spec: Any) -> None:
    assert encode(spec, None) is None


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (bytes, "text"),
        (bytes, bytearray(b"x")),
        (str, b"bytes"),
        (str, "\ud800"),
        ("json", math.nan),
        ("json", {1, 2}),
        ("msgpack", object()),
        (Point, Model(name="a")),
        (Model, {"name": "a"}),
        (Reversed(), 5),
    ],
)
def test_wrong_type_is_an_encode_error_at_the_call(spec: Any, value: Any) -> None:
    with pytest.raises(EncodeError, match=r"T061: value of type .* for topic 'orders'") as caught:
        encode(spec, value)
    assert caught.value.topic == "orders"
    assert caught.value.__cause__ is not None


def test_codec_that_returns_no_bytes_is_named() -> None:
    class Wrong:
        name = "wrong"

        def encode(self, value: str) -> Any:
            return value

        def decode(self, data: bytes) -> str:
            return data.decode()

    with pytest.raises(EncodeError, match="encode returned str, not bytes"):
        encode(Wrong(), "x")


@pytest.mark.parametrize(
    ("spec", "data", "looks"),
    [
        (str, b"\xff\xfe", "bytes"),
        ("json", b"hello", "str"),
        ("json", b"\x81\xa1n\x01", "msgpack"),
        ("json", b"NaN", "str"),
        (Point, b'{"z":1}', "json"),
        (Model, b"\x93\x01\x02\x03", "msgpack"),
        ("msgpack", b'{"n":1}', "json"),
        (Reversed(), b"\xff", "bytes"),
    ],
)
def test_undecodable_bytes_come_with_a_guess(spec: Any, data: bytes, looks: str) -> None:
    wrong = decode(spec, data)
    assert isinstance(wrong, Undecodable)
    error = wrong.error("orders", 2, 881)
    assert f"T060: orders[2]@881 is not {bound(spec).name} (starts " in str(error)
    assert f"looks like {looks})" in str(error)
    assert (error.topic, error.partition, error.offset, error.raw) == ("orders", 2, 881, data)


def test_decoding_stops_at_the_first_that_cannot_be() -> None:
    column: list[Any] = [None] * 4
    stop, wrong = decode_into(bound("json"), [b"1", None, b"{", b"2"], column, 0, 4)
    assert (stop, column) == (2, [1, None, None, None])
    assert wrong is not None
    assert wrong.raw == b"{"


def test_column_of_bytes_is_checked_not_encoded() -> None:
    assert encode_column(bound(bytes), [b"a", None], topic="t", part="value") == [b"a", None]
    with pytest.raises(EncodeError):
        encode_column(bound(bytes), [b"a", "b"], topic="t", part="value")


@pytest.mark.parametrize("spec", ["yaml", int, object(), None])
def test_unknown_codec_is_a_config_error(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"T082: client.producer\(\): value=.* must be a codec"):
        bound(spec)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        *[(b'{"a":1}', "json"), (b"[", "str"), (b"\x80", "msgpack"), (b"\x92\x01", "bytes")],
        *[(b"a\tb\n", "str"), (b"\x00\x01", "bytes"), (b"", "str")],
    ],
)
def test_guess_never_claims_what_does_not_parse(data: bytes, looks: str) -> None:
    assert guess(data) == looks
