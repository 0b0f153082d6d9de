"""``tailrace consume -g``: members of a group on the command line."""

import signal
from typing import Any

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli
from tests.cli.test_processes import SECONDS_MAX, environment as environment, read_until, started


@pytest.fixture
def ten(broker: Broker) -> str:
    """A topic of one partition with the values 0 to 9."""
    topic = broker.name("ten")
    broker.seed(topic, [b"%d" % number for number in range(10)])
    return topic


def committed(cli: Cli, group: str) -> list[int | None]:
    lag: Any = cli("-O", "json", "group", "lag", group).json()
    return [one["committed"] for one in lag["partition_list"]]


def test_group_goes_on_behind_what_was_printed(cli: Cli, ten: str) -> None:
    group = f"g-{ten}"
    assert cli("consume", ten, "-g", group, "-n", "3").out == b"0\n1\n2\n"
    assert committed(cli, group) == [3]
    assert cli("consume", ten, "-g", group, "-n", "2").out == b"3\n4\n"
    assert cli("consume", ten, "-g", group, "-e").out == b"5\n6\n7\n8\n9\n"
    result = cli("consume", ten, "-g", group, "--idle", "50ms", "-o", "committed")
    assert (result.code, result.out, result.err) == (0, b"", "")
    assert committed(cli, group) == [10]


def test_two_groups_do_not_see_each_other(cli: Cli, ten: str) -> None:
    for name in ("a", "b"):
        result = cli("consume", ten, "-g", f"{name}-{ten}", "-e", "-O", "json")
        assert len(result.json()["records"]) == 10


def test_offset_says_where_a_new_group_starts_only(cli: Cli, broker: Broker, ten: str) -> None:
    group = f"g-{ten}"
    result = cli("consume", ten, "-g", group, "-o", "end", "-e")
    assert (result.out, result.err) == (b"", "")
    broker.seed(ten, [b"new"])
    result = cli("consume", ten, "-g", group, "-o", "start", "-e")
    assert result.out == b"new\n"
    assert result.err == (
        f"group '{group}' goes on where it has committed; "
        f"to move it: tailrace group reset {group} --to start\n"
    )
    assert len(cli("consume", ten, "-g", f"h-{ten}", "-o", "@1h", "-e").out.splitlines()) == 11


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-p", "0"), "-p does not go with -g"),
        (("-o", "5"), "to move the group: tailrace group reset g --to OFFSET"),
        (("-o", "-5"), "to move the group"),
        (("-o", "start:end"), "to move the group"),
        (("-O", "json"), "-O json needs an end"),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    cli: Cli, ten: str, arguments: tuple[str, ...], says: str
) -> None:
    result = cli("consume", ten, "-g", "g", *arguments)
    assert result.code == 2
    assert says in result.err


def test_typo_is_not_found_and_a_bad_name_is_refused(cli: Cli) -> None:
    assert cli("consume", "tipo", "-g", "g", "-e").code == 4
    result = cli("consume", "tipo", "-g", "", "-e")
    assert result.code == 1
    assert "T013: group ''" in result.err


def test_ctrl_c_commits_what_was_printed(cli: Cli, ten: str, environment: dict[str, str]) -> None:
    group = f"g-{ten}"
    with started(environment, "consume", ten, "-g", group) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"9\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode() == f"resume at {ten}:0:10\n"
    assert committed(cli, group) == [10]
