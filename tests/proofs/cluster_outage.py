"""A cluster of three real brokers and etcd on loopback, under what may happen to all of it at once.

    python -m tests.proofs.cluster_outage --power-cuts 20   all three at once (root: mounts loop
                                                            files); only what was synced is left
    python -m tests.proofs.cluster_outage --etcd-away 60    etcd stands still for so many seconds
    python -m tests.proofs.cluster_outage --graceful 6      brokers stopped and started in turn
    python -m tests.proofs.cluster_outage --kills 6         leaders killed (-9) and started in turn

Producers and consumers run throughout (``cluster_load``); at the end everything is read back and
judged, and the replicas compared byte by byte. No send may fail in any of these: each fault is
shorter than a producer's patience. Every figure that has a limit is told beside it, and one that
breaks it fails the proof (exit code 1).
"""

import argparse
import asyncio
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.proofs import cluster_load, etcd_probe
from tests.proofs.cluster_faults import (
    HEAL_SECONDS_MAX,
    PARTITIONS,
    SESSION_S,
    SILENCE_S,
    Chaos,
    create_topic,
    healthy,
)
from tests.proofs.cluster_load import SEND_TIMEOUT_S
from tests.proofs.cluster_machine import Machine, diverging, machine, wait_until
from tests.proofs.etcd_probe import Outage, Probe, probing
from tests.proofs.figures import Figure, told
from tests.proofs.kill import LoopDisk

# Longest silence of a partition. Killed: its session has to end, and 2 s are for the election.
KILLED_S_MAX = SESSION_S + 2.0
# It gives its leaderships away, and clients go where they are told: no session has to end.
GRACEFUL_S_MAX = 0.5
# L1, for all three at once: their starts, and the sessions of who they were before.
POWER_CUT_S_MAX = 2 * SESSION_S + 5.0
# After etcd is back: brokers ask each second, register anew, and elect; not longer than for a kill.
RESUME_S_MAX = SESSION_S + 2.0
# etcd is away for longer than leases hold, and shorter than a producer is patient.
AWAY_S = (2 * SESSION_S, SEND_TIMEOUT_S - 2 * SESSION_S)


@dataclass
class Played:
    """When faults began, and what is limited besides what is for all of them."""

    began: list[float] = field(default_factory=list[float])
    silence_s_max: float | None = None
    outage: Outage | None = None
    probes: list[Probe] = field(default_factory=list[Probe])


Play = Callable[[Machine, random.Random], Played]


@contextmanager
def loaded(cluster: Machine, out: Path) -> Iterator[None]:
    """Clients at work; what they saw is in ``out`` afterwards."""
    arguments = ["--url", cluster.url, "--out", str(out), "--partitions", str(PARTITIONS)]
    load = subprocess.Popen([sys.executable, "-m", "tests.proofs.cluster_load", *arguments])
    try:
        time.sleep(4.0)
        yield
        load.terminate()
        load.wait(timeout=600)
        assert load.returncode == 0, "the load failed"
    finally:
        load.kill()


def restart_in_turn(rounds: int, *, graceful: bool) -> Play:
    """One leader after the other."""

    def play(cluster: Machine, rng: random.Random) -> Played:
        began: list[float] = []
        for number in range(rounds):
            host = cluster.brokers[Chaos(cluster, rng).leader()]
            began.append(time.monotonic())
            if graceful:
                assert host.stop() == 0, f"{host.name} did not stop gracefully"
            else:
                host.kill()
                time.sleep(rng.uniform(0.0, 10.0))
            host.start()
            wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy again")
            print(f"  {number + 1}/{rounds}: {host.name}", flush=True)
            time.sleep(2.0)
        return Played(began, GRACEFUL_S_MAX if graceful else KILLED_S_MAX)

    return play


def etcd_away(seconds: float) -> Play:
    """All of etcd stands still."""

    def play(cluster: Machine, rng: random.Random) -> Played:
        del rng
        create_topic(cluster, name=etcd_probe.TOPIC, partitions=1)
        with probing(list(cluster.http.values())) as probes:
            time.sleep(2.0)
            began = time.monotonic()
            for host in cluster.etcd.values():
                host.send(signal.SIGSTOP)
            time.sleep(seconds)
            ended = time.monotonic()
            for host in cluster.etcd.values():
                host.send(signal.SIGCONT)
            wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy again")
            time.sleep(RESUME_S_MAX)
        return Played([], None, Outage(began, ended, SESSION_S, RESUME_S_MAX), probes)

    return play


