"""Other brokers on this machine, each driven by its own best Python client (docs/performance.md).

    python -m tailrace.bench.peers --list
    python -m tailrace.bench.peers --systems redis,nats --paths produce,consume-batches --size 100

Server, producer and consumer of a peer are processes of their own; the server is started anew in a
temporary folder for each durable setting of each round. Figures go to stdout as ``results`` has
them. What was produced is always consumed as well, and its count and last record compared; a figure
that cannot be verified so is not told. A peer that is missing is named on stderr.
"""

import argparse
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tailrace.bench.cpus import RECEIVERS, SENDERS, pin
from tailrace.bench.peer_catalogue import peers
from tailrace.bench.peer_job import Done, Job, Peer, Started, Variant, dump_job, load_done
from tailrace.bench.peer_process import HOME
from tailrace.bench.results import LATENCIES, Measured, emit
from tailrace.bench.touch import touch_disk, touch_memory
from tailrace.bench.workbench import WARM_S, say
from tailrace.bench.workload import percentiles

PRODUCE, EACH = "produce", "produce-each"
CONSUMING = ("consume-batches", "consume-each")
PATHS = (PRODUCE, EACH, *CONSUMING, *LATENCIES)
WRITTEN_BYTES_PER_S = 500_000_000  # by the fastest that writes at all
LATENCY_BYTES = 128 << 20  # where nothing but sends at a fixed rate is asked for
STRETCHES = 2  # the one before and the one that counts
PATIENCE_S = 90.0  # for a client process, beyond the time that it measures
READY_S = 60.0  # for a receiver to subscribe


def written_bytes(seconds: float) -> int:
    """At most, by a stretch of so long and the one before."""
    return int(WRITTEN_BYTES_PER_S * STRETCHES * seconds)


@dataclass(frozen=True)
class Asked:
    """What to measure."""

    paths: tuple[str, ...]
    size_bytes: int
    seconds: float  # of each timed stretch
    rates_per_s: tuple[int, ...]  # of sends, for latency
    warm_s: float  # of such sends before those that are timed
    folder: Path | None  # where to work

    @property
    def throughput(self) -> bool:
        """Whether more is asked for than sends at a fixed rate."""
        return bool({PRODUCE, EACH, *CONSUMING} & set(self.paths))

    @property
    def touched_bytes(self) -> int:
        """Of disk and memory, before anything is sent."""
        if not self.throughput:
            return LATENCY_BYTES
        return written_bytes(self.seconds)


@dataclass(frozen=True)
class Run:
    """A peer that runs with one durable setting."""

    peer: Peer
    variant: Variant
    started: Started
    round: int
    asked: Asked

    def job(self, action: str, stream: str) -> Job:
        at, options = self.started.address, self.started.options
        return Job(self.peer.system, action, at, stream, self.asked.size_bytes, options=options)

    def tell(self, path: str, durable: bool | None, value: float, unit: str, note: str) -> None:
        system, size = self.peer.system, self.asked.size_bytes
        emit(Measured(system, path, size, durable, value, unit, self.round, note))


def warm_up(run: Run) -> None:
    """Records in and out again, untimed, and on the disk before what is timed begins."""
    stream = new_stream("warm")
    sent = act(run, replace(run.job(PRODUCE, stream), seconds=run.peer.warm_s))
    for path in readings(run.peer)[:1]:
        act(run, replace(run.job(path, stream), count=sent.count), RECEIVERS)
    os.sync()


def measure(run: Run) -> None:
    """All that is asked for, as far as this setting is the one for it.

    Throughput of consumers is that of what the fastest setting produced, latency that of the most
    durable one.
    """
    consuming = consume_paths(run)
    if PRODUCE in run.asked.paths or consuming:
        produced(run, PRODUCE, consuming)
    if EACH in run.asked.paths and EACH in run.peer.actions:
        produced(run, EACH, ())
    timed = set(LATENCIES) & set(run.asked.paths) and "send" in run.peer.actions
    if timed and run.variant is run.peer.variants[-1]:
        for rate_per_s in run.asked.rates_per_s:
            latencies(run, rate_per_s)


def consume_paths(run: Run) -> tuple[str, ...]:
    """Those to be told of this run."""
    if run.variant is not run.peer.variants[0]:
        return ()
    return tuple(path for path in readings(run.peer) if path in run.asked.paths)


def readings(peer: Peer) -> list[str]:
    """Ways to consume that its client has; a mock has none."""
    return [path for path in CONSUMING if path in peer.actions]


def produced(run: Run, action: str, consuming: Sequence[str]) -> None:
    """Produce, consume by these ways and by one at least, and tell what was asked for."""
    stream = new_stream(action)
    touch_memory(run.asked.folder, run.asked.touched_bytes)
    sent = act(run, replace(run.job(action, stream), seconds=run.asked.seconds))
    for path in consuming or readings(run.peer)[:1]:
        read = act(run, replace(run.job(path, stream), count=sent.count), RECEIVERS)
        if path in consuming:
            run.tell(path, None, read.count / read.seconds, "records/s", "")
    if action in run.asked.paths:
        rate = sent.count / sent.seconds
        run.tell(action, run.variant.durable, rate, "records/s", run.variant.name)


