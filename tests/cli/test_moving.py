"""``tailrace cluster`` with several brokers: described, unwell, and what moves between them."""

import re
import time
from collections.abc import Iterator

import pytest

from tailrace.client.admin_cluster import ClusterAdmin
from tailrace.protocol.shapes_cluster import LeaderChange
from tailrace.testing import Cluster
from tests.cli.conftest import Cli

SECONDS_MAX = 60.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four brokers, shared by the file: what a test changes it changes back."""
    with Cluster(4, config={"cluster.session_timeout": "1s"}) as made:
        made.create_topic("orders", 4)
        made.create_topic("bills", 2)
        made.seed("orders", [b"%d" % number for number in range(100)], partitions=4)
        yield made


@pytest.fixture
def on(offline: Cli, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands against the cluster, whatever state a test before left it in."""
    monkeypatch.setenv("TAILRACE_URL", cluster.url)
    for broker in cluster.brokers.values():
        broker.start()
    settled(offline)
    return offline


def settled(cli: Cli) -> None:
    assert cli("cluster", "health", "--wait", "60s", "-q").code == 0


def replicas(on: Cli, topic: str) -> list[list[str]]:
    detail = on("topic", "describe", topic, "-O", "json").json()
    return [one["replicas"] for one in detail["partition_list"]]


def leaders(on: Cli, topic: str) -> list[str]:
    detail = on("topic", "describe", topic, "-O", "json").json()
    return [one["leader"] for one in detail["partition_list"]]


def test_brokers_are_listed_with_what_they_lead_and_hold(on: Cli, cluster: Cluster) -> None:
    document = on("cluster", "describe", "-O", "json").json()
    assert [one["id"] for one in document["brokers"]] == list(cluster.brokers)
    assert {one["state"] for one in document["brokers"]} == {"running"}
    assert document["controller"] in cluster.brokers
    assert (document["healthy"], document["problems"]) == (True, [])
    table = on("cluster", "describe").out.decode()
    assert re.match(r"cluster \S+  \S+  metadata etcd, ok  controller n\d  topics \d", table)
    rows = on("cluster", "brokers").out.decode().splitlines()
    assert [row.split()[0] for row in rows] == ["BROKER", *cluster.brokers]


def test_broker_that_is_gone_is_told_with_what_lacks_a_copy(on: Cli, cluster: Cluster) -> None:
    cluster.kill("n4")
    deadline = time.monotonic() + SECONDS_MAX
    while (found := on("cluster", "health")).code == 0:
        assert time.monotonic() < deadline, "nobody has noticed"
    assert found.code == 6
    deadline = time.monotonic() + SECONDS_MAX
    told = r"UNHEALTHY  brokers 3/4 \(n4 last seen \d+ s ago\)  under_replicated [1-9]\d*  "
    told += r"below_min_isr 0  offline 0  metadata ok  .*"
    while not re.fullmatch(told, found.out.decode().strip()):
        assert time.monotonic() < deadline, found.out
        found = on("cluster", "health")
    document = on("cluster", "health", "-O", "json").json()
    assert (document["brokers_up"], document["brokers_total"]) == (3, 4)
    cluster.brokers["n4"].start()
    settled(on)


# ── leaders ──────────────────────────────────────────────────────────────────────────────────


def test_leaders_go_back_to_where_they_belong(on: Cli, cluster: Cluster) -> None:
    wanted = [one[0] for one in replicas(on, "bills")]
    cluster.brokers[wanted[0]].stop()
    cluster.brokers[wanted[0]].start()
    settled(on)
    assert leaders(on, "bills") != wanted
    found = on("cluster", "elect", "bills", "--dry-run", "-O", "json").json()
    assert not found["applied"]
    assert [one["after"] for one in found["leaders"]] == wanted[:1]
    result = on("cluster", "elect", "bills")
    assert (result.code, result.out) == (0, b"")
    assert "elected 1 leader" in result.err
    deadline = time.monotonic() + SECONDS_MAX
    while leaders(on, "bills") != wanted:
        assert time.monotonic() < deadline
    assert "every leader is as it shall be" in on("cluster", "elect", "bills:0", "bills:1").err


def test_leader_that_cannot_be_is_told_with_exit_1(on: Cli, cluster: Cluster) -> None:
    wanted = replicas(on, "bills")[0][0]
    cluster.brokers[wanted].stop()
    result = on("cluster", "elect", "bills:0")
    cluster.brokers[wanted].start()
    assert result.code == 1
    assert f"preferred leader {wanted} is not" in result.err
    assert on("cluster", "elect", "bills").code in (0, 1)