def power_cuts(rounds: int, disks: dict[str, LoopDisk]) -> Play:
    """All three die, and their disks have what they had synced."""

    def play(cluster: Machine, rng: random.Random) -> Played:
        began: list[float] = []
        for number in range(rounds):
            time.sleep(rng.uniform(0.5, 3.0))
            began.append(time.monotonic())
            for host in cluster.brokers.values():
                host.kill()
            for disk in disks.values():
                disk.cut_power()
            for host in cluster.brokers.values():
                host.launch()
            for host in cluster.brokers.values():
                host.wait_ready()
            wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy again")
            print(f"  {number + 1}/{rounds} power cuts", flush=True)
        return Played(began, POWER_CUT_S_MAX)

    return play


def one_run(folder: Path, play: Play, rng: random.Random, disks: dict[str, LoopDisk]) -> None:
    """Play under load, then judge."""
    out = folder / "seen.json"
    data = {name: disk.mount_point / "data" for name, disk in disks.items()}
    settings = {"cluster.session_timeout": f"{SESSION_S:.0f}s"}
    with machine(folder, settings=settings, data=data or None) as cluster:
        wait_until(lambda: healthy(cluster), HEAL_SECONDS_MAX, "healthy at the start")
        create_topic(cluster)
        with loaded(cluster, out):
            played = play(cluster, rng)
        seen = cluster_load.load(out)
        logs = asyncio.run(cluster_load.read_all(cluster.url, PARTITIONS))
        wrong = cluster_load.judge(seen, logs)
        for host in cluster.brokers.values():
            assert host.stop() == 0, f"{host.name} did not stop gracefully"
        wrong += diverging(cluster)
    tell(seen, played.began)
    wrong += told(judged(played, seen))
    assert not wrong, "\n".join([f"{len(wrong)} things are wrong:", *wrong[:20]])
    print("ok: nothing acknowledged was lost, nothing stands twice, all replicas are equal")


def judged(played: Played, seen: cluster_load.Seen) -> list[Figure]:
    """What is limited, of what clients saw."""
    found = [Figure("sends that failed", len(cluster_load.failed(seen)), unit="", most=0)]
    if played.silence_s_max is not None:
        longest = max((length for _, _, length in cluster_load.silences(seen, 0.0)), default=0.0)
        found.append(Figure("longest silence of a partition", longest, most=played.silence_s_max))
    if played.outage is not None:
        found += etcd_probe.judged(played.outage, seen, played.probes)
    return found


def tell(seen: cluster_load.Seen, began: list[float]) -> None:
    """Silences after each fault, and what clients were told."""
    for what, gaps in (
        ("silence of a partition", cluster_load.silences(seen, SILENCE_S)),
        ("time without a leader", seen.leaderless),
    ):
        for at in began:
            after = [(length, start - at) for _, start, length in gaps if at - 1 < start < at + 20]
            if after:
                length, start = max(after)
                print(f"  longest {what}: {length:.2f} s, from {start:+.2f} s on")
    errors = sorted({error[:80] for error in cluster_load.failed(seen)})
    print(
        f"{len(seen.sent):,} sent, {len(cluster_load.failed(seen))} sends failed {errors[:5]};"
        f" {len(seen.troubles)} errors of consumers {sorted(set(seen.troubles))[:3]}"
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--power-cuts", type=int, default=0)
    parser.add_argument("--etcd-away", type=float, default=0.0)
    parser.add_argument("--graceful", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    least, most = AWAY_S
    if options.etcd_away and not least <= options.etcd_away <= most:
        parser.error(f"--etcd-away: between {least:g} s, leases end, and {most:g} s, sends fail")
    print(f"seed {options.seed}")
    folder = Path(tempfile.mkdtemp(prefix="tailrace-outage-"))
    disks: dict[str, LoopDisk] = {}
    try:
        if options.power_cuts:
            for name in ("n1", "n2", "n3"):
                (folder / f"disk-{name}").mkdir()
                disks[name] = LoopDisk(folder / f"disk-{name}")
            play = power_cuts(options.power_cuts, disks)
        elif options.etcd_away:
            play = etcd_away(options.etcd_away)
        else:
            rounds = options.graceful or options.kills
            play = restart_in_turn(rounds, graceful=bool(options.graceful))
        one_run(folder, play, random.Random(options.seed), disks)
    except (AssertionError, RuntimeError) as error:
        sys.exit(f"FAILED: {error}; kept {folder}")
    finally:
        for disk in disks.values():
            disk.unmount()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
