"""``tailrace group``: what is shown of groups, and what is done to them."""

import re

import pytest

from tailrace.client.cli_group import span
from tailrace.testing import Broker
from tests.cli.conftest import Cli


def read(broker: Broker, topic: str, group: str, count: int) -> None:
    """Let the group read so many records, and leave."""
    with broker.client() as client, client.consumer(topic, group=group, commit="manual") as reader:
        for number, _ in enumerate(reader, 1):
            if number == count:
                reader.commit()
                return


@pytest.fixture
def orders(broker: Broker) -> tuple[str, str]:
    """A topic of ten records, and a group that has read four of them."""
    topic, group = broker.name("orders"), broker.name("billing")
    broker.seed(topic, [b"x"] * 10)
    read(broker, topic, group, 4)
    return topic, group


def test_lag_is_a_line_and_a_row_a_partition(cli: Cli, orders: tuple[str, str]) -> None:
    topic, group = orders
    result = cli("group", "lag", group)
    assert (result.code, result.err) == (0, "")
    head, columns, row, loss = result.out.decode().splitlines()
    assert re.fullmatch(
        rf"{group}  empty  0 members  generation \d+  lag 6  behind [\d.]+ s  never drains  ok",
        head,
    )
    assert columns.split() == (
        ["TOPIC", "PART", "COMMITTED", "END", "LAG", "BEHIND", "RATE/S", "MEMBER", "VERDICT"]
    )
    assert re.fullmatch(rf"{topic} +0 +4 +10 +6 +[\d.]+ s +0 +- +ok", row)
    assert re.fullmatch(rf"{topic}\[0\]: unread records expire in 7 d", loss)


def test_lag_as_a_document(cli: Cli, orders: tuple[str, str]) -> None:
    topic, group = orders
    document = cli("-O", "json", "group", "lag", group).json()
    (partition,) = document.pop("partition_list")
    assert document.pop("lag_seconds") >= 0
    assert document == {"group": group, "lag_records": 6, "drain_seconds": None, "verdict": "ok"}
    assert (partition["topic"], partition["committed"], partition["log_end"]) == (topic, 4, 10)
    assert {"rate_per_s", "margin_seconds", "member_id", "committed_at"} < partition.keys()
    assert cli("-O", "ndjson", "group", "lag", group).lines()[0]["group"] == group


def test_group_that_has_caught_up(cli: Cli, broker: Broker, orders: tuple[str, str]) -> None:
    topic, group = orders
    read(broker, topic, group, 6)
    head, _, row = cli("group", "lag", group).out.decode().splitlines()
    assert head.endswith("  lag 0  behind 0 s  drains in 0 s  ok")
    assert re.fullmatch(rf"{topic} +0 +10 +10 +0 +0 s +\d+ +- +ok", row)


def test_fail_above_is_exit_6(cli: Cli, orders: tuple[str, str]) -> None:
    _, group = orders
    assert cli("group", "lag", group, "--fail-above", "6").code == 0
    result = cli("group", "lag", group, "--fail-above", "5")
    assert result.code == 6
    assert result.out.decode().startswith(group)


def test_watch_goes_on_until_there_is_too_much(cli: Cli, orders: tuple[str, str]) -> None:
    _, group = orders
    result = cli("group", "lag", group, "--watch", "--every", "100ms", "--fail-above", "0")
    assert result.code == 6
    result = cli("-O", "ndjson", "group", "lag", group, "--watch", "--fail-above", "0")
    assert (result.code, len(result.lines())) == (6, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--every", "1s"),
        ("--watch", "--every", "1ms"),
        ("--watch", "--every", "soon"),
        ("--watch", "-O", "json"),
        ("--fail-above", "-1"),
    ],
)
def test_wrong_options_of_lag_are_exit_2(offline: Cli, arguments: tuple[str, ...]) -> None:
    assert offline("group", "lag", "billing", *arguments).code == 2


def test_list_and_describe(cli: Cli, broker: Broker, orders: tuple[str, str]) -> None:
    topic, group = orders
    head, *rows = cli("group", "list").out.decode().splitlines()
    assert head.split() == ["GROUP", "STATE", "MEMBERS", "LAG", "BEHIND", "VERDICT", "TOPICS"]
    row = next(row for row in rows if row.startswith(group))
    assert re.fullmatch(rf"{group} +empty +0 +6 +[\d.]+ s +ok +{topic}", row)
    assert group in [one["name"] for one in cli("group", "ls", "-O", "json").json()["groups"]]
    assert group in [one["name"] for one in cli("-O", "ndjson", "group", "list").lines()]
    with broker.client() as client, client.consumer(topic, group=group) as reader:
        next(iter(reader))
        lines = cli("group", "describe", group).out.decode().splitlines()
        assert lines[0].startswith(f"{group}  stable  1 member  generation ")
        assert lines[1].split() == (
            ["MEMBER", "CLIENT", "INSTANCE", "HOST", "VERSION", "HEARD", "PARTITIONS"]
        )
        assert re.fullmatch(rf"\S+ +\S+ +- +127\.0\.0\.1 +\S+ +\d+\.\d s ago +{topic}:0", lines[2])
        (member,) = cli("-O", "json", "group", "describe", group).json()["member_list"]
        assert (member["idle"], member["assigned"]) == (False, [{"topic": topic, "partition": 0}])
        row = cli("group", "lag", group).out.decode().splitlines()[2]
        assert f" {member['client_id']} " in row
    assert cli("topic", "describe", topic).out.decode().splitlines()[-1] == f"read by {group}"


