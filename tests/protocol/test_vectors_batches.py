"""The batch vectors, both ways: bytes to records and records to bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tailrace.protocol.batch import (
    HEADER_BYTES,
    BadBatch,
    BatchError,
    BatchHeader,
    Columns,
    EndOfLog,
    decode_columns,
    encode_entry,
    header_ok,
    header_seed,
    parse_header,
    payload_ok,
    scan_one,
    verify_produced,
)
from tailrace.protocol.batch_header import ATTRIBUTE_COMPRESSION, PAYLOAD_FROM
from tailrace.protocol.errors import TailraceError
from tests.protocol import reference_batch as reference

NAMES = sorted(path.stem for path in reference.VECTORS.glob("*.bin"))
REFUSED: list[dict[str, Any]] = json.loads((reference.VECTORS / "refused.json").read_text())
FIELDS = (
    *("base_offset", "leader_epoch", "append_time", "last_offset_delta", "base_timestamp"),
    *("max_timestamp", "producer_id", "producer_epoch", "base_sequence"),
)
NOW_MS = 1763690000000
HOUR_MS = 3_600_000
# The vector at the end of the grammar, here once more so that no file can drift away from it.
PRINTED = bytes.fromhex(
    "c9d343ba 54520101 3128d361 e077f378 0000019a a41dae83 00000000 00000371 00000041 0000000c"
    "02000000 00000000 00000100 00019aa4 1dae8000 00019aa4 1dae80ff ffffffff ffffffff ffffffff"
    "ff000000 0295c0c0 92c4016b c092c401 76c40177 c0"
)


def stored(name: str) -> bytes:
    return (reference.VECTORS / f"{name}.bin").read_bytes()


def seed_of(vector: dict[str, Any]) -> int:
    return header_seed(bytes.fromhex(vector["topic_id"]), vector["partition"])


def columns_of(vector: dict[str, Any]) -> Columns:
    """What a description says, column by column, none left out."""
    records = vector["records"]
    return Columns(
        base_timestamp=vector["base_timestamp"],
        timestamps=[r["timestamp"] - vector["base_timestamp"] for r in records],
        offsets=[r["offset"] - vector["base_offset"] for r in records],
        keys=[reference.raw(r["key"]) for r in records],
        values=[reference.raw(r["value"]) for r in records],
        headers=[[(n, reference.raw(v)) for n, v in r["headers"]] for r in records],
    )


def filled(columns: Columns) -> Columns:
    """The same columns with nothing left out."""
    count = len(columns.values)
    return Columns(
        columns.base_timestamp,
        columns.timestamps or [0] * count,
        list(range(count)) if columns.offsets is None else columns.offsets,
        columns.keys or [None] * count,
        columns.values,
        [list(h) if h else [] for h in columns.headers or [None] * count],
    )


def encoded(vector: dict[str, Any]) -> bytes:
    return encode_entry(
        seed_of(vector),
        columns_of(vector),
        base_offset=vector["base_offset"],
        last_offset_delta=vector["last_offset_delta"],
        leader_epoch=vector["leader_epoch"],
        append_time=vector["append_time"],
        attributes=vector["attributes"],
        producer_id=vector["producer_id"],
        producer_epoch=vector["producer_epoch"],
        base_sequence=vector["base_sequence"],
        compression=vector["compression"],
    )


def test_the_printed_vector_is_the_one_in_the_file() -> None:
    assert stored("two_records") == PRINTED
    assert header_seed(bytes(range(16)), 3) == 0x9BCBB2B9


def test_the_example_of_the_grammar_is_that_vector() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "log_format.md").read_text()
    block = page.split("101 bytes:\n\n```\n")[1].split("```")[0]
    fields = [line.strip().split("  ")[0] for line in block.splitlines()]
    assert bytes.fromhex("".join(fields)) == PRINTED


@pytest.mark.parametrize("name", NAMES)
def test_bytes_give_the_described_batch(name: str) -> None:
    vector, data = reference.load(name), stored(name)
    header = scan_one(memoryview(data), 0, seed_of(vector))
    assert isinstance(header, BatchHeader)
    assert header == parse_header(data)
    assert header.size_bytes == len(data)
    assert header.compression == vector["compression"]
    assert header.attributes & ~ATTRIBUTE_COMPRESSION == vector["attributes"]
    assert header.record_count == len(vector["records"])
    for field in FIELDS:
        assert getattr(header, field) == vector[field], field
    assert filled(decode_columns(data, header)) == columns_of(vector)


@pytest.mark.parametrize("name", NAMES)
def test_the_described_batch_gives_the_bytes(name: str) -> None:
    vector, data = reference.load(name), stored(name)
    if vector["compression"] == "none":
        assert encoded(vector) == data
        assert reference.entry(vector) == data
    for made in (encoded(vector), reference.entry(vector)):
        header = scan_one(memoryview(made), 0, seed_of(vector))
        assert isinstance(header, BatchHeader)
        assert header.compression == vector["compression"]
        assert filled(decode_columns(made, header)) == columns_of(vector)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_refused(name: str) -> None:
    vector, data = reference.load(name), stored(name)
    seed = seed_of(vector)
    for length in range(len(data)):
        found = scan_one(memoryview(data)[:length], 0, seed)
        if length < HEADER_BYTES:
            assert found == EndOfLog()
        else:
            assert found == BadBatch("torn", parse_header(data))


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_byte_is_found(name: str) -> None:
    vector, data = reference.load(name), bytearray(stored(name))
    seed = seed_of(vector)
    for position in range(len(data)):
        data[position] ^= 0xFF
        assert isinstance(scan_one(memoryview(data), 0, seed), BadBatch), position
        data[position] ^= 0xFF


def test_every_flipped_bit_is_found_by_the_check_that_covers_it() -> None:
    vector, data = reference.load("headers"), bytearray(stored("headers"))
    seed = seed_of(vector)
    for bit in range(len(data) * 8):
        position = bit // 8
        data[position] ^= 1 << bit % 8
        header, payload = header_ok(data, 0, seed), payload_ok(data, 0, len(data))
        assert header == (position >= PAYLOAD_FROM)
        assert payload == (position < PAYLOAD_FROM and not 8 <= position < 16)
        data[position] ^= 1 << bit % 8


@pytest.mark.parametrize("vector", REFUSED, ids=lambda v: f"{v['at']}-{v['name']}")
def test_bytes_that_must_not_be_taken(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["batch"])
    seed = header_seed(bytes(range(16)), 3)
    if vector["at"] == "produce":
        with pytest.raises(TailraceError) as caught:
            verify_produced(data, seed, NOW_MS, HOUR_MS, topic="orders", partition=3)
        assert caught.value.code == vector["expect"]
        return
    found = scan_one(memoryview(data), 0, seed)
    if vector["at"] == "decode":
        assert isinstance(found, BatchHeader)
        with pytest.raises(BatchError):
            decode_columns(data, found)
    elif vector["expect"] == "end":
        assert found == EndOfLog()
    else:
        assert isinstance(found, BadBatch)
        assert found.reason == vector["expect"]
