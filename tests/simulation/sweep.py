"""Runs many seeds of a scenario: ``python -m tests.simulation.sweep --seeds 0-299``.

``--scenario streams`` (``scenario.py``) is the default; ``keeping``, ``groups``, ``cluster`` and
``tombstones`` are the others, and ``brief``, which is a smaller ``cluster``.
A failure prints seed, commit, trio's version and the command that replays it, first. ``--planted``
puts a known bug in; then failures are what is hoped for, and how far apart they are is told.
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import trio

from tailrace.simulation.seeding import Outcome
from tests.simulation.cluster import run_brief_seed, run_cluster_seed
from tests.simulation.groups import run_groups
from tests.simulation.keeping import run_keeping
from tests.simulation.planted import BUGS, plant
from tests.simulation.scenario import Report, run_seed
from tests.simulation.tombstones import run_tombstones

PROCESSES = os.cpu_count() or 1
SHOWN = 4_000  # characters of what is wrong
STREAMS, KEEPING, GROUPS = "streams", "keeping", "groups"
CLUSTER, BRIEF, TOMBSTONES = "cluster", "brief", "tombstones"
SCENARIOS: dict[str, Callable[[int], Outcome[Report]]] = {
    STREAMS: run_seed,
    KEEPING: run_keeping,
    GROUPS: run_groups,
    CLUSTER: run_cluster_seed,
    BRIEF: run_brief_seed,
    TOMBSTONES: run_tombstones,
}


@dataclass(frozen=True)
class Result:
    """One seed: its outcome, or how it failed."""

    seed: int
    outcome: Outcome[Report] | None
    failure: str  # empty: passed


def try_seed(seed: int, planted: str | None = None, scenario: str = STREAMS) -> Result:
    """Run one seed; never raises for what the scenario does."""
    logging.disable(logging.CRITICAL)
    try:
        with plant(planted):
            outcome = SCENARIOS[scenario](seed)
    except Exception:
        return Result(seed, None, traceback.format_exc())
    finally:
        logging.disable(logging.NOTSET)
    return Result(seed, outcome, "\n".join(map(str, outcome.value.violations)))


def headline(seed: int, planted: str | None = None, scenario: str = STREAMS) -> str:
    """What a failure prints first."""
    again = f"python -m tests.simulation.sweep --seeds {seed}"
    again += f" --scenario {scenario}" if scenario != STREAMS else ""
    again += f" --planted {planted}" if planted else ""
    return f"seed {seed}, commit {commit()}, trio {trio.__version__}; replay: {again}"


def commit() -> str:
    """The short hash of what is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def first_caught(planted: str, seeds: range, scenario: str = STREAMS) -> Result | None:
    """The first seed that fails with that bug in."""
    for seed in seeds:
        result = try_seed(seed, planted, scenario)
        if result.failure:
            return result
    return None


def sweep(
    seeds: Sequence[int],
    planted: str | None = None,
    processes: int = PROCESSES,
    scenario: str = STREAMS,
) -> Iterator[Result]:
    """All seeds, in whatever order they end."""
    if processes <= 1 or len(seeds) == 1:
        for seed in seeds:
            yield try_seed(seed, planted, scenario)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_try, [(seed, planted, scenario) for seed in seeds])


def _try(arguments: tuple[int, str | None, str]) -> Result:
    return try_seed(*arguments)


def parse_seeds(text: str) -> list[int]:
    """``3`` or ``0-299``."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def distances(seeds: Sequence[int], failed: Collection[int]) -> list[int]:
    """From each seed on, how many are tried until one fails, that one too; of those behind the
    last that does it is not known."""
    found: list[int] = []
    for seed in sorted(seeds, reverse=True):
        if seed in failed:
            found.append(1)
        elif found:
            found.append(found[-1] + 1)
    return found[::-1]


def tell_distances(seeds: Sequence[int], failed: Collection[int]) -> None:
    """How long a planted bug takes to be found."""
    tries = distances(seeds, failed)
    print(f"caught by {', '.join(map(str, sorted(failed))) or 'none'}")
    if tries:
        middle = statistics.median(tries)
        print(f"after {middle:g} seeds in the median of all beginnings, {max(tries)} at most")


def tell_speed(total: Counter[str], seconds: float, processes: int) -> None:
    """How much a core got through. Beside other work it gets less than all of a core."""
    core_s = seconds * processes
    if total["virtual_s"] and core_s:
        ops = total["sent"] + total["read"]
        print(
            f"{total['virtual_s'] / 3600:.2f} virtual hours, {total['virtual_s'] / core_s:.1f}"
            f" times real time, {ops / core_s:,.0f} client ops and {total['steps'] / core_s:,.0f}"
            " task steps per second and process"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.sweep")
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-299"), metavar="A-B")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default=STREAMS)
    parser.add_argument("--planted", choices=sorted(BUGS))
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    options = parser.parse_args()
    began, total, faults = time.perf_counter(), Counter[str](), Counter[str]()
    failed: set[int] = set()
    for result in sweep(options.seeds, options.planted, options.processes, options.scenario):
        if result.outcome is not None:
            report = result.outcome.value
            total.update(sent=report.sent, acked=report.acked, read=report.read)
            total.update(crashes=report.crashes, steps=result.outcome.steps)
            total.update(virtual_s=round(result.outcome.seconds))
            total.update(report.more)
            faults.update(report.faults)
        if result.failure:
            failed.add(result.seed)
            where = headline(result.seed, options.planted, options.scenario)
            print(f"FAILED {where}\n{result.failure[-SHOWN:]}", flush=True)
        elif options.verbose and result.outcome is not None:
            print(f"seed {result.seed} {result.outcome.trace} {result.outcome.value}", flush=True)
    seconds = time.perf_counter() - began
    tell_speed(total, seconds, min(options.processes, len(options.seeds)))
    rate = len(options.seeds) / seconds * 60
    told = f"{len(options.seeds)} seeds, {len(failed)} failed, {seconds:.0f} s"
    print(f"{told}, {rate:.0f} seeds/min")
    if options.planted:
        tell_distances(options.seeds, failed)
    print(", ".join(f"{count:,} {name}" for name, count in total.items()))
    print("faults: " + ", ".join(f"{count:,} {name}" for name, count in sorted(faults.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
