"""The records of a POST, one after the other: a document of JSON or a line each (pure).

A body is never parsed as a whole: 16 MiB of ``[[],[],…`` would be 350 MiB of lists. It is cut into
records by a scan that builds nothing; each record is parsed alone, within the bounds of
``read_record``. Both are generators that come back often, with None while they are at it, so that
whoever runs them can let others run.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tailrace.broker.http_errors import Refused
from tailrace.protocol import texts, texts_cli, texts_http
from tailrace.protocol.columns import TIMESTAMP_MAX
from tailrace.protocol.errors import InputError, TailraceError
from tailrace.protocol.packing import ARRAY_LENGTH_MAX
from tailrace.protocol.record_json import InputRecord, parse_line

RECORDS_MAX = 10_000  # of one request
HEADERS_MAX = ARRAY_LENGTH_MAX  # of one record
HEADER_OVERHEAD_BYTES = 8  # of max_record, as in the SDK
ELEMENTS_MAX = 100_000  # of one record's JSON: some 64 bytes of memory for each
LINE_OVERHEAD_BYTES = 65_536  # names, blanks and escapes around a record; twice max_record and this
TOKENS_MAX = 8 * ELEMENTS_MAX  # of one value: nobody scans on to see where such a thing ends
STEP_TOKENS = 1_000  # some 0.5 ms
ACKS = ("all", "1")
HINT = 'A record is {"value": …}, see the record JSON in docs/http.md.'

# Possessive: else a string of 8 MB of escapes takes 500 MB to match.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},:]|"|[^\s"\[\]{},:]++', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_OPEN, _CLOSED = (b"{", b"["), (b"}", b"]")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the topic says of its records. Times in ms."""

    topic: str
    record_bytes_max: int
    timestamp_max: int  # what the broker would take now
    ahead_max_s: float  # the setting that this comes from

    @property
    def line_bytes_max(self) -> int:
        return 2 * self.record_bytes_max + LINE_OVERHEAD_BYTES


@dataclass(slots=True)
class Intake:
    """What a body holds, in its order."""

    records: list[InputRecord | TailraceError] = field(
        default_factory=list[InputRecord | TailraceError]
    )
    acks: str | None = None  # as the document says


def read_lines(body: bytes, limits: Limits, intake: Intake) -> Iterator[None]:
    """A record per line; a last line without ``\\n`` counts. 413 for more than 10,000."""
    start = number = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        number += 1
        _add(intake, body, start, end, limits, line=number)
        start = end + 1
        yield


def read_document(body: bytes, limits: Limits, intake: Intake) -> Iterator[None]:
    """``{"records": […], "acks": "all"}``; T062 for anything else, 413 for more."""
    scan = _Scan(body)
    yield from _read_object(scan, limits, intake)
    if scan.token != b"":
        raise _malformed("there is something behind the document")


