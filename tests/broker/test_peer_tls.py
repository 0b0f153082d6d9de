"""Brokers that speak TLS to each other: three in one process, over real sockets."""

import json
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tailrace.client.records import ConfigValue
from tailrace.testing import Cluster
from tests.broker.certified import certified

SECONDS_MAX = 20.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def secured(folder: Path, signed: trustme.CA, trusted: trustme.CA) -> dict[str, ConfigValue]:
    """A listener for other brokers, with TLS."""
    trusted.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {
        **certified(folder, signed, "127.0.0.1"),
        "listeners.peer.bind": "127.0.0.1:0",
        "listeners.peer.tls": True,
        "cluster.peer_listener": "peer",
        "cluster.peer_ca": str(folder / "ca.pem"),
        "cluster.session_timeout": "1s",
    }


@pytest.fixture
def cluster(tmp_path: Path, authority: trustme.CA) -> Iterator[Cluster]:
    with Cluster(config=secured(tmp_path, authority, authority)) as made:
        yield made


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_a_follower_that_does_not_believe_its_leader_says_so(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**secured(tmp_path, authority, trustme.CA()), "cluster.replica_lag_max": "500ms"}

    def told() -> list[logging.LogRecord]:
        return [one for one in caplog.records if getattr(one, "event", "") == "peer.unreachable"]

    with Cluster(2, config=settings) as cluster:
        cluster.create_topic("orders", min_isr=1)
        leader = cluster.leader("orders", 0)
        until(lambda: [one for one in told() if vars(one)["peer"] == leader])
        line = next(one for one in told() if vars(one)["peer"] == leader)
        with cluster.client() as client:
            until(lambda: client.admin.describe_cluster().under_replicated)
    assert (line.levelname, vars(line)["code"]) == ("WARNING", "T001")
    assert "certificate refused: " in line.getMessage()
    assert f"Set cluster.peer_ca to the certificate of who signed that of broker {leader}." in (
        line.getMessage()
    )
    assert len(told()) <= 2, "once at each broker"


def test_records_are_copied_over_tls_and_outlive_their_leader(cluster: Cluster) -> None:
    cluster.create_topic("orders", min_isr=2)
    large = [os.urandom(700_000) for _ in range(3)]  # received straight into their place
    with cluster.client() as client, client.producer() as producer:
        for value in large:
            producer.send("orders", value)
        until(lambda: client.admin.describe_cluster().under_replicated == 0)
        killed = cluster.kill_leader("orders", 0)
        producer.send("orders", b"last")
    assert [record.value for record in cluster.records("orders")] == [*large, b"last"]
    cluster.brokers[killed].start()
    with cluster.client() as client:
        until(lambda: client.admin.describe_cluster().healthy)


def test_any_broker_passes_requests_on_over_tls(tmp_path: Path, authority: trustme.CA) -> None:
    with Cluster(2, config=secured(tmp_path, authority, authority), http=True) as cluster:
        cluster.create_topic("orders", 4)
        leaders = [cluster.leader("orders", number) for number in range(4)]
        assert {*leaders} == {"n1", "n2"}
        for broker in cluster.brokers.values():
            keyed = [{"key": f"k{number}", "value": "a"} for number in range(40)]
            written = posted(f"{broker.http_url}/api/v1/topics/orders/records", keyed)
            assert (written["written"], written["failed"]) == (40, 0)
        with cluster.client() as client:
            detail = client.admin.describe_topic("orders")
        ends = [one.log_end for one in detail.partition_list]
        assert sum(ends) == 80
        assert all(ends), "at both leaders, and told of both"


def posted(url: str, records: list[dict[str, str]]) -> dict[str, object]:
    request = urllib.request.Request(
        url,
        json.dumps({"records": records}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        found: dict[str, object] = json.load(answer)
    return found
