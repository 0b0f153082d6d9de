"""What ``tailrace cluster elect|reassign|drain`` make of answers; the brokers are played."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio
import pytest

from tailrace.client import cli_moving
from tailrace.protocol.shapes_cluster import DrainStatus, LeaderChange, ReplicaMove
from tests.cli.conftest import Cli

T = TypeVar("T")


def play(monkeypatch: pytest.MonkeyPatch, **calls: Callable[..., Awaitable[Any]]) -> None:
    """Commands get these as ``client.admin``, and no time passes between two looks."""
    client = SimpleNamespace(admin=SimpleNamespace(**calls))

    def with_client(console: object, work: Callable[[Any], Awaitable[T]]) -> T:
        return anyio.run(work, client, backend="asyncio")

    monkeypatch.setattr(cli_moving, "with_client", with_client)
    monkeypatch.setattr(cli_moving, "LOOK_S", 0.0)


@pytest.mark.parametrize("to", ["", ",", ",,"])
def test_copies_are_sent_to_somebody(offline: Cli, to: str) -> None:
    result = offline("cluster", "reassign", "orders", "--to", to)
    assert result.code == 2
    assert f"--to '{to}' names no broker" in result.err


def test_what_was_said_yes_to_goes_along_with_the_deed(
    offline: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = LeaderChange("orders", 0, None, "n3", 3, 17, ["n1"], None)
    by_then = LeaderChange("orders", 0, None, None, 4, None, [], "T033: something else")
    asked: list[tuple[object, object]] = []

    async def elect_leaders(
        partitions: object, *, topics: object, unclean: bool, dry_run: bool, confirmed: object
    ) -> list[LeaderChange]:
        asked.append((partitions, confirmed))
        return [seen if dry_run else by_then]

    def yes(question: str, yes: bool) -> None:
        pass

    play(monkeypatch, elect_leaders=elect_leaders)
    monkeypatch.setattr(cli_moving, "confirm", yes)
    result = offline("cluster", "elect", "orders", "--unclean")
    assert asked == [([], None), ([("orders", 0)], [seen])]
    assert result.code == 1
    assert "T033: something else" in result.err


def drained(holds: int, *, draining: bool = True) -> DrainStatus:
    return DrainStatus("n1", draining, draining and not holds, 0, holds, [], [])


def test_waiting_for_a_drain_only_looks_and_ends_when_it_is_called_off(
    offline: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = drained(2, draining=False)  # once: by a broker that does not know of it yet
    answers = iter([drained(3), off, drained(2), off, off])
    looks: list[bool] = []

    async def drain_broker(broker: str, *, cancel: bool, dry_run: bool) -> DrainStatus:
        looks.append(dry_run)
        return next(answers)

    play(monkeypatch, drain_broker=drain_broker)
    result = offline("cluster", "drain", "n1", "--wait", "60s")
    assert looks == [False, True, True, True, True], "asked again it would take back a --cancel"
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "called off: n1 is drained no longer, and holds 2 partitions"
    )


def test_waiting_for_a_broker_that_is_not_up_says_so(
    offline: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = ReplicaMove("orders", 0, ["n1"], ["n1", "n2", "n3"], ["n2", "n3"], ["n3"])

    async def reassign(*_: object, **__: object) -> list[ReplicaMove]:
        return [move]

    async def list_moves() -> list[ReplicaMove]:
        return [move]

    play(monkeypatch, reassign=reassign, list_moves=list_moves)
    result = offline("cluster", "reassign", "orders", "--to", "n1,n2,n3", "--wait", "1ms")
    assert result.code == 5
    assert result.err.splitlines()[-1] == "not done in 0.001 s: n3 is not up; the brokers go on"
    assert cli_moving.moves_told([move]) == "1 partition to go, 2 copies to fill; n3 is not up"


@pytest.mark.parametrize("command", [("drain", "n1"), ("reassign", "orders", "--cancel")])
def test_dry_run_has_nothing_to_wait_for(offline: Cli, command: tuple[str, ...]) -> None:
    result = offline("cluster", *command, "--dry-run", "--wait", "10s")
    assert result.code == 2
    assert "--dry-run and --wait exclude each other" in result.err