class _Scan:
    """The tokens of a document, one at hand: ``token`` is b"" at the end."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.token = b""
        self.start = self.end = 0  # of the token
        self.end_of_value = 0  # that was skipped last
        self.taken = 0
        self._found = _TOKEN.finditer(body)
        self.step()

    def step(self) -> None:
        found = next(self._found, None)
        self.taken += 1
        if found is None:
            self.token, self.start = b"", len(self.body)
            return
        self.start, end = found.span()
        # A long string's own bytes are of no interest here, and a copy of them costs.
        self.token = self.body[self.start : self.start + 1] if end - self.start > 64 else found[0]
        self.end = end

    def expect(self, token: bytes) -> None:
        if self.token != token:
            raise _malformed(f"{token.decode()} is expected at byte {self.start:,}")
        self.step()

    def skip_value(self) -> Iterator[None]:
        """Past one value, whatever it holds; brackets need not match, the parser sees to that."""
        depth, tokens_max = 0, self.taken + TOKENS_MAX
        while True:
            if self.taken > tokens_max:
                raise _malformed(f"one value has more than {TOKENS_MAX:,} parts")
            if self.token == b"":
                raise _malformed("it ends too early")
            if self.token in _OPEN:
                depth += 1
            elif self.token in _CLOSED:
                depth -= 1
            end = self.end
            self.step()
            if self.taken % STEP_TOKENS == 0:
                yield
            if depth <= 0:
                self.end_of_value = end
                return


def _read_object(scan: _Scan, limits: Limits, intake: Intake) -> Iterator[None]:
    scan.expect(b"{")
    seen: set[bytes] = set()
    while scan.token != b"}" or seen:
        name = scan.token
        if name in seen:
            raise _malformed(f"{name.decode(errors='replace')} stands there twice")
        scan.step()
        scan.expect(b":")
        if name == b'"records"':
            yield from _read_records(scan, limits, intake)
        elif name == b'"acks"':
            start = scan.start
            yield from scan.skip_value()
            intake.acks = _acks(scan.body[start : scan.end_of_value][:64])
        else:
            known = '"records" and "acks"'
            raise _malformed(f"{name.decode(errors='replace')} is none of {known}")
        seen.add(name)
        if scan.token == b"}":
            break
        scan.expect(b",")
    scan.step()
    if b'"records"' not in seen:
        raise _malformed('the field "records" is missing')


def _read_records(scan: _Scan, limits: Limits, intake: Intake) -> Iterator[None]:
    scan.expect(b"[")
    while scan.token != b"]" or intake.records:
        start = scan.start
        yield from scan.skip_value()
        _add(intake, scan.body, start, scan.end_of_value, limits, line=None)
        yield
        if scan.token == b"]":
            break
        scan.expect(b",")
    scan.step()


def _acks(text: bytes) -> str:
    try:
        value: object = json.loads(text)
    except ValueError:
        value = None
    name = "1" if value == 1 and value is not True else value
    if not isinstance(name, str) or name not in ACKS:
        raise _malformed('"acks" is none of "all" and 1')
    return name


def _malformed(reason: str) -> TailraceError:
    return texts_http.bad_request(f"the body is no document of records: {reason}", hint=HINT)


# ── one record ───────────────────────────────────────────────────────────────────────────────


def _add(
    intake: Intake, body: bytes, start: int, end: int, limits: Limits, *, line: int | None
) -> None:
    if len(intake.records) >= RECORDS_MAX:
        raise Refused(413, texts_http.too_many_records(RECORDS_MAX))
    try:
        size = end - start
        if size > limits.line_bytes_max:
            raise texts.record_too_large(limits.topic, size=size, limit=limits.record_bytes_max)
        intake.records.append(read_record(body[start:end], limits, line=line))
    except TailraceError as error:
        # Kept for the answer, without the frames it came through: 2 KB for each bad line.
        error.__cause__ = error.__context__ = None
        intake.records.append(error.with_traceback(None))


def read_record(text: bytes, limits: Limits, *, line: int | None) -> InputRecord:
    """One record, as the topic takes it. Raises T062, T021 and T022."""
    if _elements(text) > ELEMENTS_MAX:
        raise texts_cli.invalid_input(
            f"more than {ELEMENTS_MAX:,} elements in one record", line=line, hint=HINT
        )
    try:
        record = parse_line(text, line=line)
    except InputError as error:
        raise InputError(error.code, error.message, HINT, line=line) from error
    if len(record.headers) > HEADERS_MAX:
        raise texts_cli.invalid_input(
            f"{len(record.headers):,} headers, a record has {HEADERS_MAX:,} at most",
            line=line,
            hint=HINT,
        )
    size = record_bytes(record)
    if size > limits.record_bytes_max:
        raise texts.record_too_large(limits.topic, size=size, limit=limits.record_bytes_max)
    _check_timestamp(record.timestamp, limits)
    return record


def record_bytes(record: InputRecord) -> int:
    """As the SDK counts it against max_record."""
    size = len(record.key or b"") + len(record.value or b"")
    return size + sum(
        len(name.encode()) + len(data or b"") + HEADER_OVERHEAD_BYTES
        for name, data in record.headers
    )


def _check_timestamp(timestamp: int | None, limits: Limits) -> None:
    if timestamp is None:
        return
    if timestamp < 0:
        raise texts.timestamp_negative(limits.topic, None, timestamp=timestamp)
    limit = min(limits.timestamp_max, TIMESTAMP_MAX)
    if timestamp > limit:
        raise texts.timestamp_ahead(
            limits.topic,
            None,
            timestamp=timestamp,
            limit=limit,
            ahead_max_s=limits.ahead_max_s,
        )


def _elements(text: bytes) -> int:
    """At least as many as building the JSON value would make; cheap where there are few."""
    if len(text) <= ELEMENTS_MAX or _marks(text) <= ELEMENTS_MAX:
        return 0
    return _marks(_STRING.sub(b"", text))  # what stands in strings is no element


def _marks(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")
