"""A record printed as JSON can be produced again to the same record."""

import json

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.errors import InputError
from tailrace.protocol.record_json import (
    InputRecord,
    compact,
    encode_bytes,
    parse_line,
    parse_record,
    record_document,
)

DATA = st.none() | st.binary(max_size=40) | st.text(max_size=20).map(str.encode)
JSON_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
).map(lambda value: compact(value).encode())
HEADERS = st.lists(st.tuples(st.text(min_size=1, max_size=5), DATA), max_size=3)


def printed(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> dict[str, object]:
    return record_document(
        topic="orders",
        partition=0,
        offset=12,
        timestamp=1763690000000,
        append_time=1763690000003,
        key=key,
        value=value,
        headers=headers,
        size_bytes=27,
    )


@given(key=DATA, value=DATA | JSON_DATA, headers=HEADERS)
def test_what_is_printed_reads_back_as_the_same_record(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    line = compact(printed(key, value, headers)).encode()
    assert parse_line(line) == InputRecord(key, value, 1763690000000, tuple(headers))


def test_document_has_the_fields_of_the_contract_in_order() -> None:
    document = printed(b"cust-7", b'{"n":1}', [("src", b"web")])
    assert json.dumps(document, separators=(",", ":")) == (
        '{"topic":"orders","partition":0,"offset":12,"timestamp":1763690000000,'
        '"append_time":1763690000003,"key":"cust-7","key_encoding":"utf8","value":{"n":1},'
        '"value_encoding":"json","headers":[["src","web"]],"size_bytes":27}'
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, (None, "null")),
        (b'{"n":1}', ({"n": 1}, "json")),
        (b'{"n": 1}', ('{"n": 1}', "utf8")),  # not compact: JSON would not give these bytes back
        (b'{"n":1e2}', ('{"n":1e2}', "utf8")),
        (b"7", ("7", "utf8")),  # a scalar stays text
        (b"[1,2]", ([1, 2], "json")),
        (b"", ("", "utf8")),
        (b"\xff\x00", ("/wA=", "base64")),
    ],
)
def test_auto_loses_nothing(data: bytes | None, expected: tuple[object, str]) -> None:
    assert encode_bytes(data, "auto") == expected


def test_a_key_is_never_json() -> None:
    assert encode_bytes(b"[1]", "json", key=True) == ("[1]", "utf8")


def test_only_value_is_required_and_types_choose_the_encoding() -> None:
    assert parse_record({"value": "text"}).value == b"text"
    assert parse_record({"value": None}).value is None
    assert parse_record({"value": {"n": 1}}).value == b'{"n":1}'
    assert parse_record({"value": 7, "key": "k"}) == InputRecord(b"k", b"7", None, ())


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({}, "'value'"),
        ({"value": 1, "colour": 2}, "'colour'"),
        ({"value": 1, "timestamp": "now"}, "'timestamp'"),
        ({"value": "%", "value_encoding": "base64"}, "base64"),
        ({"value": "aa", "value_encoding": "hex"}, "'value'"),
        ({"value": "x", "headers": [["a"]]}, "'headers'"),
        ([], "object"),
    ],
)
def test_bad_input_is_named_with_its_line(document: object, names: str) -> None:
    with pytest.raises(InputError, match="T062: line 3") as caught:
        parse_line(compact(document).encode(), line=3)
    assert names in str(caught.value)
    assert caught.value.line == 3
