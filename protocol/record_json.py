"""A record as JSON, in and out: what the CLI prints and reads, and later HTTP.

Out: ``value_encoding`` and ``key_encoding`` say how bytes became JSON. ``auto`` picks ``json`` for
a value whose compact JSON form is the very same bytes (so nothing is lost on the way back), else
``utf8``, else ``base64``; a key is never ``json``. In: only ``value`` is needed, and whatever a
consumer printed can be produced again to the same record.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tailrace.protocol import texts_cli

Decode = Literal["auto", "json", "msgpack", "utf8", "base64", "hex"]
Headers = Sequence[tuple[str, bytes | None]]

ELEMENTS_MAX = 100_000  # of a value that is shown as JSON: some 64 bytes of memory for each

_OUTPUT_ONLY = frozenset(("topic", "partition", "offset", "append_time", "size_bytes"))
_INPUT = frozenset(("key", "key_encoding", "value", "value_encoding", "timestamp", "headers"))


@dataclass(frozen=True, slots=True)
class InputRecord:
    """A record as read from JSON."""

    key: bytes | None
    value: bytes | None
    timestamp: int | None
    headers: tuple[tuple[str, bytes | None], ...]


def compact(value: object) -> str:
    """JSON as tailrace writes it: no blanks, UTF-8, no NaN."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def record_document(
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp: int,
    append_time: int,
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
    size_bytes: int,
    decode: Decode = "auto",
) -> dict[str, object]:
    """The record as a JSON document. Bytes that ``decode`` cannot read come as base64."""
    key_text, key_encoding = encode_bytes(key, "utf8" if decode == "auto" else decode, key=True)
    value_json, value_encoding = encode_bytes(value, decode)
    return {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "append_time": append_time,
        "key": key_text,
        "key_encoding": key_encoding,
        "value": value_json,
        "value_encoding": value_encoding,
        "headers": [[name, header_document(data)] for name, data in headers],
        "size_bytes": size_bytes,
    }


def encode_bytes(data: bytes | None, decode: Decode, *, key: bool = False) -> tuple[object, str]:
    """(JSON value, name of its encoding)."""
    if data is None:
        return None, "null"
    if decode == "hex":
        return data.hex(), "hex"
    if decode in ("auto", "json") and not key:
        found = _as_json(data, exact=decode == "auto")
        if found is not None:
            return found[0], "json"
    if decode == "msgpack" and not key:
        found = _as_msgpack(data)
        if found is not None:
            return found[0], "msgpack"
    if decode != "base64":
        try:
            return data.decode(), "utf8"
        except UnicodeDecodeError:
            pass
    return base64.b64encode(data).decode(), "base64"


def _as_json(data: bytes, *, exact: bool) -> tuple[object] | None:
    """The JSON value of these bytes; ``exact``: only objects and arrays that write back equal."""
    if (exact and data[:1] not in (b"{", b"[")) or _is_bulky(data):
        return None
    try:
        value: object = json.loads(data)
        # Also where they may differ: NaN or half a surrogate pair would be no JSON on the way out.
        if compact(value).encode() != data and exact:
            return None
    except (ValueError, RecursionError):
        return None
    return (value,)


def _is_bulky(data: bytes) -> bool:
    """Whether the JSON value may have so many elements that building it takes far more memory
    than its bytes. It is shown as text then, from which the same bytes come back."""
    if len(data) <= ELEMENTS_MAX:
        return False
    return data.count(b",") + data.count(b"[") + data.count(b"{") > ELEMENTS_MAX


def _as_msgpack(data: bytes) -> tuple[object] | None:
    from tailrace.protocol.packing import PackingError, unpack  # only if asked for: start-up time

    try:
        most = min(len(data), ELEMENTS_MAX)
        value: object = unpack(data, items_max=most, map_length_max=most)
        json.dumps(value, allow_nan=False)
    except (PackingError, ValueError, TypeError):
        return None
    return (value,)


