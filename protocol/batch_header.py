"""The header of a record batch: its 19 fields, and the rules that each of them keeps.

The grammar is docs/log_format.md. Everything here is one struct call and comparisons: it runs for
every batch that passes the broker. The two checksums are looked at in ``batch.py``.
"""

from struct import Struct
from typing import Literal, NamedTuple

from tailrace.protocol import compression as codecs
from tailrace.protocol.columns import RECORDS_MAX, BatchError
from tailrace.protocol.compression import Compression

Buffer = bytes | bytearray | memoryview

MAGIC = 0x5452  # "TR"
VERSION = 1
FORMAT_KAFKA = 0
FORMAT_COLUMNS = 1
KAFKA_MAGIC = 2

PREFIX_BYTES = 24
HEADER_BYTES = 85  # prefix and Kafka's header
CHECKED_FROM = 4  # H covers bytes 4 to 44
PAYLOAD_FROM = 45  # P covers bytes 45 to the end
LENGTH_FROM = 36  # batch length counts the bytes from here on
BATCH_LENGTH_MIN = HEADER_BYTES - LENGTH_FROM
BATCH_LENGTH_MAX = 16 << 20

ATTRIBUTE_COMPRESSION = 0x07
ATTRIBUTE_APPEND_TIME = 0x08
ATTRIBUTE_TRANSACTIONAL = 0x10
ATTRIBUTE_CONTROL = 0x20
ATTRIBUTE_DELETE_HORIZON = 0x40  # the base timestamp is when tombstones here may go
ATTRIBUTES_KNOWN = 0x7F

_OFFSET_MAX = (1 << 63) - 1
_BASE_TIMESTAMP = Struct(">q")  # at 51
_HEADER = Struct(">IHBBQqqiibIhiqqqhii")


class BatchHeader(NamedTuple):
    """The fields of prefix and header, in the order of their bytes; times in ms.

    A named tuple, as one struct call fills it: it is made for every batch that passes by.
    """

    header_check: int
    magic: int
    version: int
    payload_format: int
    payload_checksum: int
    append_time: int  # -1 until the leader sets it
    base_offset: int
    batch_length: int
    leader_epoch: int  # -1 until the leader sets it
    kafka_magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int  # -1: none
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """Of the whole entry."""
        return LENGTH_FROM + self.batch_length

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """The base offset of the entry behind this one, unless the log was cleaned there."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """Sequences wrap at 2^31; -1 where there is none."""
        if self.base_sequence < 0:
            return -1
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF

    @property
    def compression(self) -> Compression:
        return codecs.NAMES[self.attributes & ATTRIBUTE_COMPRESSION]

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & ATTRIBUTE_CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & ATTRIBUTE_TRANSACTIONAL)


def read_header(data: Buffer, position: int) -> BatchHeader:
    """The 85 bytes at ``position``, which must be there, as fields; nothing is checked."""
    return BatchHeader._make(_HEADER.unpack_from(data, position))


def parse_header(data: Buffer, position: int = 0) -> BatchHeader:
    """The header at ``position``, by struct alone: neither H nor P is looked at.

    Raises ``BatchError`` where its fields break the grammar.
    """
    if len(data) - position < HEADER_BYTES:
        raise BatchError(f"{max(len(data) - position, 0)} bytes, a header has {HEADER_BYTES}")
    header = read_header(data, position)
    if unknown := foreign(header):
        raise BatchError(f"unknown {unknown}")
    if reason := malformed(header):
        raise BatchError(reason)
    return header


def base_timestamp(entry: Buffer) -> int:
    """Event time of the first record, of bytes that are known to be a batch."""
    timestamp: int = _BASE_TIMESTAMP.unpack_from(entry, 51)[0]
    return timestamp


def foreign(header: BatchHeader) -> Literal["magic", "version", "format"] | None:
    """Which of the fields that decide how to read the others has an unknown value."""
    if header.magic != MAGIC:
        return "magic"
    if header.version != VERSION:
        return "version"
    if header.payload_format not in (FORMAT_KAFKA, FORMAT_COLUMNS):
        return "format"
    return None


def malformed(header: BatchHeader) -> str | None:
    """What is wrong with the fields of any stored batch, or ``None``."""
    if not BATCH_LENGTH_MIN <= header.batch_length <= BATCH_LENGTH_MAX:
        return f"batch length {header.batch_length} is not in 49..{BATCH_LENGTH_MAX}"
    if header.kafka_magic != KAFKA_MAGIC:
        return f"Kafka magic {header.kafka_magic} is not 2"
    if header.attributes & ~ATTRIBUTES_KNOWN:
        return f"unknown bits in attributes {header.attributes:#x}"
    if not 0 <= header.base_offset <= _OFFSET_MAX - 1 - header.last_offset_delta:
        return f"base offset {header.base_offset} is out of range"
    if header.append_time < -1 or header.leader_epoch < -1:
        return "append time or leader epoch is below -1"
    if not 0 <= header.record_count <= min(RECORDS_MAX, header.last_offset_delta + 1):
        return (
            f"record count {header.record_count} does not go with last offset delta "
            f"{header.last_offset_delta} (at most {RECORDS_MAX})"
        )
    if header.last_offset_delta < 0:
        return f"last offset delta {header.last_offset_delta} is negative"
    if header.is_control and header.record_count > 1:
        return f"{header.record_count} records in a control batch"
    if not _producer_fields_agree(header):
        return "producer id, epoch and sequence do not go together"
    return (
        _malformed_kafka(header)
        if header.payload_format == FORMAT_KAFKA
        else (_malformed_columns(header))
    )


def _malformed_kafka(header: BatchHeader) -> str | None:
    if header.attributes & ATTRIBUTE_COMPRESSION > codecs.ZSTD:
        return f"unknown compression in attributes {header.attributes:#x}"
    if header.base_timestamp < -1 or header.max_timestamp < -1:
        return "timestamp below -1"
    return None


def _malformed_columns(header: BatchHeader) -> str | None:
    codec = header.attributes & ATTRIBUTE_COMPRESSION
    if codec not in codecs.NATIVE or (header.is_control and codec != codecs.NONE):
        return f"compression {codec} is not allowed here"
    if header.attributes & ATTRIBUTE_APPEND_TIME:
        return "append-time timestamps in columns"
    if header.crc:
        return "CRC32C beside columns"
    if header.base_timestamp < 0 or header.max_timestamp < 0:
        return "timestamp below 0"
    return None


def _producer_fields_agree(header: BatchHeader) -> bool:
    if header.producer_id == -1:
        return header.producer_epoch == header.base_sequence == -1
    # Control batches carry an id and an epoch, but stand in no sequence.
    return header.producer_id >= 0 and header.producer_epoch >= 0 and header.base_sequence >= -1
