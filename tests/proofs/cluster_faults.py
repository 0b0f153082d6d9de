"""Three brokers and three members of etcd in network namespaces, under faults and under load.

    python -m tests.proofs.cluster_faults --minutes 30        root; ip, nft, etcd

Random faults, one at a time: the leader of a partition killed (-9) and started again, brokers
stopped (SIGSTOP, 1 s to 3 sessions), one-way and two-way partitions between brokers, brokers cut
off from etcd or from the clients, etcd's leader killed, all of etcd cut off. Five idempotent
producers (acks=all) and five consumers run throughout, in the namespace of the bridge.

Passes only if ``cluster_load.judge`` finds nothing wrong and all replicas are equal, byte by byte,
below the end of the shortest, and if no send failed. Prints by kind of fault how long partitions
went without an acknowledgement, and how long without a leader (``leader_watch``): of each fault
the longest, and of these the median, p99 and worst.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proofs import cluster_load
from tests.proofs.cluster_load import TOPIC
from tests.proofs.cluster_machine import HUB, Machine, diverging, machine, wait_until
from tests.proofs.figures import Figure, quantile, told
from tests.proofs.leader_watch import Gap

PARTITIONS = 6
SESSION_S = 6.0
QUIET_S = (4.0, 8.0)  # between two faults
HEAL_SECONDS_MAX = 90.0
SILENCE_S = 0.25  # shorter ones are the pace of the producers
FELT_S = (1.0, 5.0)  # what begins so long before a fault, or after it, is said to be of it
FAILED_MAX = 0  # sends: a producer is patient for 120 s, and no fault lasts that long


@dataclass
class Fault:
    """One that was played. Times are ``time.monotonic``."""

    kind: str
    began: float
    ended: float


class Chaos:
    """Plays faults on a machine."""

    def __init__(self, cluster: Machine, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self.played: list[Fault] = []
        self.kinds: dict[str, Callable[[], None]] = {
            "leader killed": self._kill_leader,
            "leader stopped gracefully": self._restart_leader,
            "broker paused": self._pause,
            "broker cut off from brokers": self._cut_from_brokers,
            "one way cut between brokers": self._cut_one_way,
            "broker cut off from etcd": self._cut_from_etcd,
            "broker cut off from everybody": self._cut_from_all,
            "leader of etcd killed": self._kill_etcd,
            "etcd cut off": self._cut_etcd,
        }

    def play(self, kind: str) -> None:
        """One fault, from its beginning to its end; the cluster need not have recovered."""
        began = time.monotonic()
        self.kinds[kind]()
        self.played.append(Fault(kind, began, time.monotonic()))

    def leader(self) -> str:
        """Who leads a random partition of the topic, as some broker tells it."""
        number = self._rng.randrange(PARTITIONS)
        for name, host in self._cluster.brokers.items():
            if not host.running:
                continue
            try:
                document = ask(self._cluster, name, f"/api/v1/topics/{TOPIC}")
            except (OSError, subprocess.SubprocessError, ValueError):
                continue
            leader: str | None = document["partition_list"][number]["leader"]
            if leader is not None and self._cluster.brokers[leader].running:
                return leader
        return self._rng.choice(list(self._cluster.brokers))

    def _kill_leader(self) -> None:
        host = self._cluster.brokers[self.leader()]
        host.kill()
        time.sleep(self._rng.uniform(0.0, 2 * SESSION_S))
        host.start()

    def _restart_leader(self) -> None:
        host = self._cluster.brokers[self.leader()]
        code = host.stop()
        assert code == 0, f"{host.name} ended with {code}"
        host.start()

    def _pause(self) -> None:
        host = self._cluster.brokers[self.leader()]
        host.send(signal.SIGSTOP)
        time.sleep(self._rng.uniform(1.0, 3 * SESSION_S))
        host.send(signal.SIGCONT)

    def _while_cut(self, victim: str, peers: list[str], *, ways: str = "both") -> None:
        self._cluster.cut(victim, peers, ways=ways)
        time.sleep(self._rng.uniform(2.0, 3 * SESSION_S))
        self._cluster.heal(victim)

    def _others(self, victim: str) -> list[str]:
        return [name for name in self._cluster.brokers if name != victim]

    def _cut_from_brokers(self) -> None:
        victim = self.leader()
        self._while_cut(victim, self._others(victim))

    def _cut_one_way(self) -> None:
        victim = self.leader()
        peers = self._others(victim)
        some = self._rng.sample(peers, self._rng.randint(1, len(peers)))
        self._while_cut(victim, some, ways=self._rng.choice(["in", "out"]))

    def _cut_from_etcd(self) -> None:
        self._while_cut(self.leader(), list(self._cluster.etcd))

    def _cut_from_all(self) -> None:
        victim = self.leader()
        self._while_cut(victim, [*self._others(victim), *self._cluster.etcd, HUB])

    def _kill_etcd(self) -> None:
        host = self._cluster.etcd[etcd_leader(self._cluster)]
        host.kill()
        time.sleep(self._rng.uniform(1.0, 10.0))
        host.start()

    def _cut_etcd(self) -> None:
        for name in self._cluster.etcd:
            self._cluster.cut(name, self._cluster.brokers)
        time.sleep(self._rng.uniform(2.0, 3 * SESSION_S))
        for name in self._cluster.etcd:
            self._cluster.heal(name)


def ask(cluster: Machine, broker: str, path: str) -> Any:
    """A JSON document over HTTP, asked where clients are."""
    url = cluster.http[broker] + path
    if not cluster.namespaces:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    done = subprocess.run(
        cluster.command("curl", "-sf", "-m", "5", url), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def etcd_leader(cluster: Machine) -> str:
    """The member that says of itself that it leads; any, while none does."""
    for name, host in cluster.etcd.items():
        done = subprocess.run(
            cluster.command(*("curl", "-sf", "-m", "5", "-d", "{}"), status_url(host.address)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            status = json.loads(done.stdout)
            if status.get("leader") == status["header"]["member_id"]:
                return name
    return next(iter(cluster.etcd))


def status_url(address: str) -> str:
    """Where a member of etcd in a namespace tells who leads."""
    return f"http://{address}:7400/v3/maintenance/status"


def healthy(cluster: Machine) -> bool:
    """Whether every broker says that all is well."""
    try:
        found = [ask(cluster, name, "/api/v1/cluster/health") for name in cluster.brokers]
    except (OSError, subprocess.SubprocessError, ValueError):
        return False
    return all(one["healthy"] for one in found)


def create_topic(cluster: Machine, *, name: str = TOPIC, partitions: int = PARTITIONS) -> None:
    """With the command that a user has; three copies."""
    address = cluster.url.removeprefix("tailrace://").split(",")[0]
    done = subprocess.run(
        cluster.command(
            *(sys.executable, "-m", "tailrace.cli", "-b", address, "topic", "create", name),
            *("--partitions", str(partitions), "--replicas", "3"),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"


def longest(fault: Fault, gaps: list[Gap]) -> float:
    """Of those that began while it was played, in seconds; 0 if none did."""
    before, after = FELT_S
    began, ended = fault.began - before, fault.ended + after
    return max((length for _, at, length in gaps if began <= at <= ended), default=0.0)


def table(faults: list[Fault], silences: list[Gap], leaderless: list[Gap]) -> list[str]:
    """In Markdown; the last row is of all kinds."""
    lines = [
        "| fault | played | silence of a partition: median | p99 | worst"
        " | without a leader: median | p99 | worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = {kind: [one for one in faults if one.kind == kind] for kind in {f.kind for f in faults}}
    for kind, played in [*sorted(kinds.items()), ("all", faults)]:
        cells = [kind, str(len(played))]
        for gaps in (silences, leaderless):
            worst = [longest(fault, gaps) for fault in played]
            cells += [f"{quantile(worst, share):.2f} s" for share in (0.5, 0.99, 1.0)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def report(faults: list[Fault], seen: cluster_load.Seen) -> list[str]:
    """Print how long partitions were silent, by kind of fault; which figures broke a limit."""
    silences = cluster_load.silences(seen, SILENCE_S)
    print("\n".join(table(faults, silences, seen.leaderless)))
    waits = cluster_load.waits(seen)
    failed = cluster_load.failed(seen)
    print(
        f"{len(seen.sent):,} sent, {len(waits):,} acknowledged (p50 {quantile(waits, 0.5):.4f} s,"
        f" p99 {quantile(waits, 0.99):.3f} s)"
    )
    if failed:
        print(f"errors of sends: {sorted({error[:60] for error in failed})[:5]}")
    if seen.troubles:
        print(f"{len(seen.troubles)} errors of consumers: {sorted(set(seen.troubles))[:5]}")
    return told([Figure("sends that failed", len(failed), unit="", most=FAILED_MAX)])


def one_run(folder: Path, minutes: float, rng: random.Random, kinds: list[str] | None) -> None:
    out = folder / "seen.json"
    settings = {"cluster.session_timeout": f"{SESSION_S:.0f}s"}
    with machine(folder, members=3, namespaces=True, settings=settings) as cluster:
        wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy at the start")
        create_topic(cluster)
        arguments = ["--url", cluster.url, "--out", str(out), "--partitions", str(PARTITIONS)]
        load = subprocess.Popen(
            cluster.command(sys.executable, "-m", "tests.proofs.cluster_load", *arguments)
        )
        chaos = Chaos(cluster, rng)
        try:
            ends_at = time.monotonic() + minutes * 60
            time.sleep(5.0)
            while time.monotonic() < ends_at:
                kind = rng.choice(kinds or list(chaos.kinds))
                print(f"{ends_at - time.monotonic():6.0f} s left: {kind}", flush=True)
                chaos.play(kind)
                ended = [host.name for host in cluster.brokers.values() if not host.running]
                assert not ended, f"{ended} ended by themselves"
                time.sleep(rng.uniform(*QUIET_S))
                assert load.poll() is None, "the load has ended"
            wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy after all faults")
            load.terminate()
            load.wait(timeout=600)
        finally:
            load.kill()
        assert load.returncode == 0, "the load failed"
        seen = cluster_load.load(out)
        logs_out = folder / "logs.json"
        code = "import asyncio, json, sys; from tests.proofs.cluster_load import read_all;"
        code += "json.dump(asyncio.run(read_all(sys.argv[1], int(sys.argv[2]))),"
        code += "open(sys.argv[3], 'w'))"
        subprocess.run(
            cluster.command(
                sys.executable, "-c", code, cluster.url, str(PARTITIONS), str(logs_out)
            ),
            check=True,
            timeout=600,
        )
        logs = json.loads(logs_out.read_text())
        wrong = report(chaos.played, seen) + cluster_load.judge(seen, logs)
        for host in cluster.brokers.values():
            assert host.stop() == 0, f"{host.name} did not stop gracefully"
        wrong += diverging(cluster)
    assert not wrong, "\n".join([f"{len(wrong)} things are wrong:", *wrong[:20]])
    print("ok: nothing acknowledged was lost, nothing stands twice, all replicas are equal")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", action="append", help="only faults of this kind")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    folder = Path(tempfile.mkdtemp(prefix="tailrace-faults-"))
    try:
        one_run(folder, options.minutes, random.Random(options.seed), options.kind)
    except (AssertionError, RuntimeError) as error:
        sys.exit(f"FAILED: {error}; kept {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
