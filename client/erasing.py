"""What ``client.admin`` asks for when records are to go, checked (pure)."""

from collections.abc import Mapping, Sequence
from typing import Literal

from tailrace.protocol import texts_config
from tailrace.protocol.codec import encode_message
from tailrace.protocol.connection import ADMIN_BYTES_MAX
from tailrace.protocol.errors import ConfigError
from tailrace.protocol.frame import HEADER_BYTES
from tailrace.protocol.messages_admin import (
    DeleteRecordsRequest,
    EraseRequest,
    RecordPosition,
    StartOffset,
)

ITEMS_MAX = 1_000  # keys of one request, and records
HIGH_WATERMARK = -1


def delete_records_request(
    topic: str, before: Mapping[int, int | Literal["end"]]
) -> DeleteRecordsRequest:
    """Raises ConfigError T082 for an offset that is neither a number >= 0 nor ``"end"``."""
    starts: list[StartOffset] = []
    for partition, offset in before.items():
        if offset != "end" and not _is_number(offset):
            raise texts_config.bad_argument(
                f"before[{partition}]",
                offset,
                call="admin.delete_records()",
                expected="an offset or 'end'",
                hint="Records below it are removed.",
            )
        starts.append(StartOffset(partition, HIGH_WATERMARK if offset == "end" else offset))
    return DeleteRecordsRequest(topic, tuple(starts))


def erase_request(
    erasure_id: bytes,
    topic: str,
    keys: Sequence[bytes],
    records: Sequence[tuple[int, int]],
) -> EraseRequest:
    """Raises ConfigError T082 for nothing at all, for too much, for keys that are no bytes and
    for records that are no positions.
    """
    if not keys and not records:
        raise _refused("keys", keys, "keys or records to erase", "Give keys=[b'...'].")
    if set(map(type, keys)) - {bytes}:  # of b"key" alone they are int, of "key" str
        raise _refused("keys", keys, "a sequence of bytes", "Encode each: keys=[b'cust-7'].")
    if not all(map(_is_position, records)):
        raise _refused("records", records, "(partition, offset) pairs", "Give records=[(0, 17)].")
    for name, items in (("keys", keys), ("records", records)):
        if len(items) > ITEMS_MAX:
            expected = f"at most {ITEMS_MAX:,} of them"
            raise _refused(f"len({name})", len(items), expected, "Use several calls.")
    request = EraseRequest(
        erasure_id,
        topic,
        tuple(dict.fromkeys(keys)),
        tuple(RecordPosition(*record) for record in dict.fromkeys(records)),
    )
    size = HEADER_BYTES + len(encode_message(request))
    if size > ADMIN_BYTES_MAX:
        expected = f"at most {ADMIN_BYTES_MAX:,} bytes in one request"
        raise _refused("keys and records", f"{size:,} bytes", expected, "Use several calls.")
    return request


def _is_number(given: object) -> bool:
    """What a type checker would refuse is to be named here, too."""
    return isinstance(given, int) and given >= 0


def _is_position(given: object) -> bool:
    match given:
        case tuple((int(partition), int(offset))):
            return min(partition, offset) >= 0
        case _:
            return False


def _refused(key: str, value: object, expected: str, hint: str) -> ConfigError:
    return texts_config.bad_argument(key, value, call="admin.erase()", expected=expected, hint=hint)