def test_reset_asks_tells_and_does(cli: Cli, orders: tuple[str, str]) -> None:
    topic, group = orders
    refused = cli("group", "reset", group, "--to", "start")
    assert refused.code == 2
    assert "add --yes" in refused.err
    tried = cli("group", "reset", group, "--to", "start", "--dry-run")
    assert tried.code == 0
    assert tried.err == (f"would reset group {group}: 1 partition, 4 records would be read again\n")
    columns, row = tried.out.decode().splitlines()
    assert columns.split() == ["TOPIC", "PART", "BEFORE", "AFTER", "RECORDS"]
    assert row.split() == [topic, "0", "4", "0", "+4"]
    done = cli("group", "reset", group, "--to", "end", "--yes")
    assert (done.code, done.out) == (0, b"")
    assert done.err == f"reset group {group}: 1 partition, 6 records are skipped\n"
    again = cli("-O", "json", "group", "reset", group, "--to", "-3", "--yes")
    change = {"topic": topic, "partition": 0, "before": 10, "after": 7, "records": 3}
    assert again.json() == {"changes": [change], "applied": True}


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        (("--to", "2"), 2),
        (("--to", "@1h"), 0),
        (("--to", "-99"), 0),
        (("--to", "end", "--topic", "TOPIC"), 10),
        (("--to", "end", "--partition", "TOPIC:0"), 10),
    ],
)
def test_reset_takes_every_form_of_an_offset(
    cli: Cli, orders: tuple[str, str], arguments: tuple[str, ...], after: int
) -> None:
    topic, group = orders
    given = [argument.replace("TOPIC", topic) for argument in arguments]
    (change,) = cli("group", "reset", group, *given, "--yes", "-O", "json").json()["changes"]
    assert (change["before"], change["after"]) == (4, after)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--to", "committed"), 2),
        (("--to", "soon"), 2),
        (("--to", "start", "--topic", "a", "--partition", "a:0"), 2),
        (("--to", "start", "--partition", "a"), 2),
        (("--to", "99"), 4),
        (("--to", "start", "--topic", "not-there"), 4),
        ((), 2),
    ],
)
def test_reset_that_cannot_be(
    cli: Cli, orders: tuple[str, str], arguments: tuple[str, ...], code: int
) -> None:
    _, group = orders
    assert cli("group", "reset", group, *arguments, "--yes").code == code
    assert cli("-O", "json", "group", "lag", group).json()["partition_list"][0]["committed"] == 4


def test_reset_to_a_range_is_told_the_forms_there_are(cli: Cli, orders: tuple[str, str]) -> None:
    result = cli("group", "reset", orders[1], "--to", "3:5", "--yes")
    assert "'3:5' is no offset: start, end, N, -N, @2h or @2026-11-20T10:00. See:" in result.err


def test_group_with_members_is_left_alone(
    cli: Cli, broker: Broker, orders: tuple[str, str]
) -> None:
    topic, group = orders
    with broker.client() as client, client.consumer(topic, group=group) as reader:
        next(iter(reader))
        for command in (("reset", group, "--to", "start"), ("delete", group)):
            result = cli("group", *command, "--yes")
            assert result.code == 1
            assert result.err.startswith(f"error: T044: group '{group}' has 1 member (")


def test_delete_of_several_tells_which_went(cli: Cli, orders: tuple[str, str]) -> None:
    _, group = orders
    refused = cli("group", "delete", group)
    assert refused.code == 2
    result = cli("group", "delete", group, f"{group}x", "--yes")
    assert result.code == 4
    assert f"deleted 1 group: {group}\n" in result.err
    assert f"T043: group '{group}x' does not exist" in result.err
    gone = cli("group", "lag", group)
    assert gone.code == 4
    assert "List them: tailrace group list" in gone.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.04, "0 s"),
        (0.62, "0.6 s"),
        (41.3, "41 s"),
        (7_199.0, "7,199 s"),
        (7_200.0, "2 h"),
        (12_600.0, "3.5 h"),
        (604_800.0, "7 d"),
        (1_000 * 86_400.0, "1,000 d"),
    ],
)
def test_long_spans_are_told_in_hours_and_days(seconds: float | None, text: str) -> None:
    assert span(seconds) == text
