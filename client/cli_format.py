"""How a record becomes a line: the FORMAT of ``consume`` and ``tail``, and the default shapes."""

import base64
import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO

import click

from tailrace.client.records import Batch, Record
from tailrace.protocol.console import Console
from tailrace.protocol.record_json import Decode, compact, printable, record_document

AnyRecord = Record[bytes, bytes]
Write = Callable[[Batch[bytes, bytes]], object]
_DIRECTIVE = re.compile(r"%([tpokvhda%])(?:\{(\w+)\})?|\\([nt\\])")
_ESCAPES = {"n": b"\n", "t": b"\t", "\\": b"\\"}
_AS: dict[str, Callable[[bytes], bytes]] = {
    "hex": lambda data: data.hex().encode(),
    "base64": base64.b64encode,
    "json": lambda data: json.dumps(data.decode(errors="replace")).encode(),
}


def printer(
    console: Console, template: str | None, decode: Decode
) -> tuple[Write, Callable[[], None]]:
    """How batches are printed by the options, and what is left to print at the end."""
    if template is not None and console.output != "table":
        raise click.UsageError(f"a format does not go with -O {console.output}")
    out = sys.stdout.buffer
    if console.output == "json":
        records: list[dict[str, object]] = []
        return (
            lambda batch: records.extend(document(record, decode) for record in batch),
            lambda: click.echo(compact({"records": records})),
        )

    def each(render: Callable[[AnyRecord], bytes]) -> Write:
        return lambda batch: out.write(b"".join(map(render, batch)))

    if console.output == "ndjson":
        write = each(lambda record: compact(document(record, decode)).encode() + b"\n")
    elif template is not None:
        write = each(compile_format(template))
    elif sys.stdout.isatty():
        write = each(lambda record: terminal_line(record, decode).encode() + b"\n")
    elif decode != "auto":
        write = each(lambda record: value_text(record, decode).encode() + b"\n")
    else:
        write = values_only(out)
    return write, lambda: None


def values_only(out: BinaryIO) -> Write:
    """The default off a terminal: bytes in, the same bytes out, no ``Record`` made."""
    return lambda batch: out.write(b"\n".join([v or b"" for v in batch.values]) + b"\n")


def value_text(record: AnyRecord, decode: Decode) -> str:
    value = document(record, decode)["value"]
    return value if isinstance(value, str) else compact(value)


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
    key = printable(record.raw_key, decode, key=True)
    value = printable(record.raw_value, decode)
    return f"p{record.partition}@{record.offset}  {clock}  {key}  {value}"


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
