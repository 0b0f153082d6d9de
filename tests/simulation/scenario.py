"""Clients produce and fetch while connections break and the broker dies and comes back.

One seed is one world: which kinds of fault there are, when they strike, how slow the network is,
who runs when. At the end everything heals, a new reader drains the topic, and the history, the
log files and what the oracle saw are checked. All chance comes from the seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from tailrace.simulation.chance import seeded
from tailrace.simulation.checkers import Violation, check
from tailrace.simulation.history import History
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.seeding import Outcome
from tests.simulation.chaos import Chaos, Damaged
from tests.simulation.workload import Producing, Reading, drain

TOPIC = "orders"
PARTITIONS = 3
PRODUCERS = 3
READERS = 2
CHAOS_S = 20.0
END_S = 300.0  # of virtual time: by then everything must have ended (L1, L2)
SETTINGS = {"topic.segment_size": "16KiB", "topic.max_record": "8KiB"}


@dataclass(frozen=True)
class Report:
    """What one seed did and what was wrong."""

    faults: dict[str, int]
    crashes: int
    sent: int
    acked: int
    read: int
    violations: tuple[Violation, ...]
    more: Mapping[str, int] = field(default_factory=dict[str, int])  # figures of one scenario


def run_seed(seed: int) -> Outcome[Report]:
    """One world from beginning to end."""
    return run_cluster(run, seed=seed, settings=SETTINGS)


async def run(cluster: SimCluster) -> Report:
    history = History()
    rng = seeded(cluster.seed, "scenario")
    cluster.net.delay_min = rng.uniform(0.0001, 0.01)
    cluster.net.delay_mean = rng.uniform(0.0001, 0.03)
    [node] = cluster.nodes.values()
    node.buggify = rng.choice((0.0, 1.0))
    chaos = Chaos(cluster, history, seeded(cluster.seed, "chaos"))
    with trio.fail_after(END_S):
        async with cluster.client("admin") as client:
            await client.admin.create_topic(TOPIC, partitions=PARTITIONS)
        async with trio.open_nursery() as reading:
            for number in range(READERS):
                name = f"r{number}"
                reader = Reading(cluster, history, TOPIC, name, seeded(cluster.seed, name))
                reading.start_soon(reader.for_ever)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chaos.until, CHAOS_S)
                for number in range(PRODUCERS):
                    name = f"p{number}"
                    producer = Producing(cluster, history, TOPIC, name, seeded(cluster.seed, name))
                    nursery.start_soon(producer.until, CHAOS_S)
            reading.cancel_scope.cancel()
        lost = await drain(cluster, history, TOPIC, PARTITIONS, "final")
    violations = judge(cluster, history, chaos.damaged, lost)
    return Report(
        dict(chaos.struck),
        chaos.crashes,
        len(history.sends),
        len(history.acked),
        len(history.reads),
        tuple(violations),
    )


def judge(
    cluster: SimCluster, history: History, damaged: set[Damaged], lost: set[Damaged]
) -> list[Violation]:
    """Everything that is wrong. What was damaged on purpose may be missing, if that is said."""
    [node] = cluster.nodes.values()
    found = list(node.oracle.violations)
    for partition, offset in sorted(lost - damaged):
        found.append(Violation("R25", f"[{partition}]@{offset} is sound, but called corrupt"))
    final = history.final("final")
    for send in history.acked:
        if (send.partition, send.offset) in lost & damaged:
            final.setdefault(send.where, {})[send.offset] = send.key, send.value
    kept = [read for read in history.reads if (read.partition, read.offset) not in lost]
    found += check(History(history.sends, kept), final)
    if not damaged:
        node.oracle.check_logs()
        found += [v for v in node.oracle.violations if v not in found]
    else:
        # Readers skip what is damaged, so their offsets have gaps.
        found = [violation for violation in found if violation.invariant != "S10"]
    return found
