"""What consumer groups promise, on real processes and real time.

    python -m tests.proofs.groups failover    200,000 records; members killed, leaving, joining
    python -m tests.proofs.groups stalled     a handler that sleeps 10 minutes, one that blocks 5 s
    python -m tests.proofs.groups order       run() by key over an access log, members crashing
    python -m tests.proofs.groups lag         lag and loss forecast beside what is known
    python -m tests.proofs.groups churn       500 groups, 2,000 members, 10 minutes
    python -m tests.proofs.groups all

Each case prints its figures and how busy the machine was, and fails (exit code 1) if something is
not as it was asked for; then it keeps its folder, with the logs of all processes.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.proofs import group_churn, group_failover, group_lag, group_order, group_stall

CASES: dict[str, Callable[[Path, int], None]] = {
    "failover": lambda folder, seed: group_failover.prove(folder, group_failover.Plan()),
    "stalled": lambda folder, seed: group_stall.prove(folder, group_stall.Plan()),
    "order": lambda folder, seed: group_order.prove(folder, group_order.Plan(), seed),
    "lag": lambda folder, seed: group_lag.prove(folder, group_lag.Plan()),
    "churn": lambda folder, seed: group_churn.prove(folder, group_churn.Plan(), seed),
}


def processor_s() -> tuple[float, float]:
    """Since the start of the machine: seconds of all its cores, and those that were idle."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(one) for one in fields[:8]]
    hertz = os.sysconf("SC_CLK_TCK")
    return sum(ticks) / hertz, (ticks[3] + ticks[4]) / hertz


def run(name: str, seed: int) -> bool:
    """One case; whether it passed."""
    print(f"== {name}, seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"tailrace-{name}-"))
    (all_before, idle_before), used_before = processor_s(), os.times()
    began = time.monotonic()
    failure: AssertionError | None = None
    try:
        CASES[name](folder, seed)
    except AssertionError as error:
        failure = error
    all_after, idle_after = processor_s()
    used = sum(os.times()[:4]) - sum(used_before[:4])
    spent = all_after - all_before
    print(
        f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores, which were idle for"
        f" {100 * (idle_after - idle_before) / spent:.0f} % of it and worked"
        f" {100 * used / spent:.0f} % for this proof; load {os.getloadavg()[1]:.1f}"
    )
    if failure is not None:
        print(f"FAILED: {failure}; kept {folder}", flush=True)
        return False
    shutil.rmtree(folder)
    print("ok\n", flush=True)
    return True


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.groups")
    parser.add_argument("case", choices=[*CASES, "all"])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    names = list(CASES) if options.case == "all" else [options.case]
    return 0 if all([run(name, options.seed) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
