"""A cluster in a test: brokers that replicate, die, come back, and are cut off from each other."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.protocol.messages import FetchPartition, FetchRequest, MetadataRequest
from tailrace.testing import Cluster
from tailrace.testing.cluster import SETTLED_S

FAST = {"cluster.session_timeout": "1s"}
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(config=FAST) as made:
        yield made


def until(condition: Callable[[], bool]) -> None:
    """What follows from a change in the background, within a bound."""
    deadline = time.monotonic() + SETTLED_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def values(cluster: Cluster, topic: str) -> list[int]:
    return [int(record.value or b"") for record in cluster.records(topic)]


def test_topics_have_a_copy_on_each_of_three_brokers(cluster: Cluster) -> None:
    assert list(cluster.brokers) == ["n1", "n2", "n3"]
    assert cluster.url.count(",") == 2
    for broker in cluster.brokers.values():
        assert broker.url.removeprefix("tailrace://") in cluster.url
    cluster.create_topic("orders", 3)
    with cluster.client() as client:
        detail = client.admin.describe_topic("orders")
        until(lambda: client.admin.describe_cluster().under_replicated == 0)
    assert (detail.replicas, detail.min_isr) == (3, 2)
    assert {one.leader for one in detail.partition_list} == {"n1", "n2", "n3"}
    assert cluster.leader("orders", 0) == detail.partition_list[0].leader


def test_acknowledged_records_outlive_their_leader_and_sends_go_on(cluster: Cluster) -> None:
    cluster.create_topic("orders")
    with cluster.client() as client, client.producer() as producer:
        for number in range(50):
            producer.send("orders", b"%d" % number)
        killed = cluster.kill_leader("orders", 0)
        for number in range(50, 100):
            producer.send("orders", b"%d" % number)
    assert cluster.leader("orders", 0) != killed
    assert values(cluster, "orders") == list(range(100))
    cluster.brokers[killed].start()
    with cluster.client() as client:
        until(lambda: client.admin.describe_cluster().healthy)
        (partition,) = client.admin.describe_topic("orders").partition_list
    assert sorted(partition.isr) == ["n1", "n2", "n3"]
    assert values(cluster, "orders") == list(range(100))


def test_group_goes_on_over_its_coordinators_death(cluster: Cluster) -> None:
    cluster.seed("orders", [b"%d" % number for number in range(20)])
    with cluster.client() as client, client.producer() as producer:
        with client.consumer("orders", group="billing", commit_interval=0.05) as consumer:
            records = iter(consumer)
            found = [int(next(records).value or b"") for _ in range(20)]
            cluster.kill(client.admin.describe_group("billing").coordinator)
            for number in range(20, 40):
                producer.send("orders", b"%d" % number)
            found += [int(next(records).value or b"") for _ in range(20)]
            assert found == list(range(40)), "no gap, no repeat"
            consumer.commit()
        cluster.wait_caught_up("billing", timeout=SETTLED_S)
    assert cluster.lag("billing") == 0


def test_broker_alone_on_its_side_leads_no_longer(cluster: Cluster) -> None:
    cluster.seed("orders", [b"0"])
    leader = cluster.leader("orders", 0)
    others = {*cluster.brokers, "metadata"} - {leader}
    with cluster.client() as client, client.producer() as producer:
        with cluster.faults.partition({leader}, others):
            producer.send("orders", b"1")
            assert cluster.leader("orders", 0) != leader
            producer.send("orders", b"2")
        until(lambda: client.admin.describe_cluster().healthy)
    assert values(cluster, "orders") == [0, 1, 2]
    with pytest.raises(ValueError, match="no such broker: n7"):
        with cluster.faults.partition({"n7"}, {"n1"}):
            pass


def test_metadata_store_may_be_away_for_a_moment(cluster: Cluster) -> None:
    cluster.create_topic("orders")
    with cluster.client() as client, client.producer() as producer:
        producer.send("orders", b"0")
        with cluster.faults.metadata_down():
            producer.send("orders", b"1")
        producer.send("orders", b"2")
    assert values(cluster, "orders") == [0, 1, 2]


def test_faults_are_of_one_broker_or_of_all(cluster: Cluster) -> None:
    cluster.create_topic("orders")
    leader = cluster.brokers[cluster.leader("orders", 0)]
    with cluster.client() as client, client.producer() as producer:
        with leader.faults.drop_connections("produce"):
            delivery = producer.enqueue("orders", b"0")
        assert delivery.result(timeout=SETTLED_S).offset == 0
        with cluster.faults.error("T031", "produce", times=1):
            assert producer.send("orders", b"1").offset == 1


def test_cluster_comes_back_from_a_power_cut(cluster: Cluster) -> None:
    cluster.seed("orders", [b"%d" % number for number in range(10)])
    with cluster.client() as client, client.producer() as producer:
        producer.send("orders", b"10")
        cluster.restart(crash=True)
        assert producer.send("orders", b"11").offset == 11
    assert values(cluster, "orders") == list(range(12))


def test_broker_with_an_empty_disk_is_filled_again(cluster: Cluster) -> None:
    cluster.seed("orders", [b"%d" % number for number in range(10)])
    leader = cluster.leader("orders", 0)
    cluster.kill(leader)
    cluster.brokers[leader].restart(keep_data=False)
    with cluster.client() as client:
        until(lambda: client.admin.describe_cluster().healthy)
    assert values(cluster, "orders") == list(range(10))


def test_events_say_which_broker_they_are_of(cluster: Cluster) -> None:
    until(lambda: {event["broker"] for event in cluster.events(100)} == set(cluster.brokers))
    times = [event["time"] for event in cluster.events(100)]
    assert times == sorted(times, key=str)
    assert cluster.events(0) == []


def test_graceful_stop_of_the_leader_is_no_pause(cluster: Cluster) -> None:
    cluster.create_topic("orders")
    with cluster.client() as client, client.producer(timeout=SETTLED_S) as producer:
        for round_ in range(3):
            producer.send("orders", b"%d" % round_)
            leader = cluster.brokers[cluster.leader("orders", 0)]
            leader.stop()
            leader.start()
            until(lambda: client.admin.describe_cluster().under_replicated == 0)
    assert values(cluster, "orders") == [0, 1, 2]


def test_reader_in_a_rack_reads_from_the_replica_there() -> None:
    with Cluster(config=FAST) as cluster:
        for name, broker in cluster.brokers.items():
            broker.stop()
            broker._config["broker.rack"] = f"rack-{name}"
            broker.start()
        cluster.start()  # every broker knows all others again
        cluster.create_topic("orders")
        leader = cluster.leader("orders", 0)
        near = next(name for name in cluster.brokers if name != leader)
        cluster.seed("orders", [b"0"])
        with tailrace.sync.connect(cluster.url, rack=f"rack-{near}") as client:
            with (
                client.consumer("orders", fetch_wait=0.2) as consumer,
                client.producer() as producer,
            ):
                records = iter(consumer)
                assert next(records).value == b"0"
                until(lambda: served(consumer) == near)
                producer.send("orders", b"1")
                assert next(records).value == b"1"
                cluster.kill(near)
                producer.send("orders", b"2")
                assert next(records).value == b"2"


def test_reader_that_waits_at_a_follower_is_answered_when_records_come(cluster: Cluster) -> None:
    """Nothing else happens on that broker that would send the answer."""
    cluster.create_topic("orders")
    leader = cluster.leader("orders", 0)
    near = next(name for name in cluster.brokers if name != leader)

    async def main() -> float:
        async with tailrace.connect(cluster.url) as client, client.producer() as producer:
            topic = await client.cluster.topic("orders")
            until_known = FetchPartition(topic.topic_id, 0, 0, 1 << 20, -1, -1, -1)
            question = FetchRequest(20_000, 1, 1 << 20, 1, None, -1, (until_known,), rack="near")
            bodies: list[bytes] = []

            async def read() -> None:
                while not bodies:  # it may have to open its copy first
                    _, body = await client.cluster.leader_request(
                        near, question, kind="fetch", timeout=30.0
                    )
                    bodies.extend([bytes(body)] if body else [])

            await client.cluster.leader_request(
                near, MetadataRequest((), False), kind="fetch", timeout=10.0
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await anyio.sleep(0.2)
                await producer.send("orders", b"a")
                began = time.monotonic()
            return time.monotonic() - began

    assert anyio.run(main) < SETTLED_S, "not at the end of the wait"


def served(consumer: Any) -> Any:
    """The follower that is asked, if it is one."""
    (buffer,) = consumer._inner.feed.buffers.values()
    return buffer.served_by.near


# ── the fixture ──────────────────────────────────────────────────────────────────────────────

TESTS = """
import pytest


