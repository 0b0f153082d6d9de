"""Record JSON from columns: the very text that a record's document gives."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from tailrace.protocol.batch import decode_columns, encode_batch, parse_header
from tailrace.protocol.record_json import Decode, compact, parse_line, record_document
from tailrace.protocol.record_lines import LARGE_CHARACTERS, RecordLines

TOPIC = 'odd "topic"'
DECODES: list[Decode] = ["auto", "json", "msgpack", "utf8", "base64", "hex"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
data = (
    st.none()
    | st.binary(max_size=40)
    | st.text(max_size=40).map(lambda text: text.encode(errors="replace"))
    | json_values.map(
        lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
            errors="surrogatepass"
        )
    )
)
headers = st.lists(st.tuples(st.text(max_size=5).filter(str.isprintable), data), max_size=3)


def lines_of(
    values: list[bytes | None],
    keys: list[bytes | None] | None,
    heads: list[list[tuple[str, bytes | None]]] | None,
    decode: Decode,
) -> RecordLines:
    entry = encode_batch(
        0, values=values, keys=keys, timestamps=list(range(len(values))), headers=heads
    )
    header = parse_header(entry)
    return RecordLines(TOPIC, 3, header, decode_columns(entry, header), decode)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(data, data, headers), min_size=1, max_size=4), st.sampled_from(DECODES))
def test_lines_are_the_documents_of_their_records(
    records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]],
    decode: Decode,
) -> None:
    keys = [key for key, _, _ in records]
    values = [value for _, value, _ in records]
    heads = [some for _, _, some in records]
    lines = lines_of(values, keys, heads, decode)
    assert len(lines) == len(records)
    for index, (key, value, some) in enumerate(records):
        size = len(key or b"") + len(value or b"")
        size += sum(len(name.encode()) + len(part or b"") for name, part in some)
        document = record_document(
            topic=TOPIC,
            partition=3,
            offset=index,
            timestamp=index,
            append_time=-1,
            key=key,
            value=value,
            headers=some,
            size_bytes=size,
            decode=decode,
        )
        line = lines.line(index)
        assert line == compact(document).encode()
        assert b"\n" not in line
        assert lines.size_bytes(index) == size
        if decode in ("auto", "base64"):  # nothing is lost on the way back
            again = parse_line(line)
            assert (again.key, again.value, again.timestamp) == (key, value, index)
            assert list(again.headers) == some


@pytest.mark.parametrize("text", ["\0", 'quoted "text"\n', "\U0001f600", "{"])
def test_a_long_text_is_written_in_pieces_to_the_same_line(text: str) -> None:
    value = (text * 100_000)[: LARGE_CHARACTERS + 5]
    line = lines_of([value.encode()], None, None, "auto").line(0)
    assert json.loads(line)["value"] == value
    assert compact(value).encode() in line


@pytest.mark.parametrize("value", [b"[NaN]", b'["\\ud800"]', b"[1e999]", b"[1.00]", b"[1 ]"])
def test_json_that_would_not_come_back_is_shown_as_text(value: bytes) -> None:
    document = json.loads(lines_of([value], None, None, "auto").line(0))
    assert (document["value"], document["value_encoding"]) == (value.decode(), "utf8")


def test_json_of_very_many_elements_is_shown_as_text() -> None:
    value = b"[" + b",".join([b"[]"] * 60_000) + b"]"
    document = json.loads(lines_of([value], None, None, "auto").line(0))
    assert (document["value"], document["value_encoding"]) == (value.decode(), "utf8")
    few = b"[" + b",".join([b"[]"] * 10_000) + b"]"
    assert json.loads(lines_of([few], None, None, "auto").line(0))["value_encoding"] == "json"
