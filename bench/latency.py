"""How long a durable send takes at a fixed rate, until its ack and until a consumer has it (P6).

    python -m tailrace.bench.latency [--rates 500,1000] [--warm 2]

Each send has an intended time, and latency counts from that: a slow one does not hide those that
had to wait behind it (coordinated omission). Sender and consumer are two processes; the intended
time travels in the record, as both read the machine's one monotonic clock. Timers are exact to
microseconds and nobody spins. Two seconds of sends at the same rate come before those that are
timed, without a pause in between, as with peers. Paths: ``ack-latency-p50``, ``ack-latency-p99``,
``deliver-latency-p50``, ``deliver-latency-p99``; the note says the rate, "500/s".
"""

import struct
import time

import anyio

import tailrace
from tailrace.bench.actors import Actor, Gate, go
from tailrace.bench.cpus import RECEIVERS, SENDERS
from tailrace.bench.streams import create
from tailrace.bench.workbench import WARM_S, Workbench, parser, workbench
from tailrace.bench.workload import make_values, percentiles

SIZE_BYTES = 100
STAMP = struct.Struct(">d")  # time.monotonic at which the send was meant to begin; 0: the last one
WARM = -1.0  # as its stamp: not timed
TOUCH_BYTES = 128 << 20


async def send(
    gate: Gate, url: str, topic: str, rate_per_s: float, seconds: float, warm_s: float
) -> list[float]:
    """Latencies in ms until the ack."""
    latencies: list[float] = []
    padding = make_values(1, SIZE_BYTES - STAMP.size)[0]

    async def one(intended: float, timed: bool) -> None:
        await producer.send(topic, STAMP.pack(intended if timed else WARM) + padding)
        if timed:
            latencies.append((time.monotonic() - intended) * 1_000)

    async with tailrace.connect(url) as client, client.producer() as producer:
        await producer.send(topic, STAMP.pack(WARM) + padding)  # connects
        await gate.ready()
        began, warm = time.monotonic(), int(rate_per_s * warm_s)
        async with anyio.create_task_group() as tasks:
            for number in range(warm + int(rate_per_s * seconds)):
                intended = began + number / rate_per_s
                if (wait_s := intended - time.monotonic()) > 0:
                    await anyio.sleep(wait_s)
                tasks.start_soon(one, intended, number >= warm)
        await producer.send(topic, STAMP.pack(0.0) + padding)
    return latencies


async def receive(gate: Gate, url: str, topic: str) -> list[float]:
    """Latencies in ms until the record was here; until the last one came."""
    latencies: list[float] = []
    async with tailrace.connect(url) as client, client.consumer(topic) as consumer:
        await gate.ready()
        async for record in consumer:
            (intended,) = STAMP.unpack_from(record.value or b"")
            if intended > 0:
                latencies.append((time.monotonic() - intended) * 1_000)
            elif not intended:
                return latencies
    raise AssertionError("reading ended before the last record")


def measure(bench: Workbench, url: str, rate_per_s: float, warm_s: float) -> None:
    topic = f"rate-{rate_per_s:.0f}"
    anyio.run(create, url, [topic], 1, "fsync")
    sender = Actor(send, url, topic, rate_per_s, bench.seconds, warm_s)
    sender.placed(SENDERS, fine_timers=True)
    receiver = Actor(receive, url, topic).placed(RECEIVERS, fine_timers=True)
    with sender, receiver:
        go(receiver, sender)
        found = {"ack": sender.result(), "deliver": receiver.result()}
    for name, latencies in found.items():
        shown = percentiles(latencies)
        for share in ("p50", "p99"):
            bench.tell(
                f"{name}-latency-{share}",
                *(shown[share], "ms"),
                size_bytes=SIZE_BYTES,
                durable=True,
                note=f"{rate_per_s:.0f}/s",
            )


def main() -> None:
    made = parser(__doc__ or "", seconds=5.0)
    made.add_argument("--rates", default="500,1000", help="sends per second")
    made.add_argument("--warm", type=float, default=WARM_S, help="seconds of sends before, untimed")
    given = made.parse_args()
    with workbench(given) as bench, bench.broker(touch_bytes=TOUCH_BYTES) as broker:
        for rate in given.rates.split(","):
            measure(bench, broker.url, float(rate), given.warm)


if __name__ == "__main__":
    main()
