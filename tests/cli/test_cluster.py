"""``tailrace cluster``: the brokers, and health: once, awaited, watched."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from tailrace.client.cli_health import of_cluster
from tailrace.protocol.shapes import BrokerInfo, ClusterInfo
from tailrace.testing import Broker
from tests.cli.conftest import Cli

SECONDS_MAX = 20.0


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


def test_health_of_the_cluster_is_what_its_brokers_know(cli: Cli, broker: Broker) -> None:
    result = cli("cluster", "health")
    assert result.code == 0
    assert result.out.decode() == (
        "HEALTHY  brokers 1/1  under_replicated 0  below_min_isr 0  offline 0  metadata ok\n"
    )
    assert cli("cluster", "health", "-O", "json").json() == {
        **{"healthy": True, "problems": [], "brokers_up": 1, "brokers_total": 1},
        **{"under_replicated": 0, "below_min_isr": 0, "offline": 0, "metadata_ok": True},
    }
    with broker.faults.disk_full():
        result = cli("cluster", "health", "-O", "json")
        assert (result.code, result.json()["healthy"]) == (6, False)
        waited = cli("cluster", "health", "--wait", "300ms", "-q")
        assert (waited.code, waited.out) == (6, b"")


def test_a_broker_that_is_away_is_named_with_when_it_was_seen() -> None:
    there = BrokerInfo("n1", "a:1", None, None, "0.1", 1, "running", 1, 1, 1, 2, 3, 100_000)
    gone = BrokerInfo("n3", "b:1", None, None, "0.1", 1, "offline", 0, 1, 1, 2, 3, 86_000)
    cluster = ClusterInfo(
        *("c", "0.1", None, "etcd", True, [there, gone, there], 1, 7, 7, 0, 0),
        *(False, ["n3 is offline"]),
    )
    found = of_cluster(cluster, now_ms=100_000)
    assert found.line == (
        "UNHEALTHY  brokers 2/3 (n3 last seen 14 s ago)  under_replicated 7  below_min_isr 0"
        "  offline 0  metadata ok  n3 is offline"
    )
    assert found.code == 6


@pytest.mark.parametrize("local", [(), ("--local",)])
def test_waiting_in_vain_is_exit_3_and_says_so(
    offline: Cli, monkeypatch: pytest.MonkeyPatch, local: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TAILRACE_HTTP__BIND", "127.0.0.1:1")
    result = offline("cluster", "health", "--wait", "300ms", *local)
    assert (result.code, result.out) == (3, b"")
    assert result.err.startswith("error: T001: no broker reachable in ")
    assert offline("cluster", "health", "--wait", "0s", *local).code == 3
    assert offline("cluster", "health", *local).code == 3


def test_waiting_ends_when_the_broker_is_there(cli: Cli, broker: Broker) -> None:
    away = ExitStack()
    away.enter_context(broker.faults.refuse_connections())
    timer = threading.Timer(0.3, away.close)
    timer.start()
    result = cli("cluster", "health", "--wait", "20s")
    timer.join()
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(b"HEALTHY  brokers 1/1")


def test_a_wait_does_not_outlast_itself_before_a_broker_that_is_silent(
    offline: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("TAILRACE_URL", f"127.0.0.1:{silent.getsockname()[1]}")
        result = offline("cluster", "health", "--wait", "500ms", "--watch", "-O", "ndjson")
    assert result.code == 3
    for line in result.lines():
        assert (line["healthy"], line["brokers_up"], line["brokers_total"]) == (False, 0, None)
        took = re.search(r"no broker reachable in ([0-9.]+) s", line["problems"][0])
        assert took
        assert float(took[1]) < 5  # what one look may take otherwise


def test_watching_with_a_wait_ends_at_the_first_that_is_well(cli: Cli) -> None:
    result = cli("cluster", "health", "--watch", "--wait", "20s", "-O", "ndjson")
    assert (result.code, [line["healthy"] for line in result.lines()]) == (0, [True])
    assert cli("cluster", "health", "--watch", "-O", "json").code == 2
    assert cli("cluster", "health", "--wait", "soon").code == 2


@pytest.mark.slow
def test_watching_goes_on_until_ctrl_c(broker: Broker) -> None:
    command = [sys.executable, "-m", "tailrace.cli", "cluster", "health", "--watch"]
    with subprocess.Popen(
        [*command, "-O", "ndjson", "-b", broker.url], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        for _ in range(2):
            assert json.loads(watching.stdout.readline())["healthy"]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(SECONDS_MAX) == 130


def test_describe_and_brokers(cli: Cli, broker: Broker) -> None:
    described = cli("cluster", "describe", "-O", "json").json()
    (listed,) = cli("cluster", "brokers", "-O", "json").json()["brokers"]
    assert listed["id"] == described["brokers"][0]["id"] == "n1"
    assert f"tailrace://{listed['address']}" == broker.url
    head, titles, row = cli("cluster", "describe").out.decode().splitlines()
    assert head.startswith(f"cluster {described['cluster_id']}  ")
    assert head.endswith("  healthy")
    assert titles.split()[:3] == ["BROKER", "STATE", "ADDRESS"]
    assert row.split()[:3] == ["n1", "running", listed["address"]]
    assert cli("cluster", "brokers").out.decode().splitlines()[0] == titles
