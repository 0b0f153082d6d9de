"""Record batches: what is written is read, and what is damaged or dishonest is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol import columns as columns_module, compression, packing
from tailrace.protocol.batch import (
    RECORDS_MAX,
    BadBatch,
    BatchError,
    BatchHeader,
    Columns,
    Compression,
    EndOfLog,
    decode_columns,
    encode_batch,
    encode_entry,
    header_seed,
    parse_header,
    patch,
    scan_one,
    verify_produced,
)
from tailrace.protocol.errors import BatchRefused, InvalidTimestamp
from tests.protocol import reference_batch as reference

TOPIC = bytes(range(16))
SEED = header_seed(TOPIC, 3)
NOW_MS = 1763690000000
TIMESTAMP_MAX = (1 << 63) - 1

timestamps = st.integers(0, TIMESTAMP_MAX)
payloads = st.none() | st.binary(max_size=40)
headers = st.lists(st.tuples(st.text(max_size=8), payloads), max_size=3)
records = st.lists(st.tuples(payloads, payloads, timestamps, headers), min_size=1, max_size=40)
compressions = st.sampled_from(("none", "lz4", "zstd"))


def absolute(columns: Columns, header: BatchHeader) -> list[tuple[Any, ...]]:
    """(offset, timestamp, key, value, headers) of each record."""
    count = len(columns.values)
    offsets = columns.offsets if columns.offsets is not None else range(count)
    return [
        (header.base_offset + o, columns.base_timestamp + t, k, v, list(h or []))
        for o, t, k, v, h in zip(
            offsets,
            columns.timestamps or [0] * count,
            columns.keys or [None] * count,
            columns.values,
            columns.headers or [None] * count,
            strict=True,
        )
    ]


def scan(data: bytes | bytearray) -> BatchHeader:
    found = scan_one(memoryview(data), 0, SEED)
    assert isinstance(found, BatchHeader), found
    return found


@given(records, compressions, st.integers(0, 2**40), st.integers(0, 2**31 - 1))
def test_produced_records_are_read_back_from_the_log(
    rows: list[tuple[Any, ...]], how: Compression, base_offset: int, epoch: int
) -> None:
    entry = bytearray(
        encode_batch(
            SEED,
            keys=[r[0] for r in rows],
            values=[r[1] for r in rows],
            timestamps=[r[2] for r in rows],
            headers=[r[3] for r in rows],
            compression=how,
        )
    )
    verified = verify_produced(
        memoryview(entry), SEED, TIMESTAMP_MAX, float("inf"), topic="orders", partition=3
    )
    patch(entry, seed=SEED, base_offset=base_offset, leader_epoch=epoch, append_time=NOW_MS)
    header = scan(entry)
    assert verified[11:] == header[11:]
    assert (header.base_offset, header.leader_epoch) == (base_offset, epoch)
    assert header.append_time == NOW_MS
    assert header.next_offset == base_offset + len(rows)
    assert header.max_timestamp == max(r[2] for r in rows)
    assert absolute(decode_columns(entry, header), header) == [
        (base_offset + i, t, k, v, h) for i, (k, v, t, h) in enumerate(rows)
    ]


@given(records, st.lists(st.integers(1, 300), min_size=40, max_size=40), st.integers(0, 9))
def test_a_thinned_batch_keeps_offsets_and_the_range_it_had(
    rows: list[tuple[Any, ...]], gaps: list[int], removed_behind: int
) -> None:
    offsets = [sum(gaps[: i + 1]) for i in range(len(rows))]
    last = offsets[-1] + removed_behind
    columns = Columns(0, [r[2] for r in rows], offsets, None, [r[1] for r in rows], None)
    entry = encode_entry(SEED, columns, base_offset=500, last_offset_delta=last, leader_epoch=1)
    header = scan(entry)
    assert header.next_offset == 501 + last
    assert [r[0] for r in absolute(decode_columns(entry, header), header)] == [
        500 + o for o in offsets
    ]


@given(st.data(), records)
def test_the_second_writer_agrees_byte_for_byte(
    data: st.DataObject, rows: list[tuple[Any, ...]]
) -> None:
    base = rows[0][2]
    vector = {
        "topic_id": TOPIC.hex(),
        "partition": 3,
        "compression": "none",
        "attributes": 0,
        "base_offset": 0,
        "leader_epoch": -1,
        "append_time": -1,
        "last_offset_delta": len(rows) - 1,
        "base_timestamp": base,
        "max_timestamp": max(r[2] for r in rows),
        "producer_id": data.draw(st.integers(0, TIMESTAMP_MAX)),
        "producer_epoch": data.draw(st.integers(0, 2**15 - 1)),
        "base_sequence": data.draw(st.integers(0, 2**31 - 1)),
        "records": [
            {
                "offset": i,
                "timestamp": t,
                "key": None if k is None else k.hex(),
                "value": None if v is None else v.hex(),
                "headers": [(n, None if x is None else x.hex()) for n, x in h],
            }
            for i, (k, v, t, h) in enumerate(rows)
        ],
    }
    assert reference.entry(vector) == encode_batch(
        SEED,
        keys=[r[0] for r in rows],
        values=[r[1] for r in rows],
        timestamps=[r[2] for r in rows],
        headers=[r[3] for r in rows],
        producer_id=vector["producer_id"],
        producer_epoch=vector["producer_epoch"],
        base_sequence=vector["base_sequence"],
    )


@given(st.binary(max_size=300), st.integers(0, 4))
def test_arbitrary_sections_give_columns_or_a_batch_error(section: bytes, codec: int) -> None:
    header = scan(encode_batch(SEED, values=[b"v", b"w"], timestamps=NOW_MS))
    length = header.batch_length - (header.size_bytes - 85) + len(section)
    header = header._replace(batch_length=length, attributes=codec)
    try:
        columns = decode_columns(bytes(85) + section, header)
    except BatchError:
        return
    assert len(columns.values) == 2


@given(st.binary(min_size=85, max_size=200))
def test_arbitrary_bytes_are_no_batch(data: bytes) -> None:
    found = scan_one(memoryview(data), 0, SEED)
    assert isinstance(found, BadBatch | EndOfLog)
    assert (found == EndOfLog()) == (not any(data[:85]))


def test_a_log_is_scanned_batch_by_batch_to_its_zeros() -> None:
    log = bytearray()
    for base in (0, 3, 6):
        entry = bytearray(encode_batch(SEED, values=[b"x"] * 3, timestamps=NOW_MS))
        patch(entry, seed=SEED, base_offset=base, leader_epoch=0, append_time=NOW_MS)
        log += entry
    log += bytes(100)
    position, offsets = 0, list[int]()
    while isinstance(found := scan_one(memoryview(log), position, SEED), BatchHeader):
        offsets.append(found.base_offset)
        position += found.size_bytes
    assert found == EndOfLog()
    assert (offsets, position) == ([0, 3, 6], len(log) - 100)


def test_patching_touches_the_leaders_fields_only() -> None:
    before = encode_batch(SEED, values=[b"v"], timestamps=NOW_MS)
    after = bytearray(before)
    place = {"base_offset": 2**62 + 7, "leader_epoch": 0x7A7A7A7A, "append_time": 2**61 + 9}
    patch(after, seed=SEED, **place)
    changed = {i for i in range(len(before)) if before[i] != after[i]}
    assert changed <= {*range(4), *range(16, 32), *range(36, 40)}
    assert scan(after).payload_checksum == parse_header(before).payload_checksum


def test_a_batch_of_another_topic_or_partition_fails_the_header_check() -> None:
    entry = memoryview(encode_batch(SEED, values=[b"v"], timestamps=NOW_MS))
    for seed in (header_seed(TOPIC, 4), header_seed(bytes(16), 3)):
        assert scan_one(entry, 0, seed) == BadBatch("header")
        with pytest.raises(BatchRefused, match="another partition"):
            verify_produced(entry, seed, NOW_MS, 0, topic="orders", partition=4)


def test_a_bad_payload_still_names_its_offsets() -> None:
    entry = bytearray(encode_batch(SEED, values=[b"v"] * 5, timestamps=NOW_MS))
    patch(entry, seed=SEED, base_offset=100, leader_epoch=0, append_time=NOW_MS)
    entry[-2] ^= 1
    found = scan_one(memoryview(entry), 0, SEED)
    assert isinstance(found, BadBatch)
    assert found.reason == "payload"
    assert found.header is not None
    assert (found.header.base_offset, found.header.next_offset) == (100, 105)
    assert found.header.size_bytes == len(entry)


def test_every_extension_is_refused_at_produce() -> None:
    entry = encode_batch(SEED, values=[b"v"], timestamps=NOW_MS)
    for extra in (b"\0", b"\xff", bytes(85), entry):
        with pytest.raises(BatchRefused, match="bytes sent"):
            verify_produced(entry + extra, SEED, NOW_MS, 0, topic="orders", partition=3)


def test_timestamps_may_be_ahead_up_to_the_limit() -> None:
    entry = encode_batch(SEED, values=[b"v"] * 2, timestamps=[NOW_MS, NOW_MS + 5_000])
    where: dict[str, Any] = {"topic": "orders", "partition": 3}
    assert verify_produced(entry, SEED, NOW_MS, 5_000, **where).max_timestamp == NOW_MS + 5_000
    assert verify_produced(entry, SEED, 0, float("inf"), **where)
    with pytest.raises(InvalidTimestamp) as caught:
        verify_produced(entry, SEED, NOW_MS, 4_999, **where)
    assert (caught.value.timestamp, caught.value.limit) == (NOW_MS + 5_000, NOW_MS + 4_999)


def test_sequences_wrap_at_two_to_the_31() -> None:
    def last(base: int, count: int) -> int:
        entry = encode_batch(
            SEED,
            values=[b""] * count,
            timestamps=0,
            producer_id=1,
            producer_epoch=0,
            base_sequence=base,
        )
        return scan(entry).last_sequence

    assert last(0, 1) == 0
    assert last(2**31 - 1, 1) == 2**31 - 1
    assert last(2**31 - 1, 2) == 0
    assert scan(encode_batch(SEED, values=[b""], timestamps=0)).last_sequence == -1


def test_the_writer_leaves_out_what_says_nothing() -> None:
    plain = encode_batch(SEED, values=[b"a", b"b"], timestamps=7)
    assert plain == encode_batch(
        SEED, values=[b"a", b"b"], timestamps=[7, 7], keys=[None, None], headers=[[], None]
    )
    assert plain[85:] == b"\x95\xc0\xc0\xc0\x92\xc4\x01a\xc4\x01b\xc0"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"values": []}, "no records"),
        ({"values": [b""] * (RECORDS_MAX + 1)}, "10001 records"),
        ({"values": ["text"]}, "values: str"),
        ({"values": [b"v"], "keys": [1]}, "keys: int"),
        ({"values": [b"v"], "keys": [b"k", b"k"]}, "keys: 2 of them for 1"),
        ({"values": [b"v"], "timestamps": [1, 2]}, "2 timestamps"),
        ({"values": [b"v", b"w"], "timestamps": [1, 2.5]}, "timestamps: float"),
        ({"values": [b"v"], "timestamps": -1}, "timestamps: -1"),
        ({"values": [b"v", b"w"], "timestamps": [5, -1]}, "timestamps: -1"),
        ({"values": [b"v"], "timestamps": 1 << 63}, "out of range"),
        ({"values": [b"v"], "headers": [[("a", "b")]]}, "headers' values: str"),
        ({"values": [b"v"], "headers": [[(b"a", b"b")]]}, "headers' names: bytes"),
        ({"values": [b"v"], "headers": [[("a",)]]}, "no pair"),
        ({"values": [b"v"], "headers": [["ab"]]}, "headers: str"),
        ({"values": [b"v"], "headers": [{"a": b"b"}]}, "headers: dict"),
        ({"values": [b"v"], "headers": [[("\ud800", None)]]}, "UTF-8"),
        ({"values": [b"v"], "headers": [[("a", None)] * 10_001]}, "10001 of them"),
        ({"values": [b"v"], "compression": "gzip"}, "gzip is not written"),
    ],
)
def test_the_writer_refuses_what_no_reader_would_take(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BatchError, match=reason):
        encode_batch(SEED, **{"timestamps": NOW_MS, **arguments})


def test_more_than_sixteen_mebibytes_are_no_batch() -> None:
    around = 60  # 49 bytes of header behind the length, 11 of msgpack
    largest = encode_batch(SEED, values=[bytes((16 << 20) - around)], timestamps=NOW_MS)
    assert scan(largest).batch_length == 16 << 20
    for size in ((16 << 20) - around + 1, 16 << 20):
        with pytest.raises(BatchError, match="do not fit"):
            encode_batch(SEED, values=[bytes(size)], timestamps=NOW_MS)


def test_what_readers_would_take_for_a_bomb_goes_uncompressed() -> None:
    zeros: list[bytes | None] = [bytes(2 << 20)]
    for how in ("lz4", "zstd"):
        entry = encode_batch(SEED, values=zeros, timestamps=NOW_MS, compression=how)
        header = scan(entry)
        assert header.compression == "none"
        assert decode_columns(entry, header).values == zeros


def test_what_does_not_shrink_goes_uncompressed() -> None:
    entry = encode_batch(SEED, values=[b"v"], timestamps=NOW_MS, compression="zstd")
    assert scan(entry).compression == "none"


def test_a_full_batch_is_read_back() -> None:
    values: list[bytes | None] = [b"%d" % i for i in range(RECORDS_MAX)]
    entry = encode_batch(SEED, values=values, keys=values, timestamps=NOW_MS, compression="lz4")
    columns = decode_columns(entry, scan(entry))
    assert columns.values == columns.keys == values


def test_batches_of_kafka_records_are_passed_over_but_not_opened() -> None:
    vector = reference.load("two_records")
    entry = bytearray(reference.entry(vector))
    entry[7] = 0
    patch(entry, seed=SEED, base_offset=881, leader_epoch=12, append_time=NOW_MS)
    header = scan(entry)
    assert header.next_offset == 883
    with pytest.raises(BatchError, match="is not columns"):
        decode_columns(entry, header)


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize(
    "section",
    [
        b"\x95\xc0\xc0\xc0" + b"\xdc\x27\x10" * 1000 + b"\xc0" * 100,
        b"\x95" + b"\xdc\x27\x10" * 1000 + b"\xc0" * 100_000,
        b"\x95\xc0\xc0\xc0\x91\xc0\xdc\x02\x00"
        + (b"\xdc\x27\x10" + b"\x92\xa0\xc0" * 10_000) * 512,
        b"\x95\xc0\xc0\xc0\xdc\x04\x00" + (b"\xdc\x27\x10" + b"\xc0" * 10_000) * 1024 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\x95\xc0\xc0\xc0\x91\xc6\xff\xff\xff\xff",
    ],
    ids=["nested", "nested_and_filled", "headers", "rows", "array32", "bin32"],
)
def test_msgpack_bombs_cost_little_memory(section: bytes) -> None:
    header = scan(encode_batch(SEED, values=[b"v"], timestamps=NOW_MS))
    header = header._replace(batch_length=49 + len(section))
    entry = bytes(85) + section
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak_kib()
    with pytest.raises(BatchError):
        decode_columns(entry, header)
    assert peak_kib() - before < 32 * 1024


def test_bounds_are_those_of_the_safety_list() -> None:
    assert packing.ARRAY_LENGTH_MAX == columns_module.RECORDS_MAX == 10_000
    assert compression.DOCUMENT_BYTES_MAX == 16 << 20
    assert (compression.RATIO_MAX, compression.RATIO_FREE_BYTES) == (200, 1 << 20)
    assert compression.ZSTD_WINDOW_BYTES_MAX == 8 << 20
