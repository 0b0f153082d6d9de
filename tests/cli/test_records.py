"""``tailrace topic delete-records`` and ``erase``: what goes, what is said, what is refused."""

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli


def left(broker: Broker, topic: str) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.value) for record in broker.records(topic)]


def test_erase_by_key_and_by_record(cli: Cli, broker: Broker) -> None:
    topic = broker.name("erased")
    broker.seed(topic, [b"a", b"b", b"c", b"d"], keys=[b"k", b"l", b"k", b"m"])
    result = cli("topic", "erase", topic, "--key", "k", "--record", "0:3", "--yes")
    assert (result.code, result.out, result.err) == (0, b"", f"erased 3 records of {topic}\n")
    assert left(broker, topic) == [(1, b"b")]


def test_erase_as_json_is_the_receipt(cli: Cli, broker: Broker) -> None:
    topic = broker.name("receipt")
    broker.seed(topic, [b"a"], keys=[b"k"])
    document = cli("-O", "json", "topic", "erase", topic, "--key", "k", "--yes").json()
    assert list(document) == ["id", "topic", "records", "requested_at", "completed_at", "replicas"]
    assert (document["topic"], document["records"]) == (topic, 1)
    assert document["completed_at"] >= document["requested_at"]
    assert list(document["replicas"].values()) == ["done"]


def test_erase_of_what_nobody_has_is_fine(cli: Cli, broker: Broker) -> None:
    topic = broker.name("nothing")
    broker.seed(topic, [b"a"])
    result = cli("topic", "erase", topic, "--key", "", "--yes")
    assert (result.code, result.err) == (0, f"erased 0 records of {topic}\n")


def test_erase_without_waiting(cli: Cli, broker: Broker) -> None:
    topic = broker.name("later")
    broker.seed(topic, [b"a"], keys=[b"k"])
    result = cli("topic", "erase", topic, "--key", "k", "--no-wait", "--yes", "-q", "-O", "json")
    assert (result.code, result.err) == (0, "")
    assert result.json()["topic"] == topic


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "nothing to erase"),
        (("--record", "0"), "--record takes PARTITION:OFFSET, not '0'"),
        (("--record", "0:end"), "--record takes PARTITION:OFFSET"),
        (("--record", "-1:2"), "--record takes PARTITION:OFFSET"),
    ],
)
def test_erase_says_what_it_takes(offline: Cli, arguments: tuple[str, ...], text: str) -> None:
    result = offline("topic", "erase", "orders", "--yes", *arguments)
    assert result.code == 2
    assert text in result.err


def test_delete_records_moves_the_start(cli: Cli, broker: Broker) -> None:
    topic = broker.name("trimmed")
    broker.seed(topic, [b"a", b"b", b"c"])
    result = cli("topic", "delete-records", topic, "-p", "0", "--before", "2", "--yes")
    assert (result.code, result.out, result.err) == (0, b"", f"{topic}[0] starts at 2\n")
    assert left(broker, topic) == [(2, b"c")]
    result = cli(
        *("topic", "delete-records", topic, "-p", "0"),
        *("--before", "end", "--yes", "-O", "json"),
    )
    assert result.json() == {"partitions": [{"partition": 0, "log_start": 3}]}
    assert left(broker, topic) == []


def test_delete_records_behind_the_end_is_exit_4(cli: Cli, broker: Broker) -> None:
    topic = broker.name("short")
    broker.seed(topic, [b"a"])
    result = cli("topic", "delete-records", topic, "-p", "0", "--before", "2", "--yes")
    assert result.code == 4
    assert result.err.startswith(f"error: T041: asked for 2, but {topic}[0] ends at 1")
    assert cli("topic", "delete-records", topic, "-p", "1", "--before", "end", "--yes").code == 4


def test_delete_records_says_what_it_takes(offline: Cli) -> None:
    result = offline("topic", "delete-records", "orders", "-p", "0", "--before", "-1", "--yes")
    assert result.code == 2
    assert "--before takes an offset or 'end'" in result.err
    assert offline("topic", "delete-records", "orders", "--before", "3", "--yes").code == 2


@pytest.mark.parametrize(
    "arguments",
    [("erase", "orders", "--key", "k"), ("delete-records", "orders", "-p", "0", "--before", "3")],
)
def test_both_ask_only_on_a_terminal(offline: Cli, arguments: tuple[str, ...]) -> None:
    refused = offline("topic", *arguments)
    assert refused.code == 2
    assert "add --yes" in refused.err
