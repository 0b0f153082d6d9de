"""``tailrace doctor`` and ``tailrace cluster health --local``: what is wrong, and what to do."""

import socket
from typing import Any

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli

NAMES = (
    *("python", "extras", "ports", "nofile", "disk_free", "fsync_ms"),
    *("clock_skew", "broker", "http", "metadata"),
)


@pytest.fixture
def local(broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """The configuration of this machine is the test broker's."""
    bind = broker.url.removeprefix("tailrace://")
    monkeypatch.setenv("TAILRACE_LISTENERS__CLIENT__BIND", bind)
    monkeypatch.setenv("TAILRACE_STORAGE__DATA_DIR", f"{tmp_path}/not/yet")


def checks(result: Any) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in result.json()["checks"]}


@pytest.mark.usefixtures("local")
def test_all_is_well(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.cli_doctor.FSYNC_MS_MAX", 10_000)
    result = cli("doctor", "-O", "json")
    assert [check["name"] for check in result.json()["checks"]] == list(NAMES)
    wrong = [check for check in result.json()["checks"] if not check["ok"]]
    assert (result.code, result.json()["ok"], wrong) == (0, True, [])
    text = cli("doctor").out.decode()
    assert [line.split()[:2] for line in text.splitlines()] == [["ok", name] for name in NAMES]


def test_no_broker(offline: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_HTTP__BIND", "127.0.0.1:1")
    result = offline("doctor", "-O", "json")
    assert result.code == 6
    found = checks(result)
    assert tuple(found) == NAMES
    for name in ("broker", "http", "metadata", "clock_skew"):
        assert not found[name]["ok"]
        assert found[name]["fix"]
    assert found["broker"]["fix"].endswith("Start one: tailrace dev")


def test_port_taken_by_somebody_else(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        stranger.settimeout(0)
        monkeypatch.setenv("TAILRACE_LISTENERS__CLIENT__BIND", f"127.0.0.1:{port}")
        found = checks(cli("doctor", "-O", "json"))["ports"]
    assert not found["ok"]
    assert found["value"] == [f"127.0.0.1:{port} (listeners.client.bind)"]


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("patch", "value", "name"),
    [
        ("tailrace.cli_doctor.NOFILE_MIN", 1 << 60, "nofile"),
        ("tailrace.cli_doctor.DISK_FREE_MIN", 1.0, "disk_free"),
        ("tailrace.cli_doctor.FSYNC_MS_MAX", 0.0, "fsync_ms"),
        ("tailrace.cli_doctor.SKEW_SECONDS_MAX", -1.0, "clock_skew"),
        ("tailrace.cli_doctor.EXTRAS", ("trio", "no_such_module"), "extras"),
    ],
)
def test_each_fault_has_its_fix(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, patch: str, value: object, name: str
) -> None:
    monkeypatch.setattr("tailrace.cli_doctor.FSYNC_MS_MAX", 10_000)
    monkeypatch.setattr(patch, value)
    result = cli("doctor", "-O", "json")
    assert result.code == 6
    assert [check for check, found in checks(result).items() if not found["ok"]] == [name]
    assert checks(result)[name]["fix"]


def test_a_wrong_configuration_is_exit_2(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_STORAGE__COLOUR", "red")
    result = cli("doctor")
    assert result.code == 2
    assert "T080" in result.err


def test_health_of_a_broker_that_is_well(cli: Cli) -> None:
    result = cli("cluster", "health", "--local")
    assert (result.code, result.out) == (0, b"HEALTHY  brokers 1/1  metadata ok\n")
    document = cli("cluster", "health", "--local", "-O", "json").json()
    assert document == {
        **{"healthy": True, "problems": [], "brokers_up": 1, "brokers_total": 1},
        **{"under_replicated": None, "below_min_isr": None, "offline": None},
        "metadata_ok": True,
    }
    assert cli("cluster", "health", "--local", "-q").out == b""


def test_health_without_a_broker_is_exit_3(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_HTTP__BIND", "127.0.0.1:1")
    result = cli("cluster", "health", "--local")
    assert (result.code, result.out) == (3, b"")
    assert result.err.startswith("error: T001: no broker reachable in ")
    monkeypatch.setenv("TAILRACE_HTTP__BIND", "nonsense")
    assert cli("cluster", "health", "--local").code == 2


def test_health_of_a_full_disk_is_a_problem_of_a_ready_broker(cli: Cli, broker: Broker) -> None:
    with broker.faults.disk_full():
        result = cli("cluster", "health", "--local", "-O", "json")
    assert result.code == 0
    (problem,) = result.json()["problems"]
    assert problem.startswith("disk: ")
