"""Removing records over HTTP: log starts that move up, and erasures."""

import uuid
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct, field

from tailrace.broker.erasure import KEYS_MAX, RECORDS_MAX
from tailrace.broker.http_endpoint import (
    PARTITION_MAX,
    Body,
    Context,
    Endpoint,
    Number,
    Parameter,
    Reply,
)
from tailrace.broker.http_topics import TOPIC, TOPIC_NAME
from tailrace.protocol import shaping, texts_http
from tailrace.protocol.messages import (
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    EraseRequest,
    ErasureResponse,
    GetErasureRequest,
    RecordPosition,
    StartOffset,
)
from tailrace.protocol.shapes import ErasureReceipt

HIGH_WATERMARK = -1  # in DeleteRecords
ERASURES = f"{TOPIC}/erasures"


@dataclass(frozen=True)
class LogStart:
    """Where a partition now begins."""

    partition: int
    log_start: int


@dataclass(frozen=True)
class LogStarts:
    """Of the partitions asked for."""

    partitions: list[LogStart]


class NewErasure(Struct, forbid_unknown_fields=True):
    """Records to be erased: those with a key, in base64, and single ones, (partition, offset)."""

    keys: Annotated[list[bytes], Meta(max_length=KEYS_MAX)] = field(default_factory=list[bytes])
    records: Annotated[
        list[tuple[Annotated[int, Meta(ge=0, le=PARTITION_MAX)], Number]],
        Meta(max_length=RECORDS_MAX),
    ] = field(default_factory=list[tuple[int, int]])


def read_before(text: str) -> int:
    if text == "end":
        return HIGH_WATERMARK
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError("an offset or end")
    return int(text)


def read_id(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ValueError("the id of an erasure, a UUID") from None


async def delete_records(context: Context) -> Reply:
    topic, partition = context.values["topic"], context.values["partition"]
    request = DeleteRecordsRequest(topic, (StartOffset(partition, context.values["before"]),))
    response, _ = await context.gateway.ask_leader(topic, partition, request, DeleteRecordsResponse)
    return Reply(LogStarts([LogStart(one.partition, one.offset) for one in response.partitions]))


async def erase(context: Context) -> Reply:
    new: NewErasure = context.document
    if not new.keys and not new.records:
        raise texts_http.bad_request("neither keys nor records to erase are given")
    request = EraseRequest(
        context.gateway.new_uuid().bytes,
        context.values["topic"],
        tuple(dict.fromkeys(new.keys)),
        tuple(RecordPosition(*record) for record in dict.fromkeys(new.records)),
    )
    response = await context.gateway.ask(request, ErasureResponse)
    return Reply(shaping.erasure_receipt(response), 202)


async def get_erasure(context: Context) -> Reply:
    request = GetErasureRequest(context.values["topic"], context.values["id"], 0)
    return Reply(shaping.erasure_receipt(await context.gateway.ask(request, ErasureResponse)))


ENDPOINTS = (
    Endpoint(
        *("DELETE", f"{TOPIC}/records", "delete_records", "Remove the records below an offset"),
        delete_records,
        {200: LogStarts},
        (
            TOPIC_NAME,
            Parameter("partition", "Its number.", int, required=True, high=PARTITION_MAX),
            Parameter(
                *("before", "The first offset to stay, or `end`: all there are by now go."),
                required=True,
                pattern="^([0-9]{1,18}|end)$",
                parse=read_before,
            ),
        ),
        errors=("T010", "T011", "T013", "T041", "T093"),
    ),
    Endpoint(
        *("POST", ERASURES, "erase", "Erase records for good; the receipt tells when", erase),
        {202: ErasureReceipt},
        (TOPIC_NAME,),
        Body(NewErasure),
        ("T010", "T011", "T013", "T041", "T034", "T100"),
    ),
    Endpoint(
        *("GET", f"{ERASURES}/{{id}}", "get_erasure", "How far an erasure is", get_erasure),
        {200: ErasureReceipt},
        (
            TOPIC_NAME,
            Parameter(
                *("id", "As its receipt has it."),
                required=True,
                pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
                parse=read_id,
            ),
        ),
        errors=("T010",),
    ),
)