def test_unclean_election_names_what_is_lost_and_asks(on: Cli, cluster: Cluster) -> None:
    assert on("cluster", "elect", "--unclean").code == 2
    result = on("cluster", "elect", "orders:0", "--unclean", "--yes")
    assert result.code == 1
    assert "nothing needs to be lost" in result.err
    held = replicas(on, "orders")[0]
    cluster.brokers[held[2]].stop()  # in time: it is not in sync any more
    on("produce", "orders", "-p", "0", "--value", "only the others have it")
    cluster.kill(held[0])
    cluster.kill(held[1])
    cluster.brokers[held[2]].start()
    deadline = time.monotonic() + SECONDS_MAX
    told = rf"orders\[0\]: {held[2]} would lead, its log ends at \d+; what {held[0]}, {held[1]} "
    told += r"acknowledged beyond that is lost|"
    told += rf"orders\[0\]: {held[2]} would lead, its log ends at \d+; what .* is lost"
    while True:
        result = on("cluster", "elect", "orders:0", "--unclean")
        if result.code == 2 and re.search(told, result.err):
            break
        assert time.monotonic() < deadline, result.err
    assert "add --yes" in result.err, "nobody to ask"
    result = on("cluster", "elect", "orders:0", "--unclean", "--yes")
    assert result.code == 0
    assert cluster.leader("orders", 0) == held[2]
    events = [one["event"] for one in cluster.events(10_000)]
    assert "data-loss-possible" in events
    for broker in cluster.brokers.values():
        broker.start()
    settled(on)


def test_nothing_is_given_up_that_was_not_asked_about(
    on: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that goes between the look and the deed."""
    done: list[bool] = []

    async def changing(
        self: ClusterAdmin, partitions: object = (), *, dry_run: bool = False, **_: object
    ) -> list[LeaderChange]:
        done.append(dry_run)
        error = "T033: it is led" if dry_run else None
        return [LeaderChange("orders", 0, "n1", None if dry_run else "n2", 3, 7, [], error)]

    monkeypatch.setattr(ClusterAdmin, "elect_leaders", changing)
    result = on("cluster", "elect", "orders", "--unclean")
    assert (result.code, done) == (1, [True])
    assert "T033: it is led" in result.err


# ── copies ───────────────────────────────────────────────────────────────────────────────────


def test_copies_are_moved_and_waited_for(on: Cli) -> None:
    before = replicas(on, "orders")[1]
    other = next(name for name in ("n1", "n2", "n3", "n4") if name not in before)
    to = ",".join((other, *before[1:]))
    planned = on("cluster", "reassign", "orders:1", "--to", to, "--dry-run")
    assert planned.code == 0
    assert re.search(rf"orders +1 +{','.join(before)} +{to} +{other}", planned.out.decode())
    assert replicas(on, "orders")[1] == before, "nothing was changed"
    result = on("cluster", "reassign", "orders:1", "--to", to, "--wait", "60s")
    assert result.code == 0, result.err
    assert re.match(r"moving 1 partition\n(1 partition to go, .*\n)*done\n", result.err)
    assert sorted(replicas(on, "orders")[1]) == sorted(to.split(","))
    again = on("cluster", "reassign", "orders:1", "--to", to)
    assert again.err == "every copy is where it shall be\n"
    back = on("cluster", "reassign", "orders:1", "--to", ",".join(before), "--wait", "60s")
    assert back.code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("reassign", "orders", "--to", "n1,n9"), 2, "T082: broker n9 is none of the cluster's"),
        (("reassign", "orders", "--replicas", "9"), 2, "T082: replicas 9 > 4 brokers"),
        (("reassign", "orders", "--to", "n1", "--cancel"), 2, "exclude each other"),
        (("reassign", "nothing"), 4, "T010: topic 'nothing' does not exist"),
        (("reassign", "orders:99"), 4, "T011"),
        (("reassign", ":1"), 2, "':1' is not TOPIC or TOPIC:P"),
        (("drain", "n9"), 2, "T082: broker n9 is none of the cluster's: n1, n2, n3, n4"),
        (("drain", "n1", "--cancel", "--dry-run"), 2, "--cancel goes alone"),
    ],
)
def test_what_cannot_be_moved_is_refused(
    on: Cli, arguments: tuple[str, ...], code: int, text: str
) -> None:
    result = on("cluster", *arguments)
    assert (result.code, result.out) == (code, b"")
    assert text in result.err


def test_broker_is_drained_and_taken_back(on: Cli) -> None:
    planned = on("cluster", "drain", "n1", "--dry-run", "-O", "json").json()
    assert not planned["draining"]
    assert planned["moves"]
    assert all("n1" not in move["after"] for move in planned["moves"])
    result = on("cluster", "drain", "n1", "--wait", "60s")
    assert result.code == 0, result.err
    assert result.err.endswith("n1 holds nothing any more: it can be stopped for good\n")
    assert not any("n1" in one for topic in ("orders", "bills") for one in replicas(on, topic))
    result = on("cluster", "drain", "n1", "--cancel")
    assert result.err == "n1 is drained no longer; it holds 0 partitions\n"


def test_drain_that_nobody_can_take_over_says_so(on: Cli) -> None:
    assert on("topic", "create", "wide", "-r", "4").code == 0
    result = on("cluster", "drain", "n2", "--dry-run")
    assert result.code == 1
    assert "no other broker is there to take wide[0]: start one, or ask for fewer copies" in (
        result.err
    )
    assert on("topic", "delete", "wide", "--yes").code == 0
