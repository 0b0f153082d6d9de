"""The record batch: the same bytes in a producer, on the wire, on disk and in a consumer.

The grammar is docs/log_format.md. One entry is a prefix (24 bytes), Kafka's RecordBatch v2
header (61 bytes, field for field) and a records section. Invariants:

- every bit of an entry lies under the header check H or the payload checksum P (R24);
- H is seeded with topic and partition: a batch sent, written or served elsewhere fails it;
- whoever appends changes bytes 0-3, 16-31 and 36-39 only, none of which lie under P;
- the broker looks at header fields alone; columns are opened by whoever reads the records.

Not here: batches of payload format 0 (Kafka's records) pass through ``parse_header`` and
``scan_one``, but are neither made nor opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, pack
from typing import Literal

from xxhash import xxh3_64, xxh3_64_intdigest, xxh32_intdigest

from tailrace.protocol import compression as codecs
from tailrace.protocol.batch_header import (
    ATTRIBUTE_COMPRESSION,
    ATTRIBUTE_DELETE_HORIZON,
    BATCH_LENGTH_MAX,
    BATCH_LENGTH_MIN,
    CHECKED_FROM,
    FORMAT_COLUMNS,
    FORMAT_KAFKA,
    HEADER_BYTES,
    KAFKA_MAGIC,
    LENGTH_FROM,
    MAGIC,
    PAYLOAD_FROM,
    PREFIX_BYTES,
    VERSION,
    BatchHeader,
    Buffer,
    foreign,
    malformed,
    parse_header,
    read_header,
)
from tailrace.protocol.columns import (
    RECORDS_MAX,
    BatchError,
    Columns,
    RecordHeaders,
    columns_of,
    pack_columns,
    unpack_columns,
)
from tailrace.protocol.compression import Compression
from tailrace.protocol.texts import batch_refused, timestamp_ahead

__all__ = [
    "ATTRIBUTE_COMPRESSION",
    "ATTRIBUTE_DELETE_HORIZON",
    "BATCH_LENGTH_MAX",
    "FORMAT_COLUMNS",
    "FORMAT_KAFKA",
    "HEADER_BYTES",
    "PREFIX_BYTES",
    "RECORDS_MAX",
    "BadBatch",
    "BatchError",
    "BatchHeader",
    "Buffer",
    "Columns",
    "Compression",
    "EndOfLog",
    "RecordHeaders",
    "decode_columns",
    "encode_batch",
    "encode_entry",
    "header_ok",
    "header_seed",
    "is_compressed",
    "parse_header",
    "patch",
    "payload_ok",
    "scan_one",
    "verify_produced",
]

_CHECKED = Struct(">HBBQqqiibI")  # bytes 4 to 44
_PAYLOAD_HEAD = Struct(">hiqqqhii")  # bytes 45 to 84
_PATCH_TIME_AND_OFFSET = Struct(">qq")  # at 16
_PATCH_EPOCH = Struct(">i")  # at 36
_ATTRIBUTES_LOW = PAYLOAD_FROM + 1  # the low byte of the attributes


@dataclass(frozen=True, slots=True)
class EndOfLog:
    """No batch here: fewer than 85 bytes are left, or 85 zero bytes."""


BadReason = Literal["magic", "version", "format", "header", "torn", "payload", "malformed"]


@dataclass(frozen=True, slots=True)
class BadBatch:
    """Bytes that are no valid batch; torn tail or corruption depends on where they lie (R25)."""

    reason: BadReason
    # What H vouches for: then the offsets and the place of the next batch are known all the same.
    header: BatchHeader | None = None


def header_seed(topic_id: bytes, partition: int) -> int:
    """The seed of every header check of one partition. ``topic_id``: 16 bytes."""
    assert len(topic_id) == 16
    return xxh32_intdigest(topic_id + pack(">i", partition))


def header_ok(data: Buffer, position: int, seed: int) -> bool:
    """Whether H holds for the header at ``position`` (85 bytes must be there)."""
    view = memoryview(data)
    check = int.from_bytes(view[position : position + CHECKED_FROM])
    return xxh32_intdigest(view[position + CHECKED_FROM : position + PAYLOAD_FROM], seed) == check


def payload_ok(data: Buffer, position: int, size: int) -> bool:
    """Whether P holds for the entry of ``size`` bytes at ``position``."""
    view = memoryview(data)
    check = int.from_bytes(view[position + 8 : position + 16])
    return xxh3_64_intdigest(view[position + PAYLOAD_FROM : position + size]) == check


def scan_one(data: memoryview, position: int, seed: int) -> BatchHeader | EndOfLog | BadBatch:
    """What stands at ``position`` of a log: a whole valid batch, its end, or something else.

    Looks in the order in which each step makes the next one safe: magic, version and format; H;
    length; P; then the limits on the fields.
    """
    left = len(data) - position
    if left < HEADER_BYTES:
        return EndOfLog()
    header = read_header(data, position)
    if unknown := foreign(header):
        if not any(data[position : position + HEADER_BYTES]):
            return EndOfLog()
        return BadBatch(unknown)
    if not header_ok(data, position, seed):
        return BadBatch("header")
    if not BATCH_LENGTH_MIN <= header.batch_length <= BATCH_LENGTH_MAX:
        return BadBatch("malformed")
    if header.size_bytes > left:
        return BadBatch("torn", header)
    if not payload_ok(data, position, header.size_bytes):
        return BadBatch("payload", header)
    if malformed(header) is not None:
        return BadBatch("malformed", header)
    return header


def patch(
    entry: memoryview | bytearray,
    *,
    seed: int,
    base_offset: int,
    leader_epoch: int,
    append_time: int,
) -> None:
    """Give a verified batch its place in the log, in the bytes as they came; P stays true."""
    _PATCH_TIME_AND_OFFSET.pack_into(entry, 16, append_time, base_offset)
    _PATCH_EPOCH.pack_into(entry, LENGTH_FROM, leader_epoch)
    check = xxh32_intdigest(memoryview(entry)[CHECKED_FROM:PAYLOAD_FROM], seed)
    entry[:CHECKED_FROM] = check.to_bytes(CHECKED_FROM)


def verify_produced(
    entry: memoryview | bytes | bytearray,
    seed: int,
    now_ms: int,
    ahead_max_ms: float,
    *,
    topic: str,
    partition: int,
) -> BatchHeader:
    """The header of a batch that a producer may have appended. Columns stay closed.

    ``entry`` must be exactly one batch. ``topic`` and ``partition`` are for the error's text.
    Raises ``BatchRefused`` T028, or ``InvalidTimestamp`` T022 when the largest timestamp is more
    than ``ahead_max_ms`` (may be infinite) ahead of ``now_ms``.
    """
    try:
        header = parse_header(entry)
    except BatchError as error:
        raise batch_refused(topic, partition, reason=error.reason) from error
    if reason := _refusal(header, entry, seed):
        raise batch_refused(topic, partition, reason=reason)
    if header.max_timestamp > now_ms + ahead_max_ms:
        raise timestamp_ahead(
            topic,
            partition,
            timestamp=header.max_timestamp,
            limit=int(now_ms + ahead_max_ms),
            ahead_max_s=ahead_max_ms / 1000,
        )
    return header


def encode_batch(
    seed: int,
    *,
    values: list[bytes | None],
    keys: list[bytes | None] | None = None,
    timestamps: Sequence[int] | int,
    headers: Sequence[RecordHeaders | None] | None = None,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    compression: Compression = "none",
) -> bytes:
    """A producer's batch of ``len(values)`` records, 1 to 10,000.

    ``timestamps`` in ms: one per record, or one for all. Compressed only where that pays and a
    reader would take it. Raises ``BatchError`` for records that make no valid batch.
    """
    if not values:
        raise BatchError("no records")
    return encode_entry(
        seed,
        columns_of(values, keys, timestamps, headers),
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
        compression=compression,
    )


def encode_entry(
    seed: int,
    columns: Columns,
    *,
    base_offset: int = 0,
    last_offset_delta: int | None = None,
    leader_epoch: int = -1,
    append_time: int = -1,
    attributes: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    compression: Compression = "none",
) -> bytes:
    """A batch with every field as given: what a leader, compaction or erasure leaves in a log.

    ``last_offset_delta`` is the last record's unless records behind it were removed;
    ``attributes`` without the compression bits. Raises ``BatchError``.
    """
    if last_offset_delta is None:
        last_offset_delta = columns.last_offset_delta()
    max_timestamp = columns.max_timestamp()
    document = pack_columns(
        columns, max_timestamp=max_timestamp, last_offset_delta=last_offset_delta
    )
    section, codec = _compress(document, codecs.NAMES.index(compression))
    if len(section) > BATCH_LENGTH_MAX - BATCH_LENGTH_MIN:
        raise BatchError(f"{len(section)} bytes of records do not fit into a batch")
    payload_head = _PAYLOAD_HEAD.pack(
        attributes | codec,
        last_offset_delta,
        columns.base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        len(columns.values),
    )
    payload = xxh3_64(payload_head)
    payload.update(section)
    checked = _CHECKED.pack(
        MAGIC,
        VERSION,
        FORMAT_COLUMNS,
        payload.intdigest(),
        append_time,
        base_offset,
        BATCH_LENGTH_MIN + len(section),
        leader_epoch,
        KAFKA_MAGIC,
        0,
    )
    header_check = xxh32_intdigest(checked, seed).to_bytes(CHECKED_FROM)
    return b"".join((header_check, checked, payload_head, section))


def is_compressed(entry: Buffer) -> bool:
    """Whether the records section of this batch is: the header must be there."""
    return bool(entry[_ATTRIBUTES_LOW] & ATTRIBUTE_COMPRESSION)


def decode_columns(entry: Buffer, header: BatchHeader) -> Columns:
    """The records of ``entry``, of which ``header`` is the header. Checks the columns, not P.

    Raises ``BatchError`` for anything but the grammar, within the bounds of ``packing``.
    """
    if header.payload_format != FORMAT_COLUMNS:
        raise BatchError(f"payload format {header.payload_format} is not columns")
    if len(entry) < header.size_bytes:
        raise BatchError(f"{len(entry)} bytes, the batch has {header.size_bytes}")
    document: bytes | memoryview = memoryview(entry)[HEADER_BYTES : header.size_bytes]
    codec = header.attributes & ATTRIBUTE_COMPRESSION
    if codec != codecs.NONE:
        try:
            document = codecs.decompress(document, codec)
        except codecs.CompressionError as error:
            raise BatchError(str(error)) from error
    return unpack_columns(
        document,
        count=header.record_count,
        base_timestamp=header.base_timestamp,
        max_timestamp=header.max_timestamp,
        last_offset_delta=header.last_offset_delta,
    )


def _compress(document: bytes, codec: int) -> tuple[bytes, int]:
    """The records section and the compression it has."""
    if len(document) > codecs.DOCUMENT_BYTES_MAX:
        raise BatchError(f"{len(document)} bytes of records do not fit into a batch")
    if codec != codecs.NONE:
        try:
            frame = codecs.compress(document, codec)
        except codecs.CompressionError as error:
            raise BatchError(str(error)) from error
        if frame is not None:
            return frame, codec
    return document, codecs.NONE


def _refusal(header: BatchHeader, entry: Buffer, seed: int) -> str | None:
    """Why a well-formed header is none that a producer sends, or ``None``."""
    if header.size_bytes != len(entry):
        return f"{len(entry)} bytes sent, the header says {header.size_bytes}"
    if not header_ok(entry, 0, seed):
        return "header check does not match (damaged, or meant for another partition)"
    if not payload_ok(entry, 0, header.size_bytes):
        return "payload checksum does not match"
    if header.payload_format != FORMAT_COLUMNS:
        return f"payload format {header.payload_format} is not accepted from this client"
    if (header.append_time, header.base_offset, header.leader_epoch) != (-1, 0, -1):
        return "append time, base offset and leader epoch are for the leader to set"
    if header.attributes & ~ATTRIBUTE_COMPRESSION:
        return f"attributes {header.attributes:#x}: only compression may be set"
    if header.record_count < 1 or header.last_offset_delta != header.record_count - 1:
        return f"record count {header.record_count}, last offset delta {header.last_offset_delta}"
    if header.producer_id >= 0 and header.base_sequence < 0:
        return "a producer id without a sequence"
    if header.base_timestamp > header.max_timestamp:
        return "base timestamp is above max timestamp"
    return None
