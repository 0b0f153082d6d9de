"""What a broker counts for when it comes back: with its directory, with another, not at all."""

from itertools import permutations
from pathlib import Path

import pytest
import trio

from tailrace.broker.catalog import Leadership, new_topic, partition_key
from tailrace.broker.joining import record_of
from tailrace.protocol.errors import BrokerError, ConfigError
from tailrace.storage.directory import DataDirectory
from tailrace.storage.disk import OsDisk
from tests.broker import harness
from tests.broker.cluster_harness import Cluster, clustered
from tests.simulation.crash_model import drop_all, keep_all

NAMES = ("n1", "n2", "n3")


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ("http://0.0.0.0:7480", "http://n1.example:7480"),
        ("http://[::]:7480", "http://n1.example:7480"),
        ("http://127.0.0.1:7480", "http://127.0.0.1:7480"),
        (None, None),
    ],
)
def test_others_are_told_where_http_is_reached(
    tmp_path: Path, bound: str | None, told: str | None
) -> None:
    directory = DataDirectory.open(
        OsDisk(),
        str(tmp_path / "data"),
        broker_id="n1",
        cluster_id=None,
        new_cluster_id="c",
        new_directory_id="d",
        role="broker",
        pid=1,
    )
    config, addresses = harness.config(tmp_path), {"client": ("n1.example", 7400)}
    record = record_of(config, addresses, http=bound, directory=directory, since=0)
    assert record.http == told
    directory.release()


def test_a_wiped_disk_counts_for_nothing_until_it_is_filled() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b")
        [lost, *_] = [one for one in ("n1", "n2", "n3") if one != cluster.leader("orders")]
        cluster.machine(lost).wipe()
        await cluster.machine(lost).ended()
        seen: list[bool] = []
        key = f"partitions/{cluster.topic('orders').topic_id.hex()}/0"

        def registered(change: object) -> None:
            if f"brokers/{lost}" in cluster.keep.entries and not seen:
                seen.append(f'"{lost}"' in cluster.keep.entries[key].value.decode().split("elr")[0])

        cluster.keep.expire()
        cluster.keep.end_all_leases()  # of all: the others take new ones
        cluster.keep.taps.append(registered)
        await cluster.start(lost)
        assert seen == [False]  # before it was registered it had left the in-sync set
        await cluster.until(lambda: cluster.partition(lost, "orders").log.end == 2)
        await cluster.until(lambda: lost in cluster.leadership("orders", at=lost).isr)

    clustered(main)


def test_a_wiped_disk_with_the_only_copy_is_never_led_again() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", replicas=1)
        await cluster.send("orders", b"a")
        lost = cluster.leader("orders")
        assert lost is not None
        cluster.machine(lost).wipe()
        await cluster.machine(lost).ended()
        await cluster.start(lost)
        await cluster.until(lambda: cluster.leadership("orders").isr == ())
        assert cluster.leadership("orders").leader is None
        assert not cluster.leadership("orders").elr

    clustered(main)


def test_a_wiped_disk_with_the_only_copy_of_what_nobody_has_led_yet_is_led() -> None:
    async def main(cluster: Cluster) -> None:
        cluster.machine("n3").wipe()
        await cluster.machine("n3").ended()
        # Made while it still counts as alive.
        topic = new_topic("orders", b"o" * 16, placement=[("n3",)], replicas=1, config={})
        new = Leadership("n3", 0, ("n3",), (), ("n3",))
        puts = {topic.key: topic.to_json(), partition_key(b"o" * 16, 0): new.to_json()}
        cluster.keep.transact([], puts, [], None)
        await cluster.start("n3")
        await cluster.send("orders", b"a")
        await cluster.until(lambda: cluster.leadership("orders").leader_epoch == 1)
        assert cluster.leader("orders") == "n3"

    clustered(main)


def test_two_brokers_with_one_id_are_told_apart() -> None:
    async def main(cluster: Cluster) -> None:
        failure = await cluster.second("n1")
        assert isinstance(failure, ConfigError)
        assert "broker n1 runs at n1:7400, with another data directory" in str(failure)
        assert cluster.running == ["n1", "n2", "n3"]

    clustered(main)


def test_a_directory_of_another_cluster_is_refused() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.stop("n3")
        entry = cluster.keep.entries["cluster"]
        cluster.keep.transact([], {"cluster": b'{"id": "another"}'}, [], None)
        machine = cluster.machine("n3")
        assert not await machine.start()
        failure = cluster.failure(machine)
        assert isinstance(failure, BrokerError)
        assert failure.code == "T091"
        cluster.keep.transact([], {"cluster": entry.value}, [], None)
        await cluster.start("n3")

    clustered(main)


def test_an_unclean_stop_costs_the_place_where_acks_do_not_wait_for_a_sync() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("fast", durability="replicated")
        await cluster.create("safe")
        await cluster.send("fast", b"a")
        await cluster.send("safe", b"a")
        lost = "n3"
        before = cluster.keep.revision
        await cluster.kill(lost)
        await cluster.start(lost)  # before its lease has ended
        changed = {
            key.split("/")[1]: entry.value
            for key, entry in cluster.keep.entries.items()
            if key.startswith("partitions/") and entry.revision > before
        }
        assert cluster.topic("fast").topic_id.hex() in changed
        await cluster.until(lambda: lost in cluster.leadership("fast").isr)

    clustered(main)


@pytest.mark.parametrize("whole", NAMES)
@pytest.mark.parametrize("order", list(permutations(NAMES)))
def test_where_all_lost_power_at_once_nothing_is_lost_that_one_of_them_holds(
    whole: str, order: tuple[str, ...]
) -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("fast", 3, durability="replicated")
        for number in range(3):
            await cluster.send("fast", b"a", partition=number)
        await trio.sleep(60)  # by then that is on every disk
        for number in range(3):
            await cluster.send("fast", b"b", partition=number)
        for name in NAMES:
            cluster.machine(name).power_cut(keep_all if name == whole else drop_all)
        for name in NAMES:
            await cluster.machine(name).ended()
        for name in order:  # before the leases of their former lives have ended
            await cluster.start(name)
        await cluster.until(
            lambda: all(len(cluster.leadership("fast", number).isr) == 3 for number in range(3))
        )
        for number in range(3):
            assert {cluster.partition(name, "fast", number).log.end for name in NAMES} == {2}
            assert not cluster.leadership("fast", number).doubted

    clustered(main)


@pytest.mark.parametrize("whole", ["n1", "n3"])
def test_where_all_lost_power_whoever_holds_most_leads(whole: str) -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("fast", durability="replicated")
        await cluster.send("fast", b"a")
        await trio.sleep(60)  # by then that is on every disk
        await cluster.send("fast", b"b", b"c")
        for name in NAMES:
            cluster.machine(name).power_cut(keep_all if name == whole else drop_all)
        for name in NAMES:
            await cluster.machine(name).ended()
        for name in ("n1", "n2"):
            await cluster.start(name)
        await trio.sleep(20)
        assert cluster.leader("fast") is None, "one of those who held it is still away"
        await cluster.start("n3")
        await cluster.until(lambda: len(cluster.leadership("fast").isr) == 3)
        assert {cluster.partition(name, "fast").log.end for name in NAMES} == {3}
        lost = sum(cluster.node(name).metrics.data_loss_possible.value for name in NAMES)
        assert lost == 1

    clustered(main)
