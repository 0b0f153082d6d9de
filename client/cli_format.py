"""How a record becomes a line: the FORMAT of ``consume`` and ``tail``, and the default shapes."""

import base64
import json
import re
from collections.abc import Callable
from datetime import datetime

import click

from tailrace.client.record_json import Decode, compact, encode_bytes, record_document
from tailrace.client.records import Record

AnyRecord = Record[bytes, bytes]
_DIRECTIVE = re.compile(r"%([tpokvhda%])(?:\{(\w+)\})?|\\([nt\\])")
_ESCAPES = {"n": b"\n", "t": b"\t", "\\": b"\\"}
_AS: dict[str, Callable[[bytes], bytes]] = {
    "hex": lambda data: data.hex().encode(),
    "base64": base64.b64encode,
    "json": lambda data: json.dumps(data.decode(errors="replace")).encode(),
}


def compile_format(text: str) -> Callable[[AnyRecord], bytes]:
    """A function from record to bytes; a ``UsageError`` names a directive it does not know."""
    parts: list[bytes | Callable[[AnyRecord], bytes]] = []
    position = 0
    for match in _DIRECTIVE.finditer(text):
        parts.append(literal(text[position : match.start()]))
        position = match.end()
        name, how, escape = match.groups()
        if how is not None and (name not in "kv" or how not in _AS):
            raise click.UsageError(f"'%{name}{{{how}}}' is not known; %k and %v take {list(_AS)}")
        parts.append(_ESCAPES[escape] if escape else b"%" if name == "%" else directive(name, how))
    parts.append(literal(text[position:]))

    def render(record: AnyRecord) -> bytes:
        return b"".join(part if isinstance(part, bytes) else part(record) for part in parts)

    return render


def literal(text: str) -> bytes:
    if stray := re.search(r"%.?", text):
        raise click.UsageError(f"'{stray[0]}' is not known in a format; known: %t %p %o %k %v …")
    return text.encode()


def directive(name: str, how: str | None) -> Callable[[AnyRecord], bytes]:
    convert = _AS[how] if how else bytes
    table: dict[str, Callable[[AnyRecord], bytes]] = {
        "t": lambda r: r.topic.encode(),
        "p": lambda r: b"%d" % r.partition,
        "o": lambda r: b"%d" % r.offset,
        "k": lambda r: b"" if r.raw_key is None else convert(r.raw_key),
        "v": lambda r: b"" if r.raw_value is None else convert(r.raw_value),
        "h": lambda r: headers_text(r.headers).encode(),
        "d": lambda r: b"%d" % r.timestamp,
        "a": lambda r: b"%d" % r.append_time,
    }
    return table[name]


def headers_text(headers: list[tuple[str, bytes | None]]) -> str:
    return ",".join(
        name if value is None else f"{name}={value.decode(errors='replace')}"
        for name, value in headers
    )


def terminal_line(record: AnyRecord, decode: Decode) -> str:
    """``p0@12  10:01:02.123  key  value``, control characters made visible."""
    moment = datetime.fromtimestamp(record.timestamp / 1_000)
    clock = f"{moment:%H:%M:%S}.{moment.microsecond // 1_000:03d}"
    key = shown(record.raw_key, decode, key=True)
    value = shown(record.raw_value, decode)
    return f"p{record.partition}@{record.offset}  {clock}  {key}  {value}"


def shown(data: bytes | None, decode: Decode, *, key: bool = False) -> str:
    if data is None:
        return "-" if key else "(tombstone)"
    value, encoding = encode_bytes(data, decode, key=key)
    text = compact(value) if encoding in ("json", "msgpack") else str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def document(record: AnyRecord, decode: Decode) -> dict[str, object]:
    """The record JSON of a consumed record."""
    return record_document(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        append_time=record.append_time,
        key=record.raw_key,
        value=record.raw_value,
        headers=record.headers,
        size_bytes=record.size_bytes,
        decode=decode,
    )
