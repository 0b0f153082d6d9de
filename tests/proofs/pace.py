"""How slow the machine is at this moment, for limits that are seconds of an idle one."""

import statistics
import subprocess
import sys
import time

WORK = "import trio"  # a start of Python and some hundred files: what most of a command's time is
IDLE_S = 0.25  # of that, on an idle core of the machine on which the limits were set
ALLOWANCE_MAX = 3.0
TIMES = 3


def measure() -> float:
    """Seconds of the reference work just now: the median of three."""
    return statistics.median(_once() for _ in range(TIMES))


def allowance(seconds: float) -> float:
    """What a limit is multiplied by where the reference work takes so long: from 1 to 3."""
    return min(max(seconds / IDLE_S, 1.0), ALLOWANCE_MAX)


def describe(slowest: float) -> str:
    """One line: whether limits were lengthened, why, and how far at most. ``slowest``: seconds."""
    took = f"`python -c '{WORK}'` took up to {slowest:.2f} s"
    if allowance(slowest) == 1.0:
        return f"{took}: limits as they are"
    times = slowest / IDLE_S
    least = f", which is the most, {times:.1f} would be needed" if times > ALLOWANCE_MAX else ""
    return (
        f"{took}, and {IDLE_S:g} s on an idle machine: limits are up to"
        f" {allowance(slowest):.1f} times as long{least}"
    )


def _once() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", WORK], check=True, timeout=120)
    return time.monotonic() - began