def header_document(data: bytes | None) -> object:
    """A header's value: text, null, or ``{"base64": …}`` where it is not UTF-8."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def printable(data: bytes | None, decode: Decode = "auto", *, key: bool = False) -> str:
    """One line of text for a terminal; what would move its cursor is shown as an escape."""
    if data is None:
        return "-" if key else "(tombstone)"
    value, encoding = encode_bytes(data, decode, key=key)
    text = compact(value) if encoding in ("json", "msgpack") else str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def parse_record(document: object, *, line: int | None = None) -> InputRecord:
    """The record a JSON document describes, or InputError T062 that names the field."""
    if not isinstance(document, dict):
        raise texts_cli.invalid_input(reason="a record is a JSON object", line=line)
    fields = cast(dict[str, object], document)
    if unknown := sorted(set(fields) - _INPUT - _OUTPUT_ONLY):
        raise texts_cli.invalid_input(reason=f"unknown field '{unknown[0]}'", line=line)
    if "value" not in fields:
        raise texts_cli.invalid_input(reason="the field 'value' is missing", line=line)
    timestamp = fields.get("timestamp")
    if timestamp is not None and (isinstance(timestamp, bool) or not isinstance(timestamp, int)):
        raise texts_cli.invalid_input(reason="'timestamp' is not a whole number of ms", line=line)
    return InputRecord(
        key=_decode_field(fields, "key", line),
        value=_decode_field(fields, "value", line),
        timestamp=timestamp,
        headers=_parse_headers(fields.get("headers"), line),
    )


def parse_line(text: bytes, *, line: int | None = None) -> InputRecord:
    """The record of one NDJSON line."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise texts_cli.invalid_input(reason=f"not JSON ({error})", line=line) from error
    return parse_record(document, line=line)


def _decode_field(fields: Mapping[str, object], name: str, line: int | None) -> bytes | None:
    value = fields.get(name)
    encoding = fields.get(f"{name}_encoding")
    if encoding is None:
        if value is None:
            return None
        if isinstance(value, str):
            return _text_field(name, value, line)
        return _json(name, value, line)
    if encoding == "null" and value is None:
        return None
    if encoding == "json":
        return _json(name, value, line)
    if isinstance(value, str):
        if encoding == "utf8":
            return _text_field(name, value, line)
        if encoding == "base64":
            return _decode_base64(name, value, line)
    allowed = "null, json, utf8 or base64"
    raise texts_cli.invalid_input(
        reason=f"'{name}' does not fit its encoding {encoding!r}; known: {allowed}", line=line
    )


def _text_field(name: str, text: str, line: int | None) -> bytes:
    """Half a surrogate pair, which JSON can spell, is no text that UTF-8 can carry."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise texts_cli.invalid_input(reason=f"'{name}': {error}", line=line) from error


def _json(name: str, value: object, line: int | None) -> bytes:
    try:
        return compact(value).encode()
    except (ValueError, RecursionError) as error:
        raise texts_cli.invalid_input(reason=f"'{name}': {error}", line=line) from error


def _decode_base64(name: str, value: str, line: int | None) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise texts_cli.invalid_input(
            reason=f"'{name}' is not base64 ({error})", line=line
        ) from error


def _parse_headers(value: Any, line: int | None) -> tuple[tuple[str, bytes | None], ...]:
    if value is None:
        return ()
    wrong = texts_cli.invalid_input(
        reason="'headers' is not a list of [name, text, null or {\"base64\": text}]", line=line
    )
    if not isinstance(value, list):
        raise wrong
    headers: list[tuple[str, bytes | None]] = []
    for pair in cast(list[object], value):
        match pair:
            case [str(name), None]:
                data = None
            case [str(name), str(text)]:
                data = _text_field("headers", text, line)
            case [str(name), {"base64": str(text)}]:
                data = _decode_base64("headers", text, line)
            case _:
                raise wrong
        _text_field("headers", name, line)
        headers.append((name, data))
    return tuple(headers)
