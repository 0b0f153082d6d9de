"""How long starting takes: ``tailrace dev`` to its first durable produce, and the test broker.

    python -m tailrace.bench.startup

Prints each figure with its limit beside it. The first test broker of a process pays for imports,
so that one is measured in a fresh interpreter, and the others after it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tailrace.sync
from tailrace.bench.processes import BrokerProcess

DEV_ROUNDS = 5
BROKERS = 50
FIRST_ROUNDS = 5
MEASURE_BROKERS = """
import json, sys, time
began = time.perf_counter()
from tailrace.testing import Broker
broker = Broker()
first = time.perf_counter() - began
broker.stop()
starts, stops = [], []
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    broker = Broker()
    starts.append(time.perf_counter() - began)
    began = time.perf_counter()
    broker.stop()
    stops.append(time.perf_counter() - began)
print(json.dumps({"first": first, "starts": starts, "stops": stops}))
"""


def main() -> None:
    """Measure and print."""
    produced = [first_produce() for _ in range(DEV_ROUNDS)]
    show("`tailrace dev`, process start to first durable produce", produced, "max", 1.0)
    firsts = [test_brokers(0)["first"][0] for _ in range(FIRST_ROUNDS)]
    show("first `Broker()` of a process, imports included", firsts, "max", 0.4)
    many = test_brokers(BROKERS)
    show(f"`Broker()` start, {BROKERS} after the first", many["starts"], "p95", 0.1)
    show("`Broker.stop()`", many["stops"], "p95", 0.05)


def first_produce() -> float:
    with tempfile.TemporaryDirectory(prefix="tailrace-start-") as folder:
        broker = BrokerProcess(Path(folder) / "data")
        began = time.perf_counter()
        with broker:
            with tailrace.sync.connect(broker.url) as client, client.producer() as producer:
                producer.send("hello", b"world")
                return time.perf_counter() - began


def test_brokers(count: int) -> dict[str, list[float]]:
    command = [sys.executable, "-c", MEASURE_BROKERS, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return {"first": [found["first"]], "starts": found["starts"], "stops": found["stops"]}


def show(what: str, seconds: list[float], which: str, limit: float) -> None:
    ordered = sorted(seconds)
    shown = ordered[-1] if which == "max" else ordered[int(len(ordered) * 0.95)]
    median = statistics.median(ordered)
    verdict = "ok" if shown < limit else "ABOVE"
    print(
        f"{what}: median {median * 1e3:.0f} ms, {which} {shown * 1e3:.0f} ms"
        f" (limit {limit * 1e3:.0f} ms, {verdict})"
    )


if __name__ == "__main__":
    main()
