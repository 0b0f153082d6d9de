"""``tailrace produce``: what becomes a record, and what is said about it."""

import json
import re

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli


def test_first_record_of_a_new_topic_says_both(cli: Cli, broker: Broker) -> None:
    topic = broker.name("hello")
    result = cli("produce", topic, stdin=b'{"n":1}\n')
    assert result.code == 0
    assert result.out == b""
    assert result.err.splitlines() == [
        f"created topic {topic} (1 partition, auto-create)",
        f"produced 1 record to {topic}: p0@0",
    ]


def test_many_records_are_summed_up_with_their_places(cli: Cli, broker: Broker) -> None:
    topic = broker.name("many")
    broker.create_topic(topic, partitions=2)
    for partition in ("0", "1"):
        result = cli("produce", topic, "-p", partition, stdin=b"x\n" * 1000)
    pattern = rf"produced 1,000 records to {topic} in \d+\.\d\d s: p1@0-999\n"
    assert re.fullmatch(pattern, result.err)


@pytest.mark.parametrize(
    ("stdin", "values"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"\n\na\n", [b"", b"", b"a"]),
        (b"\r\n\xff\x00\n", [b"\r", b"\xff\x00"]),
    ],
)
def test_every_line_is_a_record(
    cli: Cli, broker: Broker, stdin: bytes, values: list[bytes]
) -> None:
    topic = broker.name("lines")
    assert cli("produce", topic, stdin=stdin).code == 0
    assert [record.value for record in broker.records(topic)] == values


def test_a_file_is_read_like_stdin(cli: Cli, broker: Broker, tmp_path: object) -> None:
    topic = broker.name("file")
    path = f"{tmp_path}/lines"
    with open(path, "wb") as file:
        file.write(b"one\ntwo\n")
    assert cli("produce", topic, "-f", path).code == 0
    assert [record.value for record in broker.records(topic)] == [b"one", b"two"]


def test_delimiter_splits_at_its_first_place(cli: Cli, broker: Broker) -> None:
    topic = broker.name("keyed")
    assert cli("produce", topic, "-K", "::", stdin=b"k::v::w\n::\n").code == 0
    assert [(r.key, r.value) for r in broker.records(topic)] == [(b"k", b"v::w"), (b"", b"")]


def test_line_without_delimiter_ends_with_what_was_delivered(cli: Cli, broker: Broker) -> None:
    topic = broker.name("keyed")
    result = cli("produce", topic, "-K", ":", stdin=b"a:1\nb:2\nnothing\nc:3\n")
    assert result.code == 1
    assert "2 of 4 records delivered; first missing: line 3" in result.err
    assert re.search(r"^error: T062: line 3: no ':' in it\.", result.err, re.MULTILINE)
    assert len(broker.records(topic)) == 2


def test_value_key_header_and_partition(cli: Cli, broker: Broker) -> None:
    topic = broker.name("one")
    broker.create_topic(topic, partitions=3)
    result = cli(
        *("produce", topic, "--value", "v\n", "-k", "k", "-p", "2"),
        *("-H", "src=web", "-H", "empty="),
    )
    assert result.err == f"produced 1 record to {topic}: p2@0\n"
    (record,) = broker.records(topic)
    assert (record.key, record.value, record.partition) == (b"k", b"v\n", 2)
    assert record.headers == [("src", b"web"), ("empty", b"")]


