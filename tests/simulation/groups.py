"""A consumer group under faults: members stand still, crash, come and go; so does the broker.

The third scenario: up to eight members, 24 partitions of three topics, of which one is deleted and
made anew again and again. Each member reads in its own way; some have an instance id, and at times
a twin that takes over. An auditor asks all the while what is committed. At the end everything
heals: the group must be stable within three rebalance timeouts (L5), read to the end, and everybody
leaves. Then a position is reset, the broker crashes once more, and what is committed must be there.
"""

from collections.abc import Awaitable, Callable
from random import Random
from uuid import UUID

import trio

from tailrace.client.client import Client
from tailrace.client.coordinator import Coordinator
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import FetchOffsetsRequest
from tailrace.protocol.shapes import GroupDetail
from tailrace.simulation.chance import seeded
from tailrace.simulation.checkers import (
    Violation,
    changed_reads,
    duplicates,
    lost_or_changed_writes,
    producer_order,
    real_time_order,
    refused_but_written,
)
from tailrace.simulation.group_oracle import GroupOracle
from tailrace.simulation.group_tap import GroupTap
from tailrace.simulation.history import History
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.seeding import Outcome
from tests.simulation.chaos import Chaos
from tests.simulation.members import GROUP, REBALANCE_S, SESSION_S, Member, World
from tests.simulation.scenario import Report
from tests.simulation.workload import Producing, drain

STABLE, BRIEF = ("orders", "payments"), "brief"
PARTITIONS = 8
MEMBERS = 8
CHAOS_S = 12.0
STABLE_WITHIN_S = 3 * REBALANCE_S
CAUGHT_UP_WITHIN_S = 120.0
END_S = 600.0
AUDIT_S = 0.3
SETTINGS = {"topic.segment_size": "16KiB", "topic.max_record": "8KiB"}
WITHOUT = ("rot",)  # what was committed may be lost where the disk rots


class Fate:
    """What happens to the members, and to the brief topic."""

    def __init__(self, world: World, members: list[Member], rng: Random) -> None:
        self.struck: dict[str, int] = {}
        self._world = world
        self._members = members
        self._rng = rng
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "member frozen": self._freeze,
            "member crashed": self._crash,
            "member left": self._leave,
            "member came": self._come,
            "topic remade": self._remake,
        }
        self._kinds = {kind: strike for kind, strike in kinds.items() if rng.random() < 0.7}

    async def until(self, end: float) -> None:
        """Let it strike until that moment of virtual time."""
        while trio.current_time() < end:
            await trio.sleep(self._rng.expovariate(1.5))
            if self._kinds:
                kind = self._rng.choice(list(self._kinds))
                self._world.cluster.trace.note(kind)
                self.struck[kind] = self.struck.get(kind, 0) + 1
                await self._kinds[kind]()
        for member in self._members:
            if member.process is not None:
                member.process.freezer.thaw()

    async def _freeze(self) -> None:
        """Longer than a session, mostly; it goes on then as if nothing had happened."""
        process = self._rng.choice(self._members).process
        if process is not None:
            process.freezer.freeze(self._rng.uniform(0.2, 3.0) * SESSION_S)
        await trio.lowlevel.checkpoint()

    async def _crash(self) -> None:
        self._rng.choice(self._members).crash()
        await trio.lowlevel.checkpoint()

    async def _leave(self) -> None:
        self._rng.choice(self._members).go()
        await trio.lowlevel.checkpoint()

    async def _come(self) -> None:
        self._rng.choice(self._members).come()
        await trio.lowlevel.checkpoint()

    async def _remake(self) -> None:
        """The brief topic goes; another one comes under its name."""
        world = self._world
        try:
            async with world.cluster.client(f"maker.{trio.current_time()}") as client:
                detail = await client.admin.describe_topic(BRIEF)
                world.oracle.topic_goes(UUID(detail.topic_id).bytes)
                await client.admin.delete_topic(BRIEF, missing_ok=True)
                await trio.sleep(self._rng.random())
        except TailraceError:
            pass
        finally:
            await ensure_brief(world.cluster)


