"""What groups take of a broker, and whether a commit costs the same beside many of them.

    python -m tailrace.bench.many_groups

Paths: ``commit-cpu-1`` and ``commit-cpu-500`` (processor time of the broker per durable commit,
by the member of one group, where it is the only one, and where 500 others have a member each),
``group`` (memory of the broker for each of those: its state, its offsets, its member's connection
and long poll) and ``group-cpu`` (percent of a core for all of their heartbeats and polls).
"""

import time
from contextlib import AsyncExitStack

import anyio

import tailrace
from tailrace.bench.actors import Actor, Gate, go
from tailrace.bench.cpus import RECEIVERS
from tailrace.bench.footprint import CONNECT_S, SETTLE_S
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.streams import create
from tailrace.bench.workbench import (
    Workbench,
    cpu_seconds,
    cpu_share,
    parser,
    resident_bytes,
    workbench,
)

TOPIC = "groups"
MANY = 500
COMMITS = 300  # in a row
ONE = tailrace.TopicPartition(TOPIC, 0)


async def join(gate: Gate, url: str, count: int) -> None:
    """So many groups of one member each, that have committed and wait for more."""
    async with AsyncExitStack() as stack:
        for number in range(count):
            client = await stack.enter_async_context(tailrace.connect(url))
            consumer = client.consumer(TOPIC, group=f"group-{number}", commit="manual")
            await stack.enter_async_context(consumer)
            await anext(aiter(consumer))
            await consumer.commit()
            await anyio.sleep(CONNECT_S)
        await gate.ready()
        await gate.ready()


async def commit(gate: Gate, url: str, group: str) -> None:
    """One commit after the other."""
    async with (
        tailrace.connect(url) as client,
        client.consumer(TOPIC, group=group, commit="manual") as consumer,
    ):
        await anext(aiter(consumer))
        await consumer.commit()
        await gate.ready()
        for number in range(COMMITS):
            await consumer.commit({ONE: 1}, metadata=str(number))  # else there is nothing to do
        await gate.ready()


async def fill(url: str) -> None:
    """One record, for everybody."""
    await create(url, [TOPIC], 1, "os")
    async with tailrace.connect(url) as client, client.producer() as producer:
        await producer.send(TOPIC, b"x")


def idle_share(broker: BrokerProcess, seconds: float) -> float:
    """Of a core, while nobody asks for anything."""
    time.sleep(SETTLE_S)
    return cpu_share(broker.pid, seconds)


def per_commit(broker: BrokerProcess, group: str, idle: float) -> float:
    """Processor time in s, without what the broker takes anyway."""
    with Actor(commit, broker.url, group) as member:
        member.wait_ready()
        before, began = cpu_seconds(broker.pid), time.monotonic()
        member.go()
        member.wait_ready()
        took_s = time.monotonic() - began
        used_s = cpu_seconds(broker.pid) - before - idle * took_s
        member.go()
        member.result()
    return used_s / COMMITS


def measure(bench: Workbench) -> None:
    with bench.broker() as broker:
        anyio.run(fill, broker.url)
        tell(bench, 1, per_commit(broker, "first", idle_share(broker, bench.seconds)))
        before = resident_bytes(broker.pid)
        with Actor(join, broker.url, MANY).placed(RECEIVERS) as members:
            go(members)
            idle = idle_share(broker, bench.seconds)
            each = (resident_bytes(broker.pid) - before) / MANY
            bench.tell("group", each / 1e3, "KB", note=f"over {MANY:,} with a member each")
            bench.tell("group-cpu", 100 * idle, "%", note=f"{MANY:,} members that wait")
            tell(bench, MANY, per_commit(broker, "second", idle))
            go(members)
            members.result()


def tell(bench: Workbench, groups: int, cost_s: float) -> None:
    bench.tell(f"commit-cpu-{groups}", cost_s * 1e6, "us/commit", durable=True)


def main() -> None:
    with workbench(parser(__doc__ or "", seconds=6.0).parse_args()) as bench:
        measure(bench)


if __name__ == "__main__":
    main()
