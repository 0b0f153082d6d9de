"""What brokers store, and what they make of answers that were lost: against a simulated store."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tailrace.broker.catalog import Deletion, Leadership, Topic, new_topic, partition_key
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.health import Health
from tailrace.broker.members import BROKERS, CONTROLLER_KEY
from tailrace.broker.metrics import Metrics
from tailrace.broker.registry import Conflict, Registry
from tailrace.protocol.errors import BrokerError, MetadataUnavailable
from tailrace.simulation.chance import seeded
from tailrace.simulation.clock import SimClock
from tailrace.simulation.life import Life
from tailrace.simulation.meta import MetaKeep, SimMeta

ID = bytes(range(16))


class Stage:
    def __init__(self) -> None:
        self.keep = MetaKeep(seeded(1, "keep"))
        self.health = Health()

    def registry(self, broker: str = "n1") -> Registry:
        metrics = Metrics(version="0", topics_max=10, clock=lambda: 0.0)
        store = SimMeta(self.keep, Life(broker))
        return Registry(store, broker, SimClock(), metrics, self.health)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.keep.entries if key.startswith(prefix))

    def lose_the_next_reply(self) -> None:
        """The next transaction is applied, and nobody hears of it."""
        applied: list[object] = []

        def note(change: object) -> None:
            applied.append(change)
            self.keep.lost_replies = 1.0 if len(applied) == 1 else 0.0

        self.keep.taps.append(note)


def run(main: Callable[[Stage], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(100):
            await main(Stage())

    trio.run(bounded, clock=MockClock(autojump_threshold=0))


def topic(partitions: int = 1, topic_id: bytes = ID) -> Topic:
    replicas = [("n1", "n2", "n3")] * partitions
    return new_topic("orders", topic_id, placement=replicas, replicas=None, config={})


def fresh(made: Topic) -> dict[PartitionId, Leadership]:
    return {
        (made.topic_id, number): Leadership(
            one.replicas[0], 0, isr=one.replicas, replicas=one.replicas
        )
        for number, one in enumerate(made.partitions)
    }


def test_the_first_broker_says_which_cluster_it_is() -> None:
    async def main(stage: Stage) -> None:
        assert await stage.registry("n1").cluster_id("store", "a") == "a"
        assert await stage.registry("n2").cluster_id("store", "b") == "a"
        assert json.loads(stage.keep.entries["cluster"].value) == {"id": "a"}

    run(main)


def test_brokers_that_come_together_are_of_one_cluster() -> None:
    async def main(stage: Stage) -> None:
        found: set[str] = set()

        async def come(broker: str) -> None:
            found.add(await stage.registry(broker).cluster_id("store", f"of {broker}"))

        async with trio.open_nursery() as nursery:
            for broker in ("n1", "n2", "n3"):
                nursery.start_soon(come, broker)
        assert len(found) == 1

    run(main)


def test_a_store_of_a_newer_format_is_refused() -> None:
    async def main(stage: Stage) -> None:
        stage.keep.transact([], {"format": b'{"format": 2}'}, [], None)
        with pytest.raises(BrokerError, match="T092"):
            await stage.registry().cluster_id("store", "a")

    run(main)


@pytest.mark.parametrize("partitions", [1, 99, 100, 230])
def test_a_topic_has_its_partitions_whatever_their_number(partitions: int) -> None:
    async def main(stage: Stage) -> None:
        made = topic(partitions)
        stored = await stage.registry().create(made, fresh(made))
        assert stored.revision == stage.keep.entries["topics/orders"].revision
        assert len(stage.keys("partitions/")) == partitions

    run(main)


@pytest.mark.parametrize("partitions", [1, 230])
def test_of_two_topics_with_one_name_one_comes_to_be(partitions: int) -> None:
    async def main(stage: Stage) -> None:
        made, other = topic(partitions), topic(partitions, bytes(16))
        await stage.registry("n1").create(made, fresh(made))
        with pytest.raises(Conflict):
            await stage.registry("n2").create(other, fresh(other))
        assert not stage.keys(f"partitions/{other.topic_id.hex()}")

    run(main)


def test_who_removes_leftovers_of_a_creation_and_who_completes_it_do_not_both_succeed() -> None:
    async def main(stage: Stage) -> None:
        made = topic(230)
        remover = stage.registry("n2")

        def removed(change: object) -> None:
            if len(stage.keys("partitions/")) == 230:
                stage.keep.taps.clear()
                for number in range(230):
                    stage.keep.transact([], {}, [partition_key(ID, number)], None)

        stage.keep.taps.append(removed)
        with pytest.raises(Conflict):
            await stage.registry("n1").create(made, fresh(made))
        await remover.forget_partitions(list(fresh(made)))
        assert not stage.keys()

    run(main)


def test_a_deleted_topic_is_remembered_until_all_have_removed_it() -> None:
    async def main(stage: Stage) -> None:
        made = topic(3)
        made = await stage.registry().create(made, fresh(made))
        deletion = await stage.registry().retire(made, ["n1", "n2"])
        assert stage.keys() == [deletion.key]
        await stage.registry("n2").removed(deletion)
        with pytest.raises(Conflict):
            await stage.registry("n1").removed(deletion)  # it knew an older one
        entry = stage.keep.entries[deletion.key]
        left = Deletion.from_json(entry.key, entry.value, entry.revision)
        assert left == replace(deletion, pending=("n1",), revision=entry.revision)
        await stage.registry("n1").removed(left)
        assert not stage.keys()

    run(main)


def test_an_election_leaves_out_what_somebody_else_has_changed() -> None:
    async def main(stage: Stage) -> None:
        made = topic(120)
        leaderships = fresh(made)
        registry = stage.registry()
        await registry.create(made, leaderships)
        known = {
            where: replace(one, revision=stage.keep.entries[partition_key(*where)].revision)
            for where, one in leaderships.items()
        }
        told: list[int] = []
        registry.stored = lambda stored: told.append(len(stored))
        other = known[ID, 7]
        await stage.registry("n2").alter({(ID, 7): replace(other, leader="n2")})
        elected = await registry.elect(known)
        assert elected.keys() == known.keys() - {(ID, 7)}
        assert {one.leader_epoch for one in elected.values()} == {1}
        assert told == [119]

    run(main)


def test_a_change_of_leaderships_compares_what_else_it_is_given() -> None:
    async def main(stage: Stage) -> None:
        made = topic()
        registry = stage.registry()
        await registry.create(made, fresh(made))
        known = Leadership("n1", 0, (), revision=stage.keep.revision)
        lease = await registry.grant(6.0)
        epoch = await registry.campaign(lease)
        assert epoch is not None
        assert await stage.registry("n2").campaign(lease) is None
        stored = await registry.alter({(ID, 0): known}, [(CONTROLLER_KEY, epoch)])
        await registry.revoke(lease)
        with pytest.raises(Conflict):
            await registry.alter(stored, [(CONTROLLER_KEY, epoch)])
        with pytest.raises(Conflict):
            await registry.alter(stored, [(f"{BROKERS}n3", 5)])

    run(main)


def test_a_change_whose_reply_was_lost_is_not_tried_again_by_itself() -> None:
    async def main(stage: Stage) -> None:
        made = topic()
        registry = stage.registry()
        await registry.create(made, fresh(made))
        known = Leadership("n1", 0, ("n1",), revision=stage.keep.revision)
        before = stage.keep.revision
        stage.keep.lost_replies = 1.0
        with pytest.raises(MetadataUnavailable):
            await registry.alter({(ID, 0): known})
        assert stage.keep.revision == before + 1
        assert stage.health.metadata_error

    run(main)


def test_an_election_whose_reply_was_lost_is_found_out() -> None:
    async def main(stage: Stage) -> None:
        made = topic()
        registry = stage.registry()
        await registry.create(made, fresh(made))
        known = replace(fresh(made)[ID, 0], revision=stage.keep.revision)
        before = stage.keep.revision
        stage.lose_the_next_reply()
        elected = await registry.elect({(ID, 0): known})
        assert elected[ID, 0].revision == stage.keep.revision == before + 1

    run(main)


def test_a_change_is_not_taken_for_stored_because_a_part_of_it_stands_there() -> None:
    """Another broker has put the same for one partition and something else for the other."""

    async def main(stage: Stage) -> None:
        made = topic(partitions=2)
        registry = stage.registry()
        await registry.create(made, fresh(made))
        mine = {
            (ID, number): Leadership("n2", 0, ("n2",), revision=stage.keep.revision)
            for number in range(2)
        }
        theirs = replace(mine[ID, 1], leader="n3", leader_epoch=1)
        stored: list[dict[PartitionId, Leadership]] = []

        async def change() -> None:
            stored.append(await registry.change(mine))

        stage.keep.full = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await trio.sleep(0.05)
            puts = {
                partition_key(ID, 0): mine[ID, 0].to_json(),
                partition_key(ID, 1): theirs.to_json(),
            }
            stage.keep.transact([], puts, [], None)
            stage.keep.full = False
        assert stored == [{}]

    run(main)
