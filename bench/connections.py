"""Many connections, each one durable send at a time (P7).

    python -m tailrace.bench.connections [--connections 1,10,100,1000]

Every connection is a client of its own with a producer of its own, as if each were another
process; they live in as few processes as there are processors for them. Paths: ``sends@100`` and
so on: acknowledged sends of 100 B per second, of all connections together, into one partition.
"""

import time
from contextlib import AsyncExitStack, ExitStack

import anyio

import tailrace
from tailrace.bench.actors import Actor, Gate, go
from tailrace.bench.cpus import SENDERS, available, layout
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.streams import create
from tailrace.bench.workbench import Workbench, cpu_seconds, parser, workbench
from tailrace.bench.workload import make_values

SIZE_BYTES = 100
TOPIC = "connections"
TOUCH_BYTES = 256 << 20
CPU_SHARE = 0.8  # of the time, in which processor time is taken


async def send_one_by_one(
    gate: Gate, url: str, connections: int, seconds: float
) -> tuple[int, float]:
    """How many sends were acknowledged, and the seconds until the last of them."""
    done = 0
    value = make_values(1, SIZE_BYTES)[0]
    async with AsyncExitStack() as stack:
        producers: list[tailrace.Producer[bytes, bytes]] = []
        for _ in range(connections):
            client = await stack.enter_async_context(tailrace.connect(url))
            producers.append(await stack.enter_async_context(client.producer()))
            await producers[-1].send(TOPIC, value)  # connects; all at once would be refused

        async def work(producer: tailrace.Producer[bytes, bytes], until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                await producer.send(TOPIC, value)
                done += 1

        await gate.ready()
        began = time.perf_counter()
        until = began + seconds
        async with anyio.create_task_group() as tasks:
            for producer in producers:
                tasks.start_soon(work, producer, until)
        took_s = time.perf_counter() - began
    return done, took_s


def measure(bench: Workbench, broker: BrokerProcess, connections: int) -> None:
    processes = min(connections, len(layout(available()).get(SENDERS, (0,))))
    shares = [connections // processes] * processes
    shares[0] += connections - sum(shares)
    with ExitStack() as stack:
        actors = [
            stack.enter_context(Actor(send_one_by_one, broker.url, share, bench.seconds))
            for share in shares
        ]
        go(*actors)
        pids = [broker.pid, *(one.pid for one in actors)]
        before = list(map(cpu_seconds, pids))
        time.sleep(bench.seconds * CPU_SHARE)
        used_s = [cpu_seconds(pid) - at for pid, at in zip(pids, before, strict=True)]
        sent = [one.result() for one in actors]
    rate = sum(done / took_s for done, took_s in sent)
    each_us = 1e6 / (rate * bench.seconds * CPU_SHARE)
    bench.tell(
        f"sends@{connections}",
        *(rate, "records/s"),
        size_bytes=SIZE_BYTES,
        durable=True,
        note=(
            f"CPU per send: broker {used_s[0] * each_us:.0f} us, clients"
            f" {sum(used_s[1:]) * each_us:.0f} us in {processes} process"
            f"{'es' if processes > 1 else ''}"
        ),
    )


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--connections", default="1,10,100,1000")
    given = made.parse_args()
    with workbench(given) as bench, bench.broker(touch_bytes=TOUCH_BYTES) as broker:
        anyio.run(create, broker.url, [TOPIC], 1, "fsync")
        for count in given.connections.split(","):
            measure(bench, broker, int(count))


if __name__ == "__main__":
    main()