def test_three(tailrace_cluster):
    assert list(tailrace_cluster.brokers) == ["n1", "n2", "n3"]
    tailrace_cluster.seed("orders", [b"a"])
    assert tailrace_cluster.wait_values("orders", count=1) == [b"a"]


@pytest.mark.tailrace(brokers=1, config={"topic.partitions": 2})
def test_marked(tailrace_cluster):
    assert list(tailrace_cluster.brokers) == ["n1"]
    with tailrace_cluster.client() as client:
        assert client.admin.create_topic("orders").partitions == 2


def test_kill(tailrace_cluster):
    tailrace_cluster.seed("orders", [b"a"])
    tailrace_cluster.leader("orders", 0)
    tailrace_cluster.kill_leader("orders", 0)
"""


def run_pytest(folder: Path, *options: str) -> str:
    (folder / "test_mine.py").write_text(TESTS)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    return ended.stdout + ended.stderr


def test_a_users_tests_run_on_the_fixture(tmp_path: Path) -> None:
    said = run_pytest(tmp_path)
    assert "3 passed" in said, said


def test_tests_that_kill_are_skipped_on_a_cluster_that_is_not_ours(
    tmp_path: Path, cluster: Cluster
) -> None:
    said = run_pytest(tmp_path, "--tailrace-url", cluster.url)
    assert "brokers needs a broker of the test's own" in said, said
    assert "3 skipped" in said, said
