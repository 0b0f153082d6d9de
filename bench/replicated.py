"""``python -m tailrace.bench.replicated --url URL``: what three copies cost, on a running cluster.

Produces the same records to topics of one replica and of three (min_isr 2, durability fsync), in
rounds A B A B, and times single durable sends to both. With all brokers on one machine three times
the work shares its processors and its disk: what matters is the ratio, and on how many cores.
"""

import os
import uuid
from collections.abc import Callable

import anyio
import click

import tailrace
from tailrace.bench.run import SEND_SECONDS, Watch, produce, single_sends
from tailrace.bench.workload import Workload, make_values, percentiles

PATIENCE_S = SEND_SECONDS
COPIES = (1, 3)


@click.command()
@click.option("--url", required=True, help="Of a cluster of three brokers or more.")
@click.option("--rounds", default=5, show_default=True, help="Of each number of copies.")
@click.option("--records", default=500_000, show_default=True, help="Of a round.")
@click.option("--size", default=100, show_default=True, help="Bytes of a record.")
@click.option("--partitions", default=3, show_default=True)
@click.option("--batch", default=10_000, show_default=True, help="Records of one send_many.")
def main(url: str, rounds: int, records: int, size: int, partitions: int, batch: int) -> None:
    """Print the figures of each round, and the ratios of three copies to one."""
    print(f"{os.cpu_count()} CPUs, {records:,} records of {size} B, {partitions} partitions")
    print("| round | replicas 1 | replicas 3 | ratio | send p50, p99: 1 | 3 |")
    print("|---|---|---|---|---|---|")
    ratios: list[float] = []
    workload = Workload("produce", records, size, batch, partitions, 1, "all")
    for number in range(rounds):
        rates, sends = list[float](), list[str]()
        for copies in COPIES:
            rate, latencies = anyio.run(measure, url, workload, copies, backend="asyncio")
            found = percentiles(latencies)
            rates.append(rate)
            sends.append(f"{found['p50']:.2f}, {found['p99']:.2f} ms")
        ratios.append(rates[1] / rates[0])
        cells = [f"{rate:,.0f}/s" for rate in rates] + [f"{ratios[-1]:.2f}", *sends]
        print(f"| {number + 1} | {' | '.join(cells)} |", flush=True)
    ratios.sort()
    print(f"ratio: {ratios[len(ratios) // 2]:.2f} (median; {ratios[0]:.2f} to {ratios[-1]:.2f})")


async def measure(
    url: str,
    workload: Workload,
    copies: int,
    seconds: float = 5.0,
    before: Callable[[], None] = lambda: None,
) -> tuple[float, list[float]]:
    """Records per second, and latencies in ms of single sends, to topics with so many copies,
    sent for so many seconds. ``before`` is called right before records are produced and timed."""
    values = make_values(workload.records, workload.size_bytes)
    async with tailrace.connect(url) as client:
        watch = Watch(client, PATIENCE_S)
        topic = f"bench-{uuid.uuid4().hex[:12]}"
        await client.admin.create_topic(topic, partitions=workload.partitions, replicas=copies)
        try:
            part = values[: len(values) // 5]
            await produce(client, workload, topic, part, watch.moved, watch)  # first touches
            before()
            measured = await produce(client, workload, topic, values, watch.moved, watch)
            assert not measured.errors, f"{measured.errors} records were not acknowledged"
            latencies = await single_sends(
                client, topic, rate_per_s=100.0, seconds=seconds, size_bytes=workload.size_bytes
            )
        finally:
            await client.admin.delete_topic(topic)
    return measured.records / measured.elapsed_seconds, latencies


if __name__ == "__main__":
    main()
