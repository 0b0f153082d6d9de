"""``tailrace consume``: from where to where, in which shape."""

import re
import time
from pathlib import Path

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli

ACCESS_LOG = Path(__file__).parent.parent / "data" / "apache_access.log"


@pytest.fixture(scope="module")
def ten(broker: Broker) -> str:
    """A topic of one partition with the values 0 to 9, keys k0 to k9."""
    topic = broker.name("ten")
    values, keys = [b"%d" % n for n in range(10)], [b"k%d" % n for n in range(10)]
    broker.seed(topic, values, keys=keys)
    return topic


def test_access_log_comes_back_byte_for_byte(cli: Cli, broker: Broker) -> None:
    topic, text = broker.name("access"), ACCESS_LOG.read_bytes()
    result = cli("produce", topic, stdin=text)
    assert re.search(rf"produced 10,000 records to {topic} in .* s: p0@0-9999\n", result.err)
    result = cli("consume", topic, "-o", "start", "-e")
    assert (result.code, result.err) == (0, "")
    assert result.out == text


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("start", "0123456789"),
        ("end", ""),
        ("7", "789"),
        ("-2", "89"),
        ("-99", "0123456789"),
        ("3:5", "34"),
        ("start:-7", "012"),
        ("-3:end", "789"),
        ("@1h", "0123456789"),
        ("@2000-01-01T00:00Z", "0123456789"),
        ("@0s", ""),
        ("@1h:@0s", "0123456789"),
    ],
)
def test_offsets(cli: Cli, ten: str, offset: str, expected: str) -> None:
    result = cli("consume", ten, "-o", offset, "-e")
    assert (result.code, result.err) == (0, "")
    assert result.out.decode().replace("\n", "") == expected


def test_a_range_needs_no_other_end(cli: Cli, ten: str) -> None:
    assert cli("consume", ten, "-o", "8:10").out == b"8\n9\n"


@pytest.mark.parametrize(("count", "expected"), [("0", b""), ("3", b"0\n1\n2\n")])
def test_number_of_records(cli: Cli, ten: str, count: str, expected: bytes) -> None:
    result = cli("consume", ten, "-n", count)
    assert (result.code, result.out) == (0, expected)


def test_idle_ends_it(cli: Cli, ten: str) -> None:
    began = time.monotonic()
    result = cli("consume", ten, "-o", "9", "--idle", "50ms")
    assert (result.code, result.out) == (0, b"9\n")
    assert time.monotonic() - began < 5


def test_partitions_and_several_topics(cli: Cli, broker: Broker, ten: str) -> None:
    topic = broker.name("three")
    broker.create_topic(topic, partitions=3)
    for partition in range(3):
        cli("produce", topic, "-p", str(partition), "--value", f"p{partition}")
    assert cli("consume", topic, "-p", "1", "-e").out == b"p1\n"
    both = cli("consume", topic, "-p", "0", "-p", "2", "-e")
    assert sorted(both.out.split()) == [b"p0", b"p2"]
    every = cli("consume", topic, ten, ten, "-e")
    assert len(every.out.splitlines()) == 13


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (r"%p@%o %k=%v\n", b"0@3 k3=3\n"),
        (r"%v", b"3"),
        (r"%k{hex}\t%v{base64}\\%%", b"6b33\tMw==\\%"),
        (r"%v{json}", b'"3"'),
    ],
)
def test_format(cli: Cli, ten: str, template: str, expected: bytes) -> None:
    assert cli("consume", ten, "-o", "3:4", "-f", template).out == expected


def test_format_of_topic_headers_and_times(cli: Cli, broker: Broker) -> None:
    topic = broker.name("dated")
    line = b'{"value":"v","timestamp":7,"headers":[["a","b"],["none",null]]}\n'
    cli("produce", topic, "--ndjson", stdin=line)
    (record,) = broker.records(topic)
    result = cli("consume", topic, "-e", "-f", "%t %h %d %a")
    assert result.out.decode() == f"{topic} a=b,none 7 {record.append_time}"


def test_json_is_one_document_of_record_json(cli: Cli, broker: Broker) -> None:
    topic = broker.name("doc")
    cli("produce", topic, "-K", " ", stdin=b'cust-7 {"n":1}\n')
    (record,) = broker.records(topic)
    (document,) = cli("consume", topic, "-e", "-O", "json").json()["records"]
    assert document == {
        **{"topic": topic, "partition": 0, "offset": 0, "timestamp": record.timestamp},
        **{"append_time": record.append_time, "key": "cust-7", "key_encoding": "utf8"},
        **{"value": {"n": 1}, "value_encoding": "json", "headers": [], "size_bytes": 13},
    }
    assert cli("consume", topic, "-e", "-O", "ndjson").lines() == [document]


@pytest.mark.parametrize(
    ("decode", "expected", "encoding"),
    [
        ("base64", "eyJuIjoxfQ==", "base64"),
        ("hex", "7b226e223a317d", "hex"),
        ("utf8", '{"n":1}', "utf8"),
        ("json", {"n": 1}, "json"),
    ],
)
def test_decode(cli: Cli, broker: Broker, decode: str, expected: object, encoding: str) -> None:
    topic = broker.name("decoded")
    cli("produce", topic, "--value", '{"n":1}')
    (found,) = cli("consume", topic, "-e", "-O", "ndjson", "--decode", decode).lines()
    assert (found["value"], found["value_encoding"]) == (expected, encoding)


