"""``make bench``: every target of docs/performance.md, measured beside its limit or its peers.

    python -m tailrace.bench.full [--out DIR] [--rounds 1] [--only streams,latency] [--more]

Runs workloads and peers as processes, one after another, rounds A B A B: what is compared stands
in the same round. What a target asks for is measured in each round, all else once in a run. Leaves
``figures.jsonl`` (every figure as it was measured), ``report.md`` and ``report.json`` (targets and
verdicts) and plots (SVG) in ``--out``, also where it is broken off. ``--only`` is some of the steps
(``--list`` names them); ``--more`` adds to the figures that are there, so that a run may be cut
into pieces. A step that fails is told of, and does not stop the others; the exit code is then 1.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailrace.bench import report
from tailrace.bench.cpus import available, describe
from tailrace.bench.results import LATENCIES, Measured, read
from tailrace.bench.touch import touch_memory
from tailrace.bench.workbench import end_on_sigterm, say
from tailrace.protocol.version import VERSION

OUT = Path("bench-results")
STEP_SECONDS_MAX = 900.0
MEMORY_BYTES = 2 << 30  # at hand for a step: most of what it touches itself is there then


@dataclass(frozen=True)
class Step:
    """A process that tells figures."""

    name: str  # for --only; several steps may share one
    module: str
    arguments: str = ""
    seconds: float = 0.0  # of a timed stretch; 0: as the workload has it
    once: bool = False  # no target asks for it: the first round of a run is enough
    peer: bool = False


SOME = "--paths produce,consume-batches"
MOST = "--paths produce,produce-each,consume-batches,consume-each"
LARGE = "--paths produce,consume-batches,consume-each"  # produced one by one it is the same call
STEPS = (
    Step("limits", "limits"),
    Step("streams", "streams", "--size 100", 2.0),
    Step("streams", "peers", f"{MOST} --size 100", 2.0, peer=True),
    Step("streams", "streams", f"{SOME} --size 1024", 1.0),
    Step("streams", "peers", f"{LARGE} --size 1024", 1.0, peer=True),
    Step("latency", "latency", "", 4.0),
    Step("latency", "peers", f"--paths {','.join(LATENCIES)}", 4.0, peer=True),
    Step("raw", "raw", "", 1.0),
    Step("connections", "connections", "--connections 100", 2.0),
    Step("connections", "connections", "--connections 1,10,1000", 2.0, once=True),
    Step("cold", "cold"),
    Step("maintenance", "maintenance"),
    Step("footprint", "footprint"),
    Step("groups", "many_groups", once=True),
    Step("growth", "growth", "--log {log}"),
    Step("replicas", "clustered"),
    *(
        Step("variants", "streams", f"{SOME} {varied}", 1.0, once=True)
        for varied in (
            "--keys",
            "--durability os",
            "--compression none",
            "--partitions 10",
            "--partitions 100",
            "--size 10240",
        )
    ),
)


def main() -> int:
    """0; 1 if a step failed."""
    given = options()
    if given.list:
        print("\n".join(dict.fromkeys(step.name for step in STEPS)))
        return 0
    end_on_sigterm()
    steps = [step for step in STEPS if chosen(step, given)]
    before, first = existing(given)
    figures, failed, began = list(before), list[str](), time.monotonic()
    measured = what(peers=not given.no_peers, kafka=given.kafka)
    try:
        for number in range(first, first + given.rounds):
            for step in round_of(steps, number, first):
                at = time.monotonic()
                touch_memory(given.folder, MEMORY_BYTES)
                figures += run(step, number, given, failed)
                took_s = time.monotonic() - at
                say(f"round {number + 1}: {step.module} {step.arguments}: {took_s:.0f} s")
    finally:
        report.write(given.out, figures, [*measured, *about(time.monotonic() - began, failed)])
    print(report.targets(figures))
    say(f"{given.out / report.REPORT}, and plots beside it")
    return 1 if failed else 0


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=OUT, help="where figures and report go")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--only", type=lambda text: text.split(","), help="some of the steps")
    made.add_argument("--list", action="store_true", help="name the steps, and nothing else")
    made.add_argument("--more", action="store_true", help="keep the figures that are in --out")
    made.add_argument("--no-peers", action="store_true", help="tailrace alone")
    made.add_argument("--log", default="2GiB", help="how large a log grows for P14")
    made.add_argument("--kafka", metavar="HOST:PORT", help="a broker that runs; its topics stay")
    made.add_argument("--folder", type=Path, help="where to work: on the disk to be measured")
    given = made.parse_args(arguments)
    unknown = set(given.only or ()) - {step.name for step in STEPS}
    if unknown:
        made.error(f"no such step: {', '.join(sorted(unknown))}")
    return given


def chosen(step: Step, given: argparse.Namespace) -> bool:
    return not (step.peer and given.no_peers) and (not given.only or step.name in given.only)


def round_of(steps: Sequence[Step], number: int, first: int) -> list[Step]:
    """What is measured in a round of a run that began with ``first``."""
    return [step for step in steps if number == first or not step.once]


def existing(given: argparse.Namespace) -> tuple[Sequence[Measured], int]:
    """Figures of earlier pieces, and the number of the next round."""
    path = given.out / report.FIGURES
    if not given.more or not path.exists():
        return [], 0
    found = list(read(path.read_text().splitlines()))
    return found, max((one.round for one in found), default=-1) + 1


def command_of(step: Step, number: int, given: argparse.Namespace) -> list[str]:
    """How a step is run in a round."""
    command = [sys.executable, "-m", f"tailrace.bench.{step.module}", "--round", str(number)]
    command += step.arguments.format(log=given.log).split()
    if step.seconds:
        command += ["--seconds", str(step.seconds)]
    if given.folder:
        command += ["--folder", str(given.folder)]
    if given.kafka and step.peer:
        command += ["--kafka", given.kafka]
    return command


def run(
    step: Step, number: int, given: argparse.Namespace, failed: list[str]
) -> Iterator[Measured]:
    """The figures of a step; what it says to people goes on to stderr."""
    with subprocess.Popen(
        command_of(step, number, given), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=STEP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode:
        say(f"{step.module} failed, exit code {process.returncode}")
        failed.append(f"{step.module} {step.arguments}".strip())
    yield from read(output.splitlines())


def commit() -> str:
    """What was measured, where this is a checkout."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # no tag instead
    here = Path(__file__).parent
    try:
        found = subprocess.check_output(asked, cwd=here, text=True, stderr=subprocess.DEVNULL)
        return found.strip()
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"


def what(*, peers: bool, kafka: str | None = None) -> list[str]:
    """What is measured, and on which machine."""
    python = f"Python {platform.python_version()}, {platform.platform()}"
    said = [f"tailrace {VERSION} ({commit()}), {python}", describe(available())]
    if peers:
        asked = [sys.executable, "-m", "tailrace.bench.peers", "--list"]
        asked += ["--kafka", kafka] if kafka else []
        listed = subprocess.run(asked, stdout=subprocess.PIPE, text=True)
        said += listed.stdout.splitlines()
    return said


def about(seconds: float, failed: Sequence[str]) -> list[str]:
    """How the run went."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    said = [f"{seconds:.0f} s; load averages at the end {load}"]
    return [*said, *(f"failed: {name}" for name in failed)]


if __name__ == "__main__":
    sys.exit(main())
