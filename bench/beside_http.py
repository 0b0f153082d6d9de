"""``python -m tailrace.bench.beside_http``: what HTTP costs those who send.

The latency of durable sends (100/s, one after the other's time, whoever waits), alone and beside
20 tails of the same topic and 50 requests/s of ``/metrics`` and ``/api/v1/topics``, in rounds
A B A B: the machine drifts, ratios of neighbours are what counts. Broker, sender and whoever uses
HTTP are three processes; the last one does next to nothing with what it gets.

``loop`` is the processor time of the broker's event loop, in ms per second: where others use the
machine, too, it tells more than latencies do.
"""

import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import click

import tailrace
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.quick import touch_disk
from tailrace.bench.run import single_sends
from tailrace.bench.workload import percentiles

TOPIC = "bench-beside-http"
SIZE_BYTES = 100
PATHS = ("/metrics", "/api/v1/topics")
WARM_SECONDS = 2.0  # of the load, before anything is measured beside it
RECEIVE_BYTES = 1 << 18


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of A and B each.")
@click.option("--seconds", default=10.0, show_default=True, help="Of a round.")
@click.option("--sends", default=100.0, show_default=True, help="Per second.")
@click.option("--tails", default=20, show_default=True)
@click.option("--requests", default=50.0, show_default=True, help="Per second.")
@click.option("--load", default=None, hidden=True, help="Be the load on this address.")
def main(
    rounds: int, seconds: float, sends: float, tails: int, requests: float, load: str | None
) -> None:
    """Print the figures of each round, and the ratios of B to A."""
    if load is not None:
        put_load(load, tails, requests)
        return
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as folder:
        touch_disk(Path(folder))
        with BrokerProcess(Path(folder) / "data") as broker:
            anyio.run(create, broker.url, backend="asyncio")
            print("| round | alone p50 | p99 | loop | beside p50 | p99 | loop | p50 ratio | p99 |")
            print("|---|---|---|---|---|---|---|---|---|")
            found: list[tuple[float, float]] = []
            loops: list[float] = []
            all_alone, all_beside = list[float](), list[float]()
            measure(broker.url, sends, 2.0)
            for number in range(rounds):
                latencies, loop_alone = timed(broker, sends, seconds)
                all_alone += latencies
                alone = percentiles(latencies)
                with loaded(broker.http_url, tails, requests):
                    latencies, loop_beside = timed(broker, sends, seconds)
                all_beside += latencies
                beside = percentiles(latencies)
                found.append((beside["p50"] / alone["p50"], beside["p99"] / alone["p99"]))
                loops.append(loop_beside - loop_alone)
                figures = [alone["p50"], alone["p99"], loop_alone]
                figures += [beside["p50"], beside["p99"], loop_beside]
                texts = [f"{value:.2f} ms" for value in figures]
                texts += [f"{ratio:.2f}" for ratio in found[-1]]
                print(f"| {number + 1} | {' | '.join(texts)} |", flush=True)
    for name, ratios in zip(("p50", "p99"), zip(*found, strict=True), strict=True):
        low, high = min(ratios), max(ratios)
        median = sorted(ratios)[len(ratios) // 2]
        before, after = percentiles(all_alone)[name], percentiles(all_beside)[name]
        print(
            f"{name}: {median:.2f} times (median of rounds; {low:.2f} to {high:.2f});"
            f" of all sends {before:.2f} to {after:.2f} ms, {after / before:.2f} times"
        )
    print(f"loop: {sorted(loops)[len(loops) // 2]:.0f} ms per second more (median of rounds)")


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


def timed(broker: BrokerProcess, rate_per_s: float, seconds: float) -> tuple[list[float], float]:
    """The latencies of a round, and what the broker's event loop took, both in ms."""
    schedule = Path(f"/proc/{broker.pid}/task/{broker.pid}/schedstat")  # of the first thread
    before_ns, began = int(schedule.read_text().split()[0]), time.monotonic()
    latencies = measure(broker.url, rate_per_s, seconds)
    took_ns, took_s = int(schedule.read_text().split()[0]) - before_ns, time.monotonic() - began
    return latencies, took_ns / 1e6 / took_s


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
    """Read tails and ask, until killed. A plain loop: it should not cost what it measures."""
    host, port = http.removeprefix("http://").rsplit(":", 1)
    streams = [ask(host, int(port), f"/api/v1/topics/{TOPIC}/tail") for _ in range(tails)]
    asker = ask(host, int(port), PATHS[0])
    poll = select.poll()
    for one in (*streams, asker):
        poll.register(one, select.POLLIN)
    by_number = {one.fileno(): one for one in (*streams, asker)}
    began, asked = time.monotonic(), 1
    while True:
        due = began + asked / requests if requests else began + 1e9
        for number, _ in poll.poll(max(0.0, min(1.0, due - time.monotonic())) * 1_000):
            if not by_number[number].recv(RECEIVE_BYTES):
                raise SystemExit("the broker closed a connection")
        if time.monotonic() >= due:
            asker.sendall(request(PATHS[asked % len(PATHS)]))
            asked += 1


def ask(host: str, port: int, path: str) -> socket.socket:
    stream = socket.create_connection((host, port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.sendall(request(path))
    return stream


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


if __name__ == "__main__":
    main()