def test_tombstone_has_a_key_and_no_value(cli: Cli, broker: Broker) -> None:
    topic = broker.name("gone")
    assert cli("produce", topic, "--tombstone", "-k", "k").code == 0
    (record,) = broker.records(topic)
    assert (record.key, record.value) == (b"k", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--value", "x", "--ndjson"),
        ("--tombstone",),
        ("-K", ":", "-k", "key"),
        ("-K", ""),
        ("-H", "novalue"),
        ("--rate", "fast"),
        ("--rate", "-1"),
        ("-p", "-1"),
        ("--acks", "2"),
        ("--value", "x", "-f", "/dev/null"),
    ],
)
def test_what_does_not_go_together_is_refused(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli("produce", "never", *arguments)
    assert result.code == 2
    assert result.err.startswith("error: T082: tailrace produce: ")
    assert result.err.endswith(" See: tailrace produce --help\n")


def test_ndjson_takes_what_ndjson_printed(cli: Cli, broker: Broker) -> None:
    first, second = broker.name("first"), broker.name("second")
    lines = [
        {"value": {"n": 1}, "key": "k", "headers": [["a", "b"], ["c", None]], "timestamp": 5},
        {"value": None, "key": "gone"},
        {"value": "/wA=", "value_encoding": "base64", "key": "", "headers": []},
        {"value": "text", "headers": [["bin", {"base64": "/w=="}]]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert cli("produce", first, "--ndjson", stdin=text).code == 0
    printed = cli("consume", first, "-e", "-O", "ndjson")
    assert printed.code == 0
    assert cli("produce", second, "--ndjson", stdin=printed.out).code == 0
    found = [
        [(r.key, r.value, r.timestamp, r.headers) for r in broker.records(topic)]
        for topic in (first, second)
    ]
    assert found[0] == found[1]
    assert found[0][0] == (b"k", b'{"n":1}', 5, [("a", b"b"), ("c", None)])
    assert found[0][2][1] == b"\xff\x00"


def test_bad_ndjson_names_line_and_field(cli: Cli, broker: Broker) -> None:
    topic = broker.name("bad")
    result = cli("produce", topic, "--ndjson", "-O", "json", stdin=b'{"value":1}\n{"vale":1}\n')
    assert result.code == 1
    error = result.error()
    assert (error["code"], error["class"], error["details"]["line"]) == ("T062", "InputError", 2)
    assert "'vale'" in error["message"]


@pytest.mark.parametrize("output", ["json", "ndjson"])
def test_document_is_the_metadata_in_input_order(cli: Cli, broker: Broker, output: str) -> None:
    topic = broker.name("doc")
    result = cli("-O", output, "produce", topic, stdin=b"a\nb\n")
    found = result.json()["records"] if output == "json" else result.lines()
    assert [(r["topic"], r["partition"], r["offset"]) for r in found] == [
        (topic, 0, 0),
        (topic, 0, 1),
    ]
    assert set(found[0]) == {"topic", "partition", "offset", "timestamp", "append_time"}


def test_weaker_acks_are_taken(cli: Cli, broker: Broker) -> None:
    topic = broker.name("weak")
    assert cli("produce", topic, "--acks", "1", "--compression", "zstd", stdin=b"a\n").code == 0
    result = cli("produce", topic, "--acks", "0", stdin=b"b\n")
    assert result.err == f"produced 1 record to {topic}\n"
    assert broker.wait_values(topic, count=2) == [b"a", b"b"]


def test_rate_holds_back(cli: Cli, broker: Broker) -> None:
    result = cli("produce", broker.name("slow"), "--rate", "1000/s", stdin=b"x\n" * 101)
    taken = re.search(r"in (\d+\.\d\d) s", result.err)
    assert taken is not None
    assert 0.1 <= float(taken[1]) < 2


def test_quiet_says_nothing(cli: Cli, broker: Broker) -> None:
    result = cli("produce", broker.name("quiet"), "-q", stdin=b"x\n")
    assert (result.code, result.out, result.err) == (0, b"", "")


def test_record_too_large_names_line_and_fails_alone(cli: Cli, broker: Broker) -> None:
    topic = broker.name("large")
    broker.create_topic(topic, max_record="1KiB")
    result = cli("produce", topic, stdin=b"a\n" + b"x" * 2000 + b"\nb\n")
    assert result.code == 1
    assert "2 of 3 records delivered; first missing: line 2" in result.err
    assert "error: T021: record of " in result.err


def test_missing_partition_is_not_found(cli: Cli, broker: Broker) -> None:
    topic = broker.name("small")
    broker.create_topic(topic)
    result = cli("produce", topic, "-p", "4", "--value", "x")
    assert result.code == 4
    assert result.err.startswith(f"error: T011: {topic}[4] does not exist")


def test_time_out_is_exit_5(cli: Cli, broker: Broker) -> None:
    topic = broker.name("stuck")
    broker.create_topic(topic)
    with broker.faults.black_hole():
        result = cli("produce", topic, "--timeout", "200ms", "--value", "x")
    assert result.code in (3, 5)
