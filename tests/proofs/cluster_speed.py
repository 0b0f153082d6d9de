"""Three real brokers and etcd on this machine: what copies cost, failover at scale, idleness.

python -m tests.proofs.cluster_speed --replicated       throughput of 3 copies against 1
python -m tests.proofs.cluster_speed --partitions 2000  all with 3 copies: how long until all
                                                        leaders of a killed broker have moved;
                                                        processor time while idle
python -m tests.proofs.cluster_speed --refill 2048      MiB that a broker with an empty disk
                                                        copies, and what sends feel of it; with
                                                        --first (root) ahead of whatever else runs

Each in a cluster of its own.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import tailrace
from tailrace.bench.run import single_sends
from tailrace.bench.workload import percentiles
from tests.proofs.cluster_faults import HEAL_SECONDS_MAX, ask, healthy
from tests.proofs.cluster_machine import Machine, machine, wait_until

IDLE_SECONDS = 30.0
TOPIC_PARTITIONS = 500
FAILOVER_SECONDS_MAX = 120.0
RECORD_BYTES = 10_000
ALONE_SECONDS = 20.0
STRETCH_SECONDS = 5.0
REFILL_SECONDS_MAX = 600.0
FIRST_PRIORITY = 5  # of real-time processes; any is ahead of those that are none


def replicated(cluster: Machine) -> None:
    """The bench of that name."""
    command = [sys.executable, "-m", "tailrace.bench.replicated", "--url", cluster.url]
    subprocess.run(command, check=True)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def create(url: str, topics: list[str], partitions: int) -> None:
    async with tailrace.connect(url) as client:
        for name in topics:
            await client.admin.create_topic(name, partitions=partitions, replicas=3)


async def leaderless(url: str, topics: list[str], gone: str) -> int:
    """How many partitions have no leader but the one that is gone."""
    async with tailrace.connect(url, connect_timeout=5) as client:
        found = [await client.admin.describe_topic(name) for name in topics]
    partitions = [one for detail in found for one in detail.partition_list]
    return sum(one.leader in (None, gone) for one in partitions)


def scale(cluster: Machine, partitions: int) -> None:
    """Must be quick to move, and quiet while nothing happens."""
    topics = [f"scale-{number}" for number in range(-(-partitions // TOPIC_PARTITIONS))]
    began = time.monotonic()
    asyncio.run(create(cluster.url, topics, partitions // len(topics)))
    wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy with all partitions")
    print(f"{partitions} partitions with 3 copies made in {time.monotonic() - began:.1f} s")
    time.sleep(10.0)
    before = {name: cpu_seconds(host.pid) for name, host in cluster.brokers.items()}
    time.sleep(IDLE_SECONDS)
    for name, host in cluster.brokers.items():
        share = (cpu_seconds(host.pid) - before[name]) / IDLE_SECONDS
        print(f"  {name}: {share:.1%} of a core while idle")
    victim = "n1"
    led: Any = ask(cluster, victim, "/api/v1/cluster")
    leaders = {one["id"]: one["leaders"] for one in led["brokers"]}
    cluster.brokers[victim].kill()
    killed_at = time.monotonic()
    rest = "tailrace://" + ",".join(cluster.url.removeprefix("tailrace://").split(",")[1:])
    while left := asyncio.run(leaderless(rest, topics, victim)):
        assert time.monotonic() - killed_at < FAILOVER_SECONDS_MAX, f"{left} without a leader"
        time.sleep(0.2)
    took_s = time.monotonic() - killed_at
    print(f"ok: {leaders[victim]} leaders of {victim} moved {took_s:.1f} s after kill -9")


async def fill(url: str, mebibytes: int) -> None:
    """About so much, in one topic of six partitions."""
    async with tailrace.connect(url) as client:
        await client.admin.create_topic("refill", partitions=6, replicas=3)
        async with client.producer() as producer:
            chance = random.Random(1)  # bytes that cannot be compressed
            values: list[bytes | None] = [chance.randbytes(RECORD_BYTES) for _ in range(500)]
            for _ in range((mebibytes << 20) // (RECORD_BYTES * 500)):
                await producer.send_many("refill", values)


async def keep_sending(url: str, stop: Event) -> list[list[float]]:
    """Latencies of durable sends, 100 per second, in ms, until told to stop; of each stretch."""
    found: list[list[float]] = []
    async with tailrace.connect(url) as client:
        await client.admin.create_topic("beside", partitions=3, replicas=3, exist_ok=True)
        await stretch(client)  # all connections are open then
        while not stop.is_set():
            found.append(await stretch(client))
    return found


async def stretch(client: tailrace.Client) -> list[float]:
    """Some seconds of them."""
    return await single_sends(
        client, "beside", rate_per_s=100.0, seconds=STRETCH_SECONDS, size_bytes=100
    )


def _send_apart(url: str, stop: Event, told: Connection) -> None:
    told.send(asyncio.run(keep_sending(url, stop)))


@contextmanager
def sending(url: str) -> Generator[list[list[float]]]:
    """In a process of its own meanwhile: who watches must not hold up what is measured. Filled at
    the end."""
    apart = multiprocessing.get_context("spawn")
    stop = apart.Event()
    hears, tells = apart.Pipe(duplex=False)
    process = apart.Process(target=_send_apart, args=(url, stop, tells))
    process.start()
    tells.close()
    found: list[list[float]] = []
    try:
        yield found
        stop.set()
        found += hears.recv()
    finally:
        process.kill()
        process.join()


def sends_alone(url: str) -> list[float]:
    """The same, once what was written before is on the disk and nothing else goes on."""
    os.sync()
    time.sleep(5.0)
    with sending(url) as found:
        time.sleep(ALONE_SECONDS)
    return list(chain.from_iterable(found))


async def led(url: str, topic: str, broker: str) -> int:
    """How many partitions a broker leads."""
    async with tailrace.connect(url, connect_timeout=5) as client:
        detail = await client.admin.describe_topic(topic)
    return sum(one.leader == broker for one in detail.partition_list)


async def standing(url: str, broker: str) -> tuple[int, int, int]:
    """Of the topic ``refill``: how often a broker is in sync, is a leader, and partitions."""
    async with tailrace.connect(url, connect_timeout=5) as client:
        detail = await client.admin.describe_topic("refill")
    found = detail.partition_list
    return sum(broker in p.isr for p in found), sum(p.leader == broker for p in found), len(found)


def leads_again(url: str, broker: str, before: int) -> bool:
    """Whether the leaders of ``beside`` are back: that is felt, too."""
    return asyncio.run(led(url, "beside", broker)) >= before


def go_first(cluster: Machine) -> None:
    """Have the scheduler prefer these processes, and what they start, to all others."""
    hosts = (*cluster.brokers.values(), *cluster.etcd.values())
    for pid in (os.getpid(), *(host.pid for host in hosts)):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(FIRST_PRIORITY))


def refill(cluster: Machine, mebibytes: int, *, rounds: int, first: bool) -> None:
    """A broker comes back with nothing, under the same id; several times."""
    asyncio.run(fill(cluster.url, mebibytes))
    if first:
        go_first(cluster)
    topic_bytes: Any = ask(cluster, "n1", "/api/v1/topics/refill")["size_bytes"]
    alone, beside = [sends_alone(cluster.url)], list[list[float]]()
    for _ in range(rounds):
        beside.append(sends_beside(cluster, topic_bytes))
        alone.append(sends_alone(cluster.url))
        around = percentiles(alone[-2] + alone[-1])
        felt = percentiles(beside[-1])
        print(
            f"  sends alone p50 {around['p50']:.2f} p99 {around['p99']:.2f} ms, beside it p50"
            f" {felt['p50']:.2f} p99 {felt['p99']:.2f} ms: {felt['p99'] / around['p99']:.2f} times",
            flush=True,
        )
    without, felt = (percentiles([*chain.from_iterable(one)]) for one in (alone, beside))
    print(
        f"ok: {topic_bytes / 2**20:,.0f} MiB, {rounds} times; all sends alone p99"
        f" {without['p99']:.2f} ms, beside it {felt['p99']:.2f} ms:"
        f" {felt['p99'] / without['p99']:.2f} times"
    )


def sends_beside(cluster: Machine, topic_bytes: int) -> list[float]:
    """From the start of a broker whose disk is gone until it leads again."""
    leaders = asyncio.run(led(cluster.url, "beside", "n3"))
    victim = cluster.brokers["n3"]
    victim.kill()
    shutil.rmtree(cluster.data["n3"])
    rest = "tailrace://" + ",".join(cluster.url.removeprefix("tailrace://").split(",")[:2])
    time.sleep(10.0)
    victim.start()
    began = time.monotonic()
    with sending(rest) as found:
        while True:
            in_sync, leads, partitions = asyncio.run(standing(rest, "n3"))
            held = sum(path.stat().st_blocks * 512 for path in cluster.data["n3"].rglob("*.log"))
            assert not (leads and in_sync < leads), "it leads what it is not in sync for"
            if in_sync == partitions:
                break
            print(
                f"  {time.monotonic() - began:5.0f} s: in sync for {in_sync} of {partitions},"
                f" holds {held / 2**20:,.0f} MiB",
                flush=True,
            )
            assert time.monotonic() - began < REFILL_SECONDS_MAX, "it did not come to its end"
            time.sleep(STRETCH_SECONDS)
        print(f"  {time.monotonic() - began:5.0f} s: all of it", flush=True)
        wait_until(lambda: leads_again(rest, "n3", leaders), HEAL_SECONDS_MAX, "leads again")
    assert held >= topic_bytes * 0.95, f"in sync with {held:,} of {topic_bytes:,} bytes"
    course = " ".join(f"{percentiles(one)['p99']:.0f}" for one in found)
    print(f"  p99 of each {STRETCH_SECONDS:.0f} s beside it: {course} ms")
    return list(chain.from_iterable(found))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replicated", action="store_true")
    parser.add_argument("--partitions", type=int, default=0)
    parser.add_argument("--refill", type=int, default=0, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", action="store_true")
    options = parser.parse_args()
    jobs: list[Callable[[Machine], None]] = []
    if options.replicated:
        jobs.append(replicated)
    if options.partitions:
        jobs.append(partial(scale, partitions=options.partitions))
    if options.refill:
        settings = {"rounds": options.rounds, "first": options.first}
        jobs.append(partial(refill, mebibytes=options.refill, **settings))
    if not jobs:
        parser.error("say what is to be measured")
    for job in jobs:
        on_its_own(job)


def on_its_own(job: Callable[[Machine], None]) -> None:
    """Do it in a new cluster: one leaves behind what the next would be disturbed by."""
    folder = Path(tempfile.mkdtemp(prefix="tailrace-speed-"))
    try:
        with machine(folder) as cluster:
            wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy at the start")
            job(cluster)
    except (AssertionError, RuntimeError) as error:
        sys.exit(f"FAILED: {error}; kept {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
