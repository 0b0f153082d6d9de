"""Which processors the processes of a bench get: each its own, where there are enough of them.

With one or two processors the kernel places everything: pinned, a role that waits would leave its
processor idle, and whoever shares one would be measured instead of the broker. Pure but for
``available`` and ``pin``.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cache

BROKER_CPUS_MAX = 2  # its event loop, and the threads that sync and read
SENDERS, RECEIVERS, BROKER = "senders", "receivers", "broker"


def layout(cpus: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
    """The processors of each role; empty: leave it to the kernel."""
    if len(cpus) <= 2:
        return {}
    first = min(BROKER_CPUS_MAX, len(cpus) - 2)
    rest = cpus[first:]
    half = (len(rest) + 1) // 2
    return {
        BROKER: tuple(cpus[:first]),
        SENDERS: tuple(rest[:half]),
        RECEIVERS: tuple(rest[half:]),
    }


@cache
def available() -> Sequence[int]:
    """The processors that this process might use before it was kept to some of them."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, role: str) -> None:
    """Keep a process (0: this one) to its role's processors; nothing where there are too few.

    Called before it starts threads, as those that run already stay where they are.
    """
    if cpus := layout(available()).get(role):
        os.sched_setaffinity(pid, cpus)


def describe(cpus: Collection[int]) -> str:
    """One sentence for the head of a report."""
    found = layout(sorted(cpus))
    if not found:
        return f"{len(cpus)} CPUs, too few to pin processes to: the kernel places them"
    shares = ", ".join(f"{role} on {','.join(map(str, given))}" for role, given in found.items())
    return f"{len(cpus)} CPUs: {shares}"
