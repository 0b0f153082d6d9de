"""The compose cluster: up, loaded, one broker killed, watched by Prometheus, back, checked, down.

    python -m tests.proofs.compose             builds the image, as docs/operations.md does it
    python -m tests.proofs.compose --no-build  takes the image ``tailrace`` that is there

Reaches it from the host and from other containers; kills the container that leads partition 0 under
load, waits until Prometheus has told of it, starts it again, waits until Prometheus is quiet;
restarts all three, one after another; takes etcd away, then two brokers at once, until that is
told, too; and reads everything back. All that it made is removed.
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
from tests.deploy.dashboards import DASHBOARDS, asked_by, asking, empty
from tests.proofs import cluster_load
from tests.proofs.cluster_load import TOPIC

COMPOSE_FILE = Path(__file__).parent.parent.parent / "deploy" / "compose.yml"
PROJECT = "tailrace-proof"
URL = "tailrace://127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
PROMETHEUS = "http://127.0.0.1:9090"
BROKERS = ("n1", "n2", "n3")
APART = "apart"
PARTITIONS = 6
UP_SECONDS_MAX = 180.0
ALERT_SECONDS_MAX = 240.0
# What must be set off by one broker that is gone, by two, and by an etcd that is.
ONE, TWO = {"TailraceDown"}, {"TailraceDown", "TailraceBelowMinIsr"}
ETCD = {"TailraceLeaseEnds"}


class Trouble(Exception):
    """Docker, or the cluster, does not do what it should."""


def compose_command() -> list[str]:
    """``docker compose``, or the older program of its own. Trouble."""
    if not shutil.which("docker"):
        raise Trouble("needs Docker")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if not shutil.which("docker-compose"):
        raise Trouble("needs docker compose")
    return ["docker-compose"]


class Cluster:
    """The containers."""

    def __init__(self, project: str = PROJECT) -> None:
        compose = compose_command()
        self._can_wait = compose[0] == "docker"
        self._command = [
            *(*compose, "-p", project, "-f", str(COMPOSE_FILE)),
            *("--profile", "monitoring"),
        ]

    def run(self, *arguments: str) -> str:
        """One compose command; what it printed."""
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Trouble(f"compose {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def up(self, *more: str, build: bool) -> None:
        """The cluster, and ``more``; as far as this compose can, it has waited for their health."""
        options = [*(["--build"] if build else []), *(["--wait"] if self._can_wait else [])]
        self.run("up", "-d", *options, "etcd", *BROKERS, *more)

    def down(self) -> None:
        """Without a trace."""
        self.run("down", "-v", "--timeout", "5")

    def container(self, service: str) -> str:
        """Its id."""
        return self.run("ps", "-q", service).strip()

    def kill(self, service: str) -> None:
        """As the kernel would, for want of memory."""
        docker("kill", self.container(service))

    def in_container(self, service: str, script: str) -> str:
        """What a shell in there prints."""
        return docker("exec", self.container(service), "sh", "-c", script)

    def exit_code(self, service: str) -> str:
        """With what the broker in there has ended."""
        return docker("inspect", "-f", "{{.State.ExitCode}}", self.container(service)).strip()

    def found_well(self, service: str) -> bool:
        """Whether the image's own health check says so."""
        told = docker("inspect", "-f", "{{.State.Health.Status}}", self.container(service))
        return told.strip() == "healthy"


