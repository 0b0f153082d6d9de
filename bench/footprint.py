"""What a broker takes while nobody does anything (P12, P13).

    python -m tailrace.bench.footprint

Paths: ``ready`` (process start until ``tailrace dev`` says that it serves), ``rss-idle``,
``rss-partitions`` (with 1,000 partitions), ``connection`` (memory of the broker per idle
connection, over 1,000), ``idle-cpu`` (percent of a core, with 1,000 partitions and 1,000 consumers
of the SDK, each connected by itself, that wait for data at the end of a partition, and have done so
for half a minute). Idleness is watched for a minute: that long a consumer's question waits then.
``idle-cpu-first``: the same before that, when questions wait 5 s and then 20 s.
"""

import time
from contextlib import AsyncExitStack

import anyio

import tailrace
from tailrace.bench.actors import Actor, Gate, go
from tailrace.bench.cpus import RECEIVERS
from tailrace.bench.streams import create
from tailrace.bench.wire import Wire
from tailrace.bench.workbench import Workbench, cpu_share, parser, resident_bytes, workbench

MANY = 1_000
TOPIC = "many"
SETTLE_S = 3.0  # until what a change brought with it is over
STARTS = 3
CONNECT_S = 0.003
PATIENT_S = 30.0  # until consumers to whom nothing comes ask once in a minute
IDLE_S = 60.0


async def wait_for_data(gate: Gate, url: str, count: int) -> None:
    """So many clients with a consumer each, of a partition each, that all wait."""
    async with AsyncExitStack() as stack:
        consumers: list[tailrace.Consumer[bytes, bytes]] = []
        for number in range(count):
            client = await stack.enter_async_context(tailrace.connect(url))
            consumer = client.consumer(
                partitions=[tailrace.TopicPartition(TOPIC, number)], start="latest"
            )
            consumers.append(await stack.enter_async_context(consumer))
        async with anyio.create_task_group() as tasks:
            for consumer in consumers:
                tasks.start_soon(follow, consumer)
                await anyio.sleep(CONNECT_S)  # all at once would be refused
            await gate.ready()  # they wait
            await gate.ready()  # that was it
            tasks.cancel_scope.cancel()


async def follow(consumer: tailrace.Consumer[bytes, bytes]) -> None:
    async for _ in consumer:
        raise AssertionError("nothing was sent")


def measure(bench: Workbench) -> None:
    for number in range(STARTS):
        with bench.broker(name=f"start-{number}") as broker:
            bench.tell("ready", broker.ready_seconds, "s")
    with bench.broker() as broker:
        time.sleep(SETTLE_S)
        idle = resident_bytes(broker.pid)
        bench.tell("rss-idle", idle / 1e6, "MB")
        wires = [Wire(broker.url) for _ in range(MANY)]
        time.sleep(SETTLE_S)
        each = (resident_bytes(broker.pid) - idle) / MANY
        bench.tell("connection", each / 1e3, "KB", note=f"over {MANY:,} idle ones")
        for wire in wires:
            wire.socket.close()
    with bench.broker(name="many") as broker:
        anyio.run(create, broker.url, [TOPIC], MANY, "fsync")
        time.sleep(SETTLE_S)
        bench.tell("rss-partitions", resident_bytes(broker.pid) / 1e6, "MB", note=f"{MANY:,}")
        with Actor(wait_for_data, broker.url, MANY).placed(RECEIVERS) as waiting:
            go(waiting)
            for path, seconds in (("idle-cpu-first", PATIENT_S), ("idle-cpu", IDLE_S)):
                share = cpu_share(broker.pid, seconds)
                bench.tell(path, 100 * share, "%", note=f"{MANY:,} partitions and consumers")
            go(waiting)
            waiting.result()


def main() -> None:
    with workbench(parser(__doc__ or "", seconds=10.0).parse_args()) as bench:
        measure(bench)


if __name__ == "__main__":
    main()
