"""Records over HTTP: written as they come, read page by page. Tails are in ``http_tail.py``."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import trio
from starlette.responses import Response

from tailrace.broker.feeds import Feeds
from tailrace.broker.gateway import Gateway
from tailrace.broker.http_endpoint import (
    JSON,
    NDJSON,
    PARTITION_MAX,
    Body,
    Context,
    Endpoint,
    Parameter,
    one_of,
)
from tailrace.broker.http_errors import error_text, headers_of, status_of
from tailrace.broker.http_guard import FREE_BYTES
from tailrace.broker.http_intake import ACKS, Intake, Limits, read_document, read_lines
from tailrace.broker.http_pages import Page
from tailrace.broker.http_produce import Outcome, Written, write
from tailrace.broker.record_reading import Place
from tailrace.protocol import texts, texts_http
from tailrace.protocol.errors import (
    OffsetOutOfRange,
    TailraceError,
    TopicNotFound,
)
from tailrace.protocol.messages import TopicMetadata
from tailrace.protocol.positions import FORMS, Position, parse_position
from tailrace.protocol.record_json import InputRecord
from tailrace.protocol.units import parse_duration_s

RECORDS = "/api/v1/topics/{topic}/records"
POST_BYTES_MAX = 8 * 1024 * 1024  # of a body: it stands in memory, and so do its records
LIMIT_MAX = 1_000
WAIT_S_MAX = 30.0
READ_S = 0.001  # of a body, between two checkpoints
SEND_BYTES = 32_768
RESULT_BYTES = 64  # of a record that was written
RESULTS_STEP = 200  # results written between two checkpoints, some 0.3 ms
DECODES = ("auto", "json", "msgpack", "utf8", "base64", "hex")


# ── writing ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class WrittenRecord:
    """Where a record stands, durable by its acks."""

    partition: int
    offset: int
    append_time: int  # ms


@dataclass(frozen=True)
class RefusedRecord:
    """Why a record was not written, or may not have been."""

    error: dict[str, Any]


@dataclass(frozen=True)
class WriteResults:
    """One result per record, in the order of the body."""

    results: Annotated[list[Any], one_of(WrittenRecord, RefusedRecord)]
    written: int
    failed: int


async def produce_records(context: Context) -> Response:
    """Everything is read and routed before anything is written."""
    name: str = context.values["topic"]
    topic = await _topic_if_any(context, name)
    intake = await _read(context, _limits(context, name, topic))
    given: str | None = context.values["acks"]
    if given is not None and intake.acks not in (None, given):
        raise texts_http.bad_request(f"acks is {given} in the query and {intake.acks} in the body")
    acks = given or intake.acks or "all"
    context.answer.hold(_result_bytes(intake))  # T123, before anything is done
    if topic is None and any(isinstance(one, InputRecord) for one in intake.records):
        topic = await context.gateway.topic(name, auto_create=True)
    outcomes: Sequence[Outcome] = [one for one in intake.records if isinstance(one, TailraceError)]
    if topic is not None:
        outcomes = await write(context.gateway, topic, intake.records, acks=acks)
    return await _results(outcomes)


async def _topic_if_any(context: Context, name: str) -> TopicMetadata | None:
    """The topic, or None if a record would create it."""
    try:
        return await context.gateway.topic(name)
    except TopicNotFound:
        if not context.config.broker.auto_create:
            return await context.gateway.topic(name, auto_create=True)  # which says that it is off
        return None


def _limits(context: Context, name: str, topic: TopicMetadata | None) -> Limits:
    node = context.gateway.node
    known = node.topics.catalog.find(name)
    config = context.config.topic if known is None else node.topics.config_of(known)
    return Limits(
        topic=name,
        record_bytes_max=config.max_record_bytes if topic is None else topic.record_bytes_max,
        timestamp_max=node.world.clock.wall_ms() + config.timestamp_ahead_max_ms,
        ahead_max_s=config.timestamp_ahead_max_ms / 1000,
    )


async def _read(context: Context, limits: Limits) -> Intake:
    intake = Intake()
    reading = read_lines if context.content_type == NDJSON else read_document
    began = trio.current_time()
    for _ in reading(context.body, limits, intake):
        if trio.current_time() - began >= READ_S:
            await trio.lowlevel.checkpoint()
            began = trio.current_time()
    return intake


def _result_bytes(intake: Intake) -> int:
    """What the answer takes if all goes well with what can be read."""
    failed = [one for one in intake.records if isinstance(one, TailraceError)]
    errors = sum(len(one.message) + len(one.hint) + RESULT_BYTES for one in failed)
    size_bytes = errors + (len(intake.records) - len(failed)) * RESULT_BYTES
    return size_bytes if size_bytes > FREE_BYTES else 0


async def _results(outcomes: Sequence[Outcome]) -> Response:
    """200 if all were written, 207 if some, else the first error's status."""
    parts: list[bytes] = []
    for first in range(0, len(outcomes), RESULTS_STEP):
        parts.append(",".join(map(_result, outcomes[first : first + RESULTS_STEP])).encode())
        await trio.lowlevel.checkpoint()
    failed = [one for one in outcomes if isinstance(one, TailraceError)]
    written = len(outcomes) - len(failed)
    end = f'],"written":{written},"failed":{len(failed)}'
    status, headers = 200 if not failed else 207, dict[str, str]()
    if failed and not written:
        status = status_of(failed[0])
        headers = headers_of(failed[0], status)
        end += f',"error":{error_text(failed[0])}'
    body = b"".join((b'{"results":[', b",".join(parts), end.encode(errors="replace"), b"}"))
    return Response(body, status, headers, media_type=JSON)