async def ensure_brief(cluster: SimCluster) -> None:
    """It is there, sooner or later."""
    with trio.move_on_after(30.0):
        while True:
            try:
                async with cluster.client(f"maker.{trio.current_time()}") as client:
                    await client.admin.create_topic(BRIEF, partitions=PARTITIONS, exist_ok=True)
                return
            except TailraceError:
                await trio.sleep(0.5)


class Auditor:
    """Asks what is committed, again and again, and wants it all."""

    def __init__(self, cluster: SimCluster, rng: Random) -> None:
        self._cluster = cluster
        self._rng = rng

    async def for_ever(self) -> None:
        """Until cancelled."""
        lives = 0
        while True:
            lives += 1
            try:
                async with self._cluster.client(f"auditor.{lives}") as client:
                    coordinator = Coordinator(client, GROUP)
                    while True:
                        await ask(coordinator)
                        await trio.sleep(self._rng.expovariate(1 / AUDIT_S))
            except TailraceError:
                await trio.sleep(self._rng.random())


async def ask(coordinator: Coordinator) -> None:
    """All that is committed: the oracle listens to the answer."""
    await coordinator.request(FetchOffsetsRequest(GROUP, None), timeout=30.0)


def run_groups(seed: int) -> Outcome[Report]:
    """One world from beginning to end."""
    delay = seeded(seed, "settings").choice(("0ms", "200ms"))
    return run_cluster(run, seed=seed, settings={**SETTINGS, "group.assign_delay": delay})


async def run(cluster: SimCluster) -> Report:
    history, oracle = History(), GroupOracle()
    GroupTap(cluster.net, oracle)
    rng = seeded(cluster.seed, "groups")
    cluster.net.delay_min = rng.uniform(0.0001, 0.01)
    cluster.net.delay_mean = rng.uniform(0.0001, 0.03)
    [node] = cluster.nodes.values()
    node.buggify = rng.choice((0.0, 1.0))
    world = World(cluster, history, oracle)
    chaos = Chaos(cluster, history, seeded(cluster.seed, "chaos"), WITHOUT)
    members = make_members(world, rng)
    fate = Fate(world, members, seeded(cluster.seed, "fate"))
    found: list[Violation] = []
    with trio.fail_after(END_S):
        await create_topics(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Auditor(cluster, seeded(cluster.seed, "auditor")).for_ever)
            for member in members:
                nursery.start_soon(member.for_ever)
            async with trio.open_nursery() as rough:
                rough.start_soon(chaos.until, CHAOS_S)
                rough.start_soon(fate.until, CHAOS_S)
                for topic in (*STABLE, BRIEF):
                    name = f"p.{topic}"
                    producer = Producing(cluster, history, topic, name, seeded(cluster.seed, name))
                    rough.start_soon(producer.until, CHAOS_S)
            world.rough = False
            found += await settle(cluster, members)
            found += await part(cluster, members)
            nursery.cancel_scope.cancel()
        await reset_and_crash(cluster)
        for topic in (*STABLE, BRIEF):
            assert not await drain(cluster, history, topic, PARTITIONS, "final"), "damaged records"
    found += [*node.oracle.violations, *oracle.violations, *judge(history, oracle)]
    return Report(
        {**chaos.struck, **fate.struck},
        chaos.crashes,
        len(history.sends),
        len(history.acked),
        len(history.reads),
        tuple(found),
        {
            "assignments": oracle.told,
            "commits acked": oracle.commits,
            "commits refused": oracle.refused,
        },
    )


def make_members(world: World, rng: Random) -> list[Member]:
    """Some begin, the others may come. The two last share an instance id, or have none."""
    members: list[Member] = []
    topics = (*STABLE, BRIEF)
    narrow = rng.choice((topics, STABLE, STABLE[:1]))
    twins = rng.choice(("twin", None))
    for number in range(MEMBERS):
        name = f"m{number}"
        instance_id = rng.choice((None, None, name)) if number < MEMBERS - 2 else twins
        member = Member(
            world,
            name,
            seeded(world.cluster.seed, "member", name),
            rng.choice((topics, topics, narrow)) if number else topics,
            instance_id,
        )
        if rng.random() < 0.3:
            member.go()
        members.append(member)
    return members


