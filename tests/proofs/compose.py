"""The compose cluster: up, loaded, one broker killed, watched by Prometheus, back, checked, down.

    python -m tests.proofs.compose             builds the image, as docs/operations.md does it
    python -m tests.proofs.compose --no-build  takes the image ``tailrace`` that is there

Kills the container that leads partition 0 under load, waits until Prometheus has told of it, starts
it again, waits until Prometheus is quiet, and reads everything back. Everything it made is removed.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tailrace
from tests.proofs import cluster_load
from tests.proofs.cluster_load import TOPIC

COMPOSE_FILE = Path(__file__).parent.parent.parent / "deploy" / "compose.yml"
PROJECT = "tailrace-proof"
URL = "tailrace://127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
PROMETHEUS = "http://127.0.0.1:9090"
BROKERS = ("n1", "n2", "n3")
PARTITIONS = 6
UP_SECONDS_MAX = 180.0
ALERT_SECONDS_MAX = 240.0
EXPECTED = {"TailraceDown"}  # what a broker that is gone must set off


def compose_command() -> list[str]:
    """``docker compose``, or the older program of its own."""
    if not shutil.which("docker"):
        sys.exit("needs Docker")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if not shutil.which("docker-compose"):
        sys.exit("needs docker compose")
    return ["docker-compose"]


class Cluster:
    """The containers."""

    def __init__(self) -> None:
        self._command = [
            *(*compose_command(), "-p", PROJECT, "-f", str(COMPOSE_FILE)),
            *("--profile", "monitoring"),
        ]

    def run(self, *arguments: str) -> str:
        """One compose command; what it printed."""
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"FAILED: compose {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def up(self, *, build: bool) -> None:
        """Everything but Grafana, which has nothing to prove here."""
        self.run("up", "-d", *(["--build"] if build else []), "etcd", *BROKERS, "prometheus")

    def container(self, service: str) -> str:
        """Its id."""
        return self.run("ps", "-q", service).strip()

    def kill(self, service: str) -> None:
        """As the kernel would, for want of memory."""
        subprocess.run(["docker", "kill", self.container(service)], check=True, capture_output=True)


def firing() -> set[str]:
    """Names of the alerts that fire now; none while Prometheus does not answer."""
    try:
        with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/alerts", timeout=5) as answer:
            document: Any = json.load(answer)
    except (urllib.error.URLError, OSError):
        return set()
    alerts: list[Any] = document["data"]["alerts"]
    return {
        one["labels"]["alertname"]
        for one in alerts
        if one["state"] == "firing" and one["labels"].get("severity") != "info"
    }


def watch(until: Callable[[set[str]], bool], began: float, seen: dict[str, float]) -> None:
    """Note when each alert was first seen to fire, until they are as they should be."""
    for _ in range(int(ALERT_SECONDS_MAX)):
        now = firing()
        for name in now - seen.keys():
            seen[name] = time.monotonic() - began
            print(f"  {name} fires {seen[name]:.0f} s after the kill", flush=True)
        if until(now):
            return
        time.sleep(1.0)
    sys.exit(f"FAILED: the alerts after {ALERT_SECONDS_MAX:.0f} s: {sorted(firing())}")


async def wait_healthy() -> tailrace.ClusterInfo:
    """Until all three are there and healthy."""
    last: object = None
    for _ in range(int(UP_SECONDS_MAX)):
        try:
            async with tailrace.connect(URL, connect_timeout=5) as client:
                info = await client.admin.describe_cluster()
                if info.healthy and sum(one.state == "running" for one in info.brokers) == 3:
                    return info
                last = info.problems
        except tailrace.TailraceError as error:
            last = error
        await asyncio.sleep(1.0)
    sys.exit(f"FAILED: not healthy after {UP_SECONDS_MAX:.0f} s: {last}")


async def prepare() -> str:
    """The topic; who leads its first partition."""
    async with tailrace.connect(URL) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=3)
        detail = await client.admin.describe_topic(TOPIC)
        leader = detail.partition_list[0].leader
        assert leader is not None
        return leader


def under_load(cluster: Cluster, folder: Path) -> None:
    """Kill, watch, start, watch; then judge what the clients saw."""
    victim = asyncio.run(prepare())
    out = folder / "seen.json"
    arguments = ["--url", URL, "--out", str(out), "--partitions", str(PARTITIONS), "--rate", "50"]
    load = subprocess.Popen([sys.executable, "-m", "tests.proofs.cluster_load", *arguments])
    try:
        time.sleep(15.0)
        watch(lambda now: not now, time.monotonic(), {})
        print(f"killing {victim}, which leads {TOPIC}[0]", flush=True)
        killed_at = time.monotonic()
        cluster.kill(victim)
        seen: dict[str, float] = {}
        watch(lambda now: now >= EXPECTED, killed_at, seen)
        cluster.run("start", victim)
        started_at = time.monotonic()
        print(f"  started {victim} again {started_at - killed_at:.0f} s after the kill", flush=True)
        watch(lambda now: not now, killed_at, seen)
        print(f"  no alert fires any more {time.monotonic() - started_at:.0f} s after the start")
        asyncio.run(wait_healthy())
        load.terminate()
        load.wait(timeout=300)
    finally:
        load.kill()
    assert load.returncode == 0, "the load failed"
    seen_by_clients = cluster_load.load(out)
    logs = asyncio.run(cluster_load.read_all(URL, PARTITIONS))
    wrong = cluster_load.judge(seen_by_clients, logs)
    assert not wrong, "\n".join([f"{len(wrong)} things are wrong:", *wrong[:10]])
    after = [s for s in cluster_load.silences(seen_by_clients, 0.5) if s[1] >= killed_at - 1.0]
    silent = max((seconds for _, _, seconds in after), default=0.0)
    failed = sum(one.offset < 0 for one in seen_by_clients.sent)
    print(
        f"ok: {len(seen_by_clients.sent):,} sent, {failed} failed; all acknowledged records are"
        f" there, once, in order; no partition was without an ack for more than {silent:.1f} s"
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-build", action="store_true", help="use the image that is there")
    options = parser.parse_args()
    cluster = Cluster()
    folder = Path(tempfile.mkdtemp(prefix="tailrace-compose-"))
    began = time.monotonic()
    try:
        cluster.up(build=not options.no_build)
        asyncio.run(wait_healthy())
        print(f"up and healthy after {time.monotonic() - began:.0f} s", flush=True)
        under_load(cluster, folder)
    except AssertionError as error:
        sys.exit(f"FAILED: {error}; what clients saw is in {folder}")
    finally:
        cluster.run("down", "-v", "--timeout", "5")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
