"""How a line of input becomes a record: the options of ``produce``, pure."""

import os
from collections.abc import Callable

import click

from tailrace.protocol import texts_cli
from tailrace.protocol.record_json import InputRecord, parse_line

Parse = Callable[[bytes, int], InputRecord]  # (line, its number from 1)
HeaderColumn = tuple[tuple[str, bytes | None], ...]


def line_parser(
    delimiter: str | None, ndjson: bool, key: str | None, headers: HeaderColumn
) -> Parse:
    """How a line becomes a record; the returned function raises InputError T062."""
    fixed_key = encoded(key)
    divider = encoded(delimiter) or b""

    def plain(line: bytes, number: int) -> InputRecord:
        return InputRecord(fixed_key, line, None, headers)

    def split(line: bytes, number: int) -> InputRecord:
        found, separator, value = line.partition(divider)
        if not separator:
            raise texts_cli.invalid_input(reason=f"no {delimiter!r} in it", line=number)
        return InputRecord(found, value, None, headers)

    def json_line(line: bytes, number: int) -> InputRecord:
        record = parse_line(line, line=number)
        own_key = fixed_key if record.key is None else record.key
        own_headers = (*record.headers, *headers)
        return InputRecord(own_key, record.value, record.timestamp, own_headers)

    return json_line if ndjson else plain if delimiter is None else split


def encoded(text: str | None) -> bytes | None:
    """The bytes of an argument, exactly as the shell gave them."""
    return None if text is None else os.fsencode(text)


def parse_headers(pairs: tuple[str, ...]) -> HeaderColumn:
    """``NAME=VALUE`` options."""
    found: list[tuple[str, bytes | None]] = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"-H takes NAME=VALUE, not '{pair}'")
        found.append((name, encoded(value)))
    return tuple(found)


def parse_rate(text: str | None) -> float | None:
    """``100/s`` or ``100``, in records a second."""
    if text is None:
        return None
    try:
        rate = float(text.removesuffix("/s"))
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1e9:
        raise click.UsageError(f"--rate takes a number of records a second, not '{text}'")
    return rate