async def create_topics(cluster: SimCluster) -> None:
    async with cluster.client("creator") as client:
        for topic in (*STABLE, BRIEF):
            await client.admin.create_topic(topic, partitions=PARTITIONS)


async def settle(cluster: SimCluster, members: list[Member]) -> list[Violation]:
    """No more faults: all but one of the twins come, the group gets stable and reads all (L5)."""
    for member in members[:-1]:
        member.come()
    members[-1].go()
    began = trio.current_time()
    await ensure_brief(cluster)
    async with cluster.client("watcher") as client:
        stable_at = await until(client, stable(members[:-1]), began + STABLE_WITHIN_S)
        if stable_at is None:
            return [Violation("L5", f"not stable {STABLE_WITHIN_S:g} s after the last fault")]
        read_at = await until(client, caught_up, began + CAUGHT_UP_WITHIN_S)
        if read_at is None:
            group = await client.admin.describe_group(GROUP)
            left = [
                f"{one.topic}[{one.partition}]@{one.committed} of {one.log_end}"
                for one in group.partition_list
                if (one.committed or 0) != one.log_end
            ]
            what = f"{left} are not read {CAUGHT_UP_WITHIN_S:g} s after the last fault"
            return [Violation("L2", what)]
    return []


async def until(client: Client, what: Callable[[GroupDetail], bool], limit: float) -> float | None:
    """When it was so; None: it was not, up to that moment."""
    while trio.current_time() < limit:
        if what(await client.admin.describe_group(GROUP)):
            return trio.current_time()
        await trio.sleep(0.1)
    return None


def stable(members: list[Member]) -> Callable[[GroupDetail], bool]:
    """Whether the coordinator and all members agree, and every partition has its owner."""

    def check(group: GroupDetail) -> bool:
        told = {
            member.process.life.name: member.consumer.assignment
            for member in members
            if member.process is not None and member.consumer is not None
        }
        known = {one.client_id: frozenset(one.assigned) for one in group.member_list}
        owned = [at for mine in known.values() for at in mine]
        return (
            group.state == "stable"
            and len(told) == len(members)
            and told == known
            and len(owned) == len(set(owned)) == PARTITIONS * len((*STABLE, BRIEF))
        )

    return check


def caught_up(group: GroupDetail) -> bool:
    """Whether everything is committed."""
    return all((one.committed or 0) == one.log_end for one in group.partition_list)


async def part(cluster: SimCluster, members: list[Member]) -> list[Violation]:
    """Everybody leaves; whoever has an instance id is forgotten when its session is over."""
    for member in members:
        member.go()
    for member in members:
        await member.gone.wait()
    limit = trio.current_time() + STABLE_WITHIN_S
    async with cluster.client("last") as client:
        empty_at = await until(client, lambda group: group.members == 0, limit)
    return [] if empty_at is not None else [Violation("L5", "members that left are still there")]


async def reset_and_crash(cluster: SimCluster) -> None:
    """What is committed survives; what an admin wants lower is lower, and stays there."""
    [node] = cluster.nodes.values()
    async with cluster.client("admin") as client:
        coordinator = Coordinator(client, GROUP)
        await ask(coordinator)
        await client.admin.reset_group(GROUP, to="earliest", topics=[STABLE[0]])
        node.power_cut()
        await node.start()
        await ask(coordinator)


def judge(history: History, oracle: GroupOracle) -> list[Violation]:
    """Every record was processed (S25); the log is what was acked, as everywhere."""
    final = history.final("final")
    lasting = History(
        [send for send in history.sends if send.topic != BRIEF],
        [read for read in history.reads if read.topic != BRIEF],
    )
    kept = {where: log for where, log in final.items() if where[0] in STABLE}
    checks = (
        lost_or_changed_writes,
        changed_reads,
        real_time_order,
        duplicates,
        refused_but_written,
        producer_order,
    )
    found = [violation for each in checks for violation in each(lasting, kept)]
    for (topic, number), log in kept.items():
        missed = sorted(log.keys() - oracle.done[topic, number])
        if missed:
            found.append(Violation("S25", f"{topic}[{number}]: {missed[:5]} never processed"))
    return found