def _result(outcome: Outcome) -> str:
    if isinstance(outcome, Written):
        return (
            f'{{"partition":{outcome.partition},"offset":{outcome.offset},'
            f'"append_time":{outcome.append_time}}}'
        )
    return f'{{"error":{error_text(outcome)}}}'


# ── reading ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RecordDocument:
    """One record. ``value_encoding`` says how its bytes became JSON."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # ms, the producer's
    append_time: int  # ms, the leader's
    key: str | None
    key_encoding: str
    value: Any
    value_encoding: str
    headers: list[tuple[str, Any]]  # text, null or {"base64": text}
    size_bytes: int


@dataclass(frozen=True)
class RecordPage:
    """Records in the order of their offsets, and where to go on."""

    records: list[RecordDocument]
    next_offset: int
    log_start: int
    high_watermark: int


class PageResponse(Response):
    """A page that is larger than one piece: the rest is read while it is sent."""

    media_type = JSON

    def __init__(self, page: Page, feeds: Feeds) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._page = page
        self._feeds = feeds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        with self._feeds.holding() as may_hold:
            pieces = self._page.pieces(self._feeds.slots, may_hold=may_hold)
            async with aclosing(pieces):  # where the reader goes, so does what it began
                async for piece in pieces:
                    await send_part(send, piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_part(send: Any, data: bytes) -> None:
    """A part of a body, a little at a time: below here it is copied."""
    view = memoryview(data)
    for first in range(0, len(view), SEND_BYTES):
        some = view[first : first + SEND_BYTES]
        await send({"type": "http.response.body", "body": some, "more_body": True})


async def read_records(context: Context) -> Response:
    """One page; waits for its first record if there is none yet."""
    values = context.values
    place = await find_place(context.gateway, values["topic"], values["partition"])
    feeds = context.gateway.records
    reader = feeds.reader
    try:
        offset = await reader.resolve(place, values["offset"])
        page = Page(
            *(reader, place, offset, context.answer),
            limit=values["limit"],
            decode=values["decode"],
        )
        await page.begin(values["wait"], feeds.slots)
    except OffsetOutOfRange as error:
        raise texts_http.out_of_range(error) from error
    if page.complete and page.waiting_bytes <= FREE_BYTES:
        body = b"".join([piece async for piece in page.pieces(feeds.slots, may_hold=False)])
        return Response(body, media_type=JSON)
    return PageResponse(page, feeds)


async def find_place(gateway: Gateway, topic: str, partition: int) -> Place:
    """T010 or T011 if there is no such partition."""
    found = await gateway.topic(topic)
    return place_of(found, partition)


def place_of(topic: TopicMetadata, partition: int) -> Place:
    """T011 if there is no such partition."""
    if partition >= len(topic.partitions):
        raise texts.partition_not_found(topic.name, partition, partitions=len(topic.partitions))
    return Place(topic.name, topic.topic_id, partition)


# ── parameters ───────────────────────────────────────────────────────────────────────────────


def read_position(text: str) -> Position:
    """As on the command line. ``+`` in a query is a blank, unless it is written ``%2B``."""
    try:
        return parse_position(text.replace(" ", "+"), datetime.now(UTC))
    except ValueError:
        raise ValueError(FORMS) from None


def read_wait(text: str) -> float:
    """Seconds."""
    wanted = f"a duration like 500ms or 10s, at most {WAIT_S_MAX:.0f}s"
    try:
        seconds = parse_duration_s(text)
    except ValueError:
        raise ValueError(wanted) from None
    if seconds > WAIT_S_MAX:
        raise ValueError(wanted)
    return seconds


POSITION_PATTERN = r"^(start|end|-?[0-9]{1,18}|@.+)$"
TOPIC = Parameter("topic", "The topic's name.", required=True)
DECODE = Parameter(
    "decode", "How bytes become JSON.", default="auto", choices=DECODES, example="base64"
)
ENDPOINTS = (
    Endpoint(
        "POST",
        RECORDS,
        "produce_records",
        "Write records: a JSON document, or a record JSON per line",
        produce_records,
        {200: WriteResults, 207: WriteResults},
        parts=(WrittenRecord, RefusedRecord),
        parameters=(
            TOPIC,
            Parameter(
                "acks",
                "`all`: durable; `1`: in the leader's page cache. With NDJSON only here.",
                choices=ACKS,
            ),
        ),
        body=Body(
            None,
            (JSON, NDJSON),
            POST_BYTES_MAX,
            "At most 10,000 records.",
            {
                "type": "object",
                "required": ["records"],
                "additionalProperties": False,
                "properties": {
                    "records": {
                        "type": "array",
                        "maxItems": 10_000,
                        "items": {
                            "type": "object",
                            "required": ["value"],
                            "properties": {
                                "key": {},
                                "key_encoding": {"enum": ["null", "json", "utf8", "base64"]},
                                "value": {},
                                "value_encoding": {"enum": ["null", "json", "utf8", "base64"]},
                                "timestamp": {"type": ["integer", "null"], "minimum": 0},
                                "headers": {"type": ["array", "null"]},
                            },
                        },
                    },
                    "acks": {"enum": [*ACKS, 1]},
                },
            },
        ),
        errors=("T010", "T013", "T021", "T022", "T028", "T030", "T031", "T033", "T020"),
    ),
    Endpoint(
        "GET",
        RECORDS,
        "read_records",
        "A page of records of one partition",
        read_records,
        {200: RecordPage},
        (
            TOPIC,
            Parameter("partition", "Its number.", int, required=True, high=PARTITION_MAX),
            Parameter(
                "offset",
                f"Where to begin: {FORMS}.",
                default=Position("start"),
                pattern=POSITION_PATTERN,
                parse=read_position,
                example="-100",
            ),
            Parameter("limit", "At most so many.", int, 100, low=1, high=LIMIT_MAX),
            DECODE,
            Parameter(
                "wait",
                "How long to wait for a record if there is none: a duration, at most 30s.",
                default=0.0,
                pattern=r"^[0-9]+(\.[0-9]+)?(ms|s)$",
                parse=read_wait,
                example="10s",
            ),
        ),
        errors=("T010", "T011", "T033", "T035", "T041"),
    ),
)
