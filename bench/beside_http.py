"""``python -m tailrace.bench.beside_http``: what HTTP costs those who send.

The latency of durable sends (100/s, one after the other's time, whoever waits), alone and beside
20 tails of the same topic and 50 requests/s of ``/metrics`` and ``/api/v1/topics``, in many short
rounds A B A B: the machine drifts, so each kind of round has its share of whatever else happens on
it, and what counts is the ratio over all sends of both kinds. Its spread is what comes out when
rounds are drawn anew, with replacement (bootstrap). Broker, sender and whoever uses HTTP are three
processes; the last one does next to nothing with what it gets, and asks at times by chance, as a
beat of its own would meet either every other send or none.

``loop`` is the processor time of the broker's event loop, in ms per second: where others use the
machine, too, it tells more than latencies do.
"""

import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import anyio
import click

import tailrace
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.run import single_sends
from tailrace.bench.touch import touch_disk
from tailrace.bench.workload import percentiles

TOPIC = "bench-beside-http"
SIZE_BYTES = 100
PATHS = ("/metrics", "/api/v1/topics")
DRAWS = 200
WARM_SECONDS = 1.0  # of the load, before anything is measured beside it
RECEIVE_BYTES = 1 << 18
TOUCH_BYTES = 300_000_000  # of the disk, before anything is measured


@click.command()
@click.option("--rounds", default=30, show_default=True, help="Of A and B each.")
@click.option("--seconds", default=2.0, show_default=True, help="Of a round.")
@click.option("--sends", default=100.0, show_default=True, help="Per second.")
@click.option("--tails", default=20, show_default=True)
@click.option("--requests", default=50.0, show_default=True, help="Per second.")
@click.option("--load", default=None, hidden=True, help="Be the load on this address.")
def main(
    rounds: int, seconds: float, sends: float, tails: int, requests: float, load: str | None
) -> None:
    """Print the figures of both kinds of rounds, and their ratios."""
    if load is not None:
        put_load(load, tails, requests)
        return
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as folder:
        touch_disk(Path(folder), TOUCH_BYTES)
        with BrokerProcess(Path(folder) / "data") as broker:
            anyio.run(create, broker.url, backend="asyncio")
            alone, beside = list[Round](), list[Round]()
            measure(broker.url, sends, 2.0)
            for _ in range(rounds):
                alone.append(timed(broker, sends, seconds))
                with loaded(broker.http_url, tails, requests):
                    beside.append(timed(broker, sends, seconds))
            tell(alone, beside)


@dataclass(frozen=True)
class Round:
    """What one round found."""

    latencies: list[float]  # of each send, in ms
    loop: float  # what the broker's event loop took, in ms per second


def tell(alone: Sequence[Round], beside: Sequence[Round]) -> None:
    """Both kinds of rounds, and their ratio with its spread."""
    print("| | p50 | p99 | p99 of a round, in the median | loop |")
    print("|---|---|---|---|---|")
    for name, rounds in (("alone", alone), ("beside", beside)):
        found = percentiles([one for each in rounds for one in each.latencies])
        middle = median(percentiles(each.latencies)["p99"] for each in rounds)
        loop = median(each.loop for each in rounds)
        print(
            f"| {name} | {found['p50']:.2f} ms | {found['p99']:.2f} ms | {middle:.2f} ms"
            f" | {loop:.0f} ms/s |"
        )
    chance = random.Random(1)
    for name in ("p50", "p99"):
        drawn = sorted(
            ratio(
                name,
                chance.choices(alone, k=len(alone)),
                chance.choices(beside, k=len(beside)),
            )
            for _ in range(DRAWS)
        )
        low, high = drawn[DRAWS // 20], drawn[-DRAWS // 20]
        print(f"{name}: {ratio(name, alone, beside):.2f} times ({low:.2f} to {high:.2f}, 90 %)")


def ratio(name: str, alone: Sequence[Round], beside: Sequence[Round]) -> float:
    """Of one percentile over all sends."""
    after, before = (
        percentiles([one for each in rounds for one in each.latencies])[name]
        for rounds in (beside, alone)
    )
    return after / before


async def create(url: str) -> None:
    async with tailrace.connect(url) as client:
        await client.admin.create_topic(TOPIC)


def measure(url: str, rate_per_s: float, seconds: float) -> list[float]:
    """The latency of each send, in ms."""

    async def work() -> list[float]:
        async with tailrace.connect(url) as client:
            return await single_sends(
                client, TOPIC, rate_per_s=rate_per_s, seconds=seconds, size_bytes=SIZE_BYTES
            )

    return anyio.run(work, backend="asyncio")


def timed(broker: BrokerProcess, rate_per_s: float, seconds: float) -> Round:
    schedule = Path(f"/proc/{broker.pid}/task/{broker.pid}/schedstat")  # of the first thread
    before_ns, began = int(schedule.read_text().split()[0]), time.monotonic()
    latencies = measure(broker.url, rate_per_s, seconds)
    took_ns, took_s = int(schedule.read_text().split()[0]) - before_ns, time.monotonic() - began
    return Round(latencies, took_ns / 1e6 / took_s)


@contextmanager
def loaded(http: str, tails: int, requests: float) -> Generator[None, None, None]:
    """The load, in a process of its own."""
    command = [sys.executable, "-m", "tailrace.bench.beside_http", "--load", http]
    command += ["--tails", str(tails), "--requests", str(requests)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        time.sleep(WARM_SECONDS)
        assert process.poll() is None, "the load did not start"
        yield
    finally:
        process.terminate()
        process.wait(10)


def put_load(http: str, tails: int, requests: float) -> None:
    """Read tails and ask, until killed. A plain loop, behind everybody else who wants a processor:
    it should not cost what it measures."""
    os.nice(19)
    host, port = http.removeprefix("http://").rsplit(":", 1)
    streams = [ask(host, int(port), f"/api/v1/topics/{TOPIC}/tail") for _ in range(tails)]
    asker = ask(host, int(port), PATHS[0])
    poll = select.poll()
    for one in (*streams, asker):
        poll.register(one, select.POLLIN)
    by_number = {one.fileno(): one for one in (*streams, asker)}
    chance, asked, due = random.Random(), 1, time.monotonic()
    if not requests:
        due += 1e9
    while True:
        for number, _ in poll.poll(max(0.0, min(1.0, due - time.monotonic())) * 1_000):
            if not by_number[number].recv(RECEIVE_BYTES):
                raise SystemExit("the broker closed a connection")
        if time.monotonic() >= due:
            asker.sendall(request(PATHS[asked % len(PATHS)]))
            asked += 1
            due += chance.expovariate(requests)


def ask(host: str, port: int, path: str) -> socket.socket:
    stream = socket.create_connection((host, port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.sendall(request(path))
    return stream


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


if __name__ == "__main__":
    main()