def latencies(run: Run, rate_per_s: int) -> None:
    """A sender and a receiver at once; each latency counts from when it should have been sent."""
    stream = new_stream("latency")
    warm = int(rate_per_s * run.asked.warm_s)
    count = warm + int(rate_per_s * run.asked.seconds)
    job = replace(run.job("receive", stream), count=count, rate_per_s=rate_per_s, warm=warm)
    receiver = client(run, job, RECEIVERS)
    try:
        assert receiver.stdout is not None
        readable, _, _ = select.select([receiver.stdout], [], [], READY_S)
        if not readable or receiver.stdout.readline() != "ready\n":
            raise RuntimeError("the receiver did not become ready")
        sent = act(run, replace(job, action="send"))
        received = answer(run, receiver)
    finally:
        receiver.kill()
        receiver.wait()
    if (sent.count, received.count) != (count, count):
        raise RuntimeError(f"{sent.count} acknowledged, {received.count} received of {count}")
    for prefix, done in (("ack", sent), ("deliver", received)):
        found = percentiles(done.latencies_ms)
        for percentile in ("p50", "p99"):
            path = f"{prefix}-latency-{percentile}"
            if path in run.asked.paths:
                run.tell(path, run.variant.durable, found[percentile], "ms", f"{rate_per_s}/s")


def new_stream(what: str) -> str:
    """A name that a broker which was given has not seen yet."""
    return f"tailrace-bench-{secrets.token_hex(4)}-{what}"


def act(run: Run, job: Job, role: str = SENDERS) -> Done:
    """Do a job in a process of its own; RuntimeError if it fails."""
    process = client(run, job, role)
    try:
        return answer(run, process)
    finally:
        process.kill()
        process.wait()


def client(run: Run, job: Job, role: str) -> subprocess.Popen[str]:
    command = [python_of(run.peer), "-m", "tailrace.bench.peer_client", dump_job(job)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pin(process.pid, role)
    return process


def answer(run: Run, process: subprocess.Popen[str]) -> Done:
    output, _ = process.communicate(timeout=PATIENCE_S + 3 * run.asked.seconds)
    if process.returncode:
        raise RuntimeError("a client failed, see above")
    return load_done(output)


def python_of(peer: Peer) -> str:
    """That of the peer's client; without an environment of the peers' own, this one."""
    own = peer.python or HOME / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def present(peer: Peer) -> str:
    """Versions of its server and its client; FileNotFoundError says what to install."""
    server = peer.server()
    names = ", ".join(map(repr, peer.packages))
    code = f"from importlib.metadata import version as v; print(*map(v, [{names}]))"
    asked = subprocess.run([python_of(peer), "-c", code], capture_output=True, text=True)
    if asked.returncode:
        raise FileNotFoundError(f"no {' or '.join(peer.packages)}: `make bench-peers`")
    versions = zip(peer.packages, asked.stdout.split(), strict=True)
    return "; ".join([server, *(f"{name} {version}" for name, version in versions)])


def run_round(peer: Peer, number: int, asked: Asked) -> None:
    """Each durable setting on a server of its own."""
    for variant in peer.variants if asked.throughput else peer.variants[-1:]:
        with tempfile.TemporaryDirectory(prefix="tailrace-peer-", dir=asked.folder) as name:
            folder = Path(name)
            touch_disk(folder, asked.touched_bytes + written_bytes(peer.warm_s))
            with peer.start(folder, variant) as started:
                run = Run(peer, variant, started, number, asked)
                if peer.warm_s:
                    warm_up(run)
                measure(run)


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type of argument: some of these, with commas."""

    def parse(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {known}")
        return text.split(",")

    return parse


def main() -> int:
    """0; 1 if a peer that is here failed."""
    systems = list(peers())
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--list", action="store_true", help="which peers are here, and nothing else")
    made.add_argument("--systems", type=names(systems), default=systems)
    made.add_argument("--paths", type=names(PATHS), default=list(PATHS))
    made.add_argument("--size", type=int, default=100, help="bytes of a value")
    made.add_argument("--seconds", type=float, default=5.0, help="of each timed stretch")
    made.add_argument("--rates", default="500,1000", help="sends per second, for latency")
    made.add_argument("--warm", type=float, default=WARM_S, help="seconds of sends before, untimed")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--round", type=int, default=0, help="number of the first one")
    made.add_argument("--folder", type=Path, help="where to work: on the disk to be measured")
    made.add_argument("--kafka", metavar="HOST:PORT", help="a broker that runs; its topics stay")
    given = made.parse_args()
    signal.signal(signal.SIGTERM, leave)
    here: list[Peer] = []
    for name, peer in peers(given.kafka).items():
        if name in given.systems:
            try:
                versions = present(peer)
            except FileNotFoundError as missing:
                print(f"{name}: left out: {missing}", file=sys.stdout if given.list else sys.stderr)
                continue
            print(f"{name}: {versions}", file=sys.stdout if given.list else sys.stderr)
            here.append(peer)
    rates = tuple(map(int, given.rates.split(",")))
    asked = Asked(tuple(given.paths), given.size, given.seconds, rates, given.warm, given.folder)
    numbers = range(given.round, given.round + given.rounds)
    return 0 if given.list else run_all(here, numbers, asked)


def leave(number: int, _: object) -> None:
    """Servers are ended on the way out."""
    sys.exit(128 + number)


def run_all(here: Sequence[Peer], numbers: Sequence[int], asked: Asked) -> int:
    """One peer after another in each round; one that fails is told of and does not stop others."""
    for peer in here:
        for path in asked.paths:
            if path not in LATENCIES and path not in peer.actions:
                say(f"{peer.system}: no {path}: its client has no such call")
    failed = 0
    for number in numbers:
        for peer in here:
            try:
                run_round(peer, number, asked)
            except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
                say(f"{peer.system}: failed: {error}")
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