def docker(*arguments: str) -> str:
    """What it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Trouble(f"docker {' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout


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
    raise Trouble(f"the alerts after {ALERT_SECONDS_MAX:.0f} s: {sorted(firing())}")


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
    raise Trouble(f"not healthy after {UP_SECONDS_MAX:.0f} s: {last}")


async def prepare() -> str:
    """The topic; who leads its first partition."""
    async with tailrace.connect(URL) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=3)
        detail = await client.admin.describe_topic(TOPIC)
        leader = detail.partition_list[0].leader
        assert leader is not None
        return leader


def look_inside(cluster: Cluster) -> None:
    """Who runs it, what its health check says, and that containers reach each other."""
    assert cluster.in_container("n1", "id -u; stat -c %a /var/lib/tailrace") == "10001\n700\n"
    for broker in BROKERS:
        for _ in range(int(UP_SECONDS_MAX)):
            if cluster.found_well(broker):
                break
            time.sleep(1.0)
        else:
            raise Trouble(f"Docker does not find {broker} healthy")
    others = "tailrace -b n2:7400,n3:7400"
    cluster.in_container("n1", f"{others} topic create {APART}")
    cluster.in_container("n1", f"echo k:v | {others} produce {APART} -K :")
    told = cluster.in_container("n3", f"tailrace -b n1:7400 tail {APART} -q --format '%k %v\\n'")
    assert told == "k v\n", told


def look_at_dashboard() -> None:
    """Every panel of the one for a cluster has something to show."""
    asked = asked_by([one for one in DASHBOARDS if one.stem == "cluster"])
    deadline = time.monotonic() + UP_SECONDS_MAX
    while without := empty(asking(PROMETHEUS), asked):
        if time.monotonic() > deadline:
            raise Trouble(f"nothing to show: {without}")
        time.sleep(1.0)
    print(f"all {len(asked)} queries of the dashboard have something to show", flush=True)


def until_told(cluster: Cluster, expected: set[str], *victims: str) -> float:
    """Kill these, until Prometheus tells of it; then start them, until it does not. When it began.

    etcd is paused, and goes on: its lease has ended by then.
    """
    watch(lambda now: not now, time.monotonic(), {})
    print(f"killing {' and '.join(victims)}", flush=True)
    killed_at = time.monotonic()
    for victim in victims:
        cluster.run("pause", victim) if victim == "etcd" else cluster.kill(victim)
    seen: dict[str, float] = {}
    watch(lambda now: now >= expected, killed_at, seen)
    cluster.run("unpause" if victims == ("etcd",) else "start", *victims)
    started_at = time.monotonic()
    print(f"  back {started_at - killed_at:.0f} s after that", flush=True)
    watch(lambda now: not now, killed_at, seen)
    quiet_s = time.monotonic() - started_at
    print(f"  no alert fires any more {quiet_s:.0f} s after the start", flush=True)
    asyncio.run(wait_healthy())
    return killed_at


def restart_all(cluster: Cluster) -> float:
    """Each gracefully, the next when the cluster is well again. When that began."""
    began = time.monotonic()
    for broker in BROKERS:
        at = time.monotonic()
        cluster.run("stop", broker)
        stopped = time.monotonic()
        assert cluster.exit_code(broker) == "0", f"{broker} ended with {cluster.exit_code(broker)}"
        cluster.run("start", broker)
        asyncio.run(wait_healthy())
        took = time.monotonic() - at
        print(f"restarted {broker}: stopped in {stopped - at:.1f} s, all well after {took:.1f} s")
    return began


def under_load(cluster: Cluster, folder: Path) -> None:
    """Kill one, restart all; then judge what the clients saw."""
    victim = asyncio.run(prepare())
    out = folder / "seen.json"
    arguments = ["--url", URL, "--out", str(out), "--partitions", str(PARTITIONS), "--rate", "50"]
    with (folder / "load.log").open("w") as log:
        load = subprocess.Popen(
            [sys.executable, "-m", "tests.proofs.cluster_load", *arguments],
            stdout=log,
            stderr=log,
        )
    try:
        time.sleep(15.0)
        look_at_dashboard()
        killed_at = until_told(cluster, ONE, victim)
        rolled_at = restart_all(cluster)
        time.sleep(5.0)
        cut_at = until_told(cluster, ETCD, "etcd")
        until_told(cluster, TWO, *[one for one in BROKERS if one != victim])
        time.sleep(5.0)
        load.terminate()
        load.wait(timeout=300)
    finally:
        load.kill()
    assert load.returncode == 0, "the load failed"
    seen = cluster_load.load(out)
    wrong = cluster_load.judge(seen, asyncio.run(cluster_load.read_all(URL, PARTITIONS)))
    failed = [one for one in seen.sent if one.offset < 0]
    wrong += [f"not sent: {one.error}" for one in failed] + seen.troubles
    assert not wrong, "\n".join([f"{len(wrong)} things are wrong:", *wrong[:10]])
    silent = cluster_load.silences(seen, 0.2)
    spans = {"kill": (killed_at, rolled_at), "restarts": (rolled_at, cut_at)}
    longest = {
        what: max((s for _, at, s in silent if first <= at + 1.0 < end), default=0.0)
        for what, (first, end) in spans.items()
    }
    print(
        f"ok: {len(seen.sent):,} sent, none failed; all are there, once, in order; no partition was"
        f" without an ack for more than {longest['kill']:.1f} s around the first kill, and"
        f" {longest['restarts']:.1f} s while all brokers were restarted"
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-build", action="store_true", help="use the image that is there")
    options = parser.parse_args()
    try:
        cluster = Cluster()
    except Trouble as error:
        sys.exit(str(error))
    folder = Path(tempfile.mkdtemp(prefix="tailrace-compose-"))
    began = time.monotonic()
    try:
        cluster.up("prometheus", build=not options.no_build)
        asyncio.run(wait_healthy())
        print(f"up and healthy after {time.monotonic() - began:.0f} s", flush=True)
        look_inside(cluster)
        under_load(cluster, folder)
    except (AssertionError, Trouble) as error:
        sys.exit(f"FAILED: {error}; what clients saw is in {folder}")
    finally:
        cluster.down()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
