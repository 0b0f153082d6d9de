"""Three real brokers and etcd on this machine: what copies cost, failover at scale, idleness.

python -m tests.proofs.cluster_speed --replicated       throughput of 3 copies against 1
python -m tests.proofs.cluster_speed --partitions 2000  all with 3 copies: how long until all
                                                        leaders of a killed broker have moved;
                                                        processor time while idle
python -m tests.proofs.cluster_speed --refill 2048      MiB that a broker with an empty disk
                                                        copies, and what sends feel of it; with
                                                        --first (root) ahead of whatever else runs

Each in a cluster of its own. Figures that have a limit are told beside it, and one that breaks it
fails the proof (exit code 1); ``--replicated`` only measures.
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
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import tailrace
from tailrace.bench.run import single_sends
from tailrace.bench.workload import percentiles
from tests.proofs.cluster_faults import HEAL_SECONDS_MAX, ask, healthy
from tests.proofs.cluster_machine import Machine, machine, wait_until
from tests.proofs.figures import Figure, told

MOVED_S_MAX = 15.0  # a third of the leaders of 2,000 partitions (the load to hold, 7.4)
IDLE_PERCENT_MAX = 10.0  # of a core, for each broker: what nobody uses must not cost
# p99 of sends beside a refill, over what it is alone, of all rounds together: one moved by chance
# from 1.05 to 3.0.
BESIDE_TIMES_MAX = 2.0
FILLED_SHARE = 0.95  # of the leader's bytes: those of its newest records may be on their way

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
    idle = {
        name: (cpu_seconds(host.pid) - before[name]) / IDLE_SECONDS * 100
        for name, host in cluster.brokers.items()
    }
    victim = "n1"
    led: Any = ask(cluster, victim, "/api/v1/cluster")
    leaders = {one["id"]: one["leaders"] for one in led["brokers"]}
    cluster.brokers[victim].kill()
    killed_at = time.monotonic()
    rest = "tailrace://" + ",".join(cluster.url.removeprefix("tailrace://").split(",")[1:])
    while left := asyncio.run(leaderless(rest, topics, victim)):
        assert time.monotonic() - killed_at < FAILOVER_SECONDS_MAX, f"{left} without a leader"
        time.sleep(0.2)
    settle(of_scale(leaders[victim], time.monotonic() - killed_at, idle))


def of_scale(leaders: int, moved_s: float, idle: Mapping[str, float]) -> list[Figure]:
    """``idle``: percent of a core, by broker."""
    return [
        *(
            Figure(f"processor of {name} while idle", percent, "% of a core", IDLE_PERCENT_MAX)
            for name, percent in idle.items()
        ),
        Figure("leaders of the broker that was killed", leaders, "", least=1),
        Figure("all of them moved after kill -9", moved_s, most=MOVED_S_MAX),
    ]


def settle(figures: list[Figure]) -> None:
    """Print them; AssertionError if a limit was broken."""
    broken = told(figures)
    assert not broken, "\n".join(["limits are broken:", *broken])
    print("ok: all within their limits")


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


class Standing(NamedTuple):
    """Of a broker: the partitions of the topic ``refill`` in whose ISR it is, and that it leads."""

    in_sync: frozenset[int]
    leads: frozenset[int]
    partitions: int


async def standing(url: str, broker: str) -> Standing:
    async with tailrace.connect(url, connect_timeout=5) as client:
        found = (await client.admin.describe_topic("refill")).partition_list
    return Standing(
        frozenset(one.partition for one in found if broker in one.isr),
        frozenset(one.partition for one in found if one.leader == broker),
        len(found),
    )


def early(standing: Standing, held: Mapping[int, int], whole: Mapping[int, int]) -> list[str]:
    """What a broker is counted for though it has not got it; bytes by partition."""
    return [
        *(
            f"in sync for partition {one} with {held.get(one, 0):,} of {whole[one]:,} bytes"
            for one in sorted(standing.in_sync)
            if held.get(one, 0) < FILLED_SHARE * whole[one]
        ),
        *(
            f"leads partition {one}, and is not in sync for it"
            for one in sorted(standing.leads - standing.in_sync)
        ),
    ]


def held_bytes(data: Path, topic_id: str) -> dict[int, int]:
    """What the logs of a topic take on a broker's disk, by partition; with zeros that are written
    ahead, up to 4 MiB."""
    found: dict[int, int] = {}
    for path in data.glob(f"topics/{topic_id.replace('-', '')}-*/*.log"):
        number = int(path.parent.name.rpartition("-")[2])
        found[number] = found.get(number, 0) + path.stat().st_blocks * 512
    return found


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
    alone, beside = [sends_alone(cluster.url)], list[list[float]]()
    for _ in range(rounds):
        beside.append(sends_beside(cluster))
        alone.append(sends_alone(cluster.url))
        around = percentiles(alone[-2] + alone[-1])
        felt = percentiles(beside[-1])
        print(
            f"  sends alone p50 {around['p50']:.2f} p99 {around['p99']:.2f} ms, beside it p50"
            f" {felt['p50']:.2f} p99 {felt['p99']:.2f} ms: {felt['p99'] / around['p99']:.2f} times",
            flush=True,
        )
    settle(of_refill(alone, beside))


def of_refill(alone: list[list[float]], beside: list[list[float]]) -> list[Figure]:
    """Of all rounds together; latencies in ms, of each time."""
    without, felt = (percentiles([*chain.from_iterable(one)])["p99"] for one in (alone, beside))
    return [
        Figure("p99 of all sends alone", without, "ms"),
        Figure("p99 of all sends beside a refill", felt, "ms"),
        Figure("the one over the other", felt / without, "times", BESIDE_TIMES_MAX),
    ]


def sends_beside(cluster: Machine) -> list[float]:
    """From the start of a broker whose disk is gone until it leads again."""
    leaders = asyncio.run(led(cluster.url, "beside", "n3"))
    topic: Any = ask(cluster, "n1", "/api/v1/topics/refill")
    whole = {one["partition"]: one["size_bytes"] for one in topic["partition_list"]}
    victim = cluster.brokers["n3"]
    victim.kill()
    shutil.rmtree(cluster.data["n3"])
    rest = "tailrace://" + ",".join(cluster.url.removeprefix("tailrace://").split(",")[:2])
    time.sleep(10.0)
    victim.start()
    began = time.monotonic()
    with sending(rest) as found:
        while True:
            now = asyncio.run(standing(rest, "n3"))
            held = held_bytes(cluster.data["n3"], topic["topic_id"])  # later: not too little
            assert not (wrong := early(now, held, whole)), f"the broker that refills: {wrong}"
            if len(now.in_sync) == now.partitions:
                break
            print(
                f"  {time.monotonic() - began:5.0f} s: in sync for {len(now.in_sync)} of"
                f" {now.partitions}, holds {sum(held.values()) / 2**20:,.0f} MiB",
                flush=True,
            )
            assert time.monotonic() - began < REFILL_SECONDS_MAX, "it did not come to its end"
            time.sleep(STRETCH_SECONDS)
        print(f"  {time.monotonic() - began:5.0f} s: all of it", flush=True)
        wait_until(lambda: leads_again(rest, "n3", leaders), HEAL_SECONDS_MAX, "leads again")
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