def test_base64_carries_any_bytes_there_and_back(cli: Cli, broker: Broker) -> None:
    first, second = broker.name("bytes"), broker.name("bytes")
    values = [bytes(range(256)), b'{"n": 1}', b"", b'{"n":1}']
    broker.seed(first, values, keys=[b"\xff", None, b"", b"k"])
    printed = cli("consume", first, "-e", "-O", "ndjson", "--decode", "base64")
    assert cli("produce", second, "--ndjson", stdin=printed.out).code == 0
    copies = [(r.key, r.value) for r in broker.records(second)]
    assert copies == [(r.key, r.value) for r in broker.records(first)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-O", "json"),
        ("-o", "soon"),
        ("-o", "committed"),
        ("--idle", "soon"),
        ("-f", "%x"),
        ("-f", "%v", "-O", "ndjson", "-e"),
        ("-n", "-1"),
    ],
)
def test_what_cannot_be_is_a_usage_error(cli: Cli, ten: str, arguments: tuple[str, ...]) -> None:
    result = cli("consume", ten, *arguments)
    assert result.code == 2
    assert "T082" in result.err
    assert "tailrace consume" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("consume", "nosuch", "-e"), 4, "T010: topic 'nosuch' does not exist"),
        (("consume", "{ten}", "-p", "1", "-e"), 4, "T011: {ten}[1] does not exist"),
        (("consume", "{ten}", "-o", "11", "-e"), 4, "T041: asked for 11, but {ten}[0] ends at 10"),
        (("tail", "nosuch"), 4, "T010: topic 'nosuch' does not exist"),
        (("cat", "{ten}:0:10"), 4, "T041: asked for 10, but {ten}[0] ends at 10"),
        (("cat", "{ten}:1:0"), 4, "T011: {ten}[1] does not exist"),
        (("cat", "{ten}:0"), 2, "T082: tailrace cat: '{ten}:0' is not TOPIC:P:OFF"),
        (("cat", "{ten}:0:3-2"), 2, "T082: tailrace cat: '{ten}:0:3-2' is not TOPIC:P:OFF"),
    ],
)
def test_what_is_not_there(
    cli: Cli, ten: str, arguments: tuple[str, ...], code: int, text: str
) -> None:
    result = cli(*(argument.format(ten=ten) for argument in arguments))
    assert (result.code, result.out) == (code, b"")
    assert result.err.startswith("error: " + text.format(ten=ten))


def test_cat_includes_both_ends(cli: Cli, ten: str) -> None:
    assert cli("cat", f"{ten}:0:4").out == b"4\n"
    assert cli("cat", f"{ten}:0:4-6").out == b"4\n5\n6\n"
    assert cli("cat", f"{ten}:0:8-99").out == b"8\n9\n"
    (found,) = cli("cat", f"{ten}:0:4", "-O", "json", "--decode", "hex").json()["records"]
    assert (found["offset"], found["value"], found["key"]) == (4, "34", "6b34")


def test_records_that_were_erased_leave_gaps_that_nobody_waits_in(cli: Cli, broker: Broker) -> None:
    topic = broker.name("gaps")
    broker.create_topic(topic)
    keys = [b"stays" if number in (1, 2) else b"goes" for number in range(12)]
    broker.seed(topic, [b"%d" % number for number in range(12)], keys=keys)
    broker.client().admin.erase(topic, keys=[b"goes"])
    assert cli("consume", topic, "-e").out == b"1\n2\n"
    assert cli("consume", topic, "-o", "0:12").out == b"1\n2\n"
    assert cli("consume", topic, "-o", "5:12").out == b""
    assert cli("cat", f"{topic}:0:2-7").out == b"2\n"
    assert cli("cat", f"{topic}:0:7").out == b""
    assert cli("tail", topic, "-n", "1").out == b"2\n"
    assert cli("tail", topic, "-n", "5").out == b"1\n2\n"


def test_tail_takes_the_last_of_all_partitions(cli: Cli, broker: Broker) -> None:
    topic = broker.name("spread")
    broker.create_topic(topic, partitions=2)
    for number in range(6):  # each in a later millisecond, in turn
        cli("produce", topic, "-p", str(number % 2), "--value", str(number))
    assert cli("tail", topic, "-n", "3").out == b"3\n4\n5\n"
    assert cli("tail", topic, "-n", "0").out == b""
    assert cli("tail", topic).out == b"0\n1\n2\n3\n4\n5\n"
    assert cli("tail", topic, "-p", "1", "-n", "2").out == b"3\n5\n"
    assert cli("tail", topic, "-n", "1", "--format", r"%p@%o\n").out == b"1@2\n"
    (found,) = cli("tail", topic, "-n", "1", "-O", "json").json()["records"]
    assert found["value"] == "5"
