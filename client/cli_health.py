"""Whether a cluster, or the broker of this machine, is healthy: once, awaited, or watched.

A look ends in a ``Health``, also where nobody answers: then it is not healthy, and the error says
why. What one broker says of itself only (``--local``) leaves null what takes a look at all of them.
"""

import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

from tailrace.client.cli_ready import Readiness, ask_ready, local_http
from tailrace.client.cli_run import show, with_client
from tailrace.protocol.console import EXIT_UNHEALTHY, EXIT_UNREACHABLE, Console, exit_code
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import format_count, format_duration

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import ClusterInfo

EVERY_S = 1.0  # between two looks that are watched
WAIT_EVERY_S = 0.2  # and between two that are awaited
LOOK_S_MIN = 0.05  # what the last look of a wait has at least
CLEAR = "\x1b[H\x1b[2J"  # a terminal that is watched


@dataclass(frozen=True, slots=True)
class Health:
    """What one look found."""

    document: dict[str, object]
    line: str
    error: TailraceError | None = None  # nobody answered

    @property
    def code(self) -> int:
        """The exit code: 0, 6, or 3."""
        if self.error is not None:
            return EXIT_UNREACHABLE
        return 0 if self.document["healthy"] else EXIT_UNHEALTHY


def look(console: Console, local: bool) -> Health:
    """Ask once. Raises what no further look would change: an address, a certificate, a version."""
    try:
        if local:
            return of_broker(ask_ready(*local_http(), console.timeout_seconds))

        async def work(client: "Client") -> "ClusterInfo":
            return await client.admin.describe_cluster()

        return of_cluster(with_client(console, work), now_ms=time.time() * 1000)
    except TailraceError as error:
        if exit_code(error) != EXIT_UNREACHABLE:
            raise
        return unreachable(error)


def follow(console: Console, local: bool, *, wait_s: float | None, watch: bool) -> int:
    """Look until it is healthy, or ``wait_s`` is over, or for ever; the exit code.

    ``watch`` shows every look, else the last one is shown.
    """
    ends = None if wait_s is None else time.monotonic() + wait_s
    interrupts: list[int] = []
    with noting_ctrl_c(interrupts):
        return _follow(console, local, ends, watch, interrupts)


@contextmanager
def noting_ctrl_c(interrupts: list[int]) -> Generator[None]:
    """Each Ctrl-C is kept besides being raised: a look that ends just then may swallow it."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(
    console: Console, local: bool, ends: float | None, watch: bool, interrupts: Sequence[int]
) -> int:
    while True:
        allowed_s = console.timeout_seconds
        if ends is not None:
            allowed_s = min(allowed_s, max(LOOK_S_MIN, ends - time.monotonic()))
        found = look(replace(console, timeout_seconds=allowed_s), local)
        if interrupts:
            raise KeyboardInterrupt
        over = ends is not None and (found.code == 0 or time.monotonic() >= ends)
        if watch:
            show_watched(console, found)
        elif over:
            tell(console, found)
        if over:
            return found.code
        time.sleep(EVERY_S if watch and ends is None else WAIT_EVERY_S)


def tell(console: Console, found: Health) -> None:
    """The result of a look; where nobody answered, that is an error."""
    if found.error is not None:
        raise found.error
    if not console.quiet:
        show(console, found.document, found.line)


def show_watched(console: Console, found: Health) -> None:
    """One of many, on the terminal in the place of the one before."""
    clear = CLEAR if console.output == "table" and sys.stdout.isatty() else ""
    if not console.quiet:
        show(console, found.document, clear + found.line)
        sys.stdout.flush()


def of_cluster(cluster: "ClusterInfo", *, now_ms: float) -> Health:
    """As its brokers know it."""
    from tailrace.protocol.shaping import cluster_health  # loaded with the client, not before

    found = cluster_health(cluster)
    down = [one for one in cluster.brokers if one.state == "offline"]
    seen = ", ".join(
        f"{one.id} last seen {format_duration(max(0, round((now_ms - one.last_seen) / 1000)))} ago"
        for one in down
    )
    brokers = f"brokers {found.brokers_up}/{found.brokers_total}" + (f" ({seen})" if seen else "")
    counts = {
        "under_replicated": found.under_replicated,
        "below_min_isr": found.below_min_isr,
        "offline": found.offline,
    }
    numbers = [f"{name} {format_count(number)}" for name, number in counts.items()]
    line = _line(found.healthy, brokers, numbers, found.metadata_ok, found.problems)
    return Health(vars(found), line)


def of_broker(found: Readiness) -> Health:
    """As the broker of this machine knows itself."""
    metadata_ok = found.checks.get("metadata", False)
    document: dict[str, object] = {
        **{"healthy": found.ready, "problems": found.problems},
        **{"brokers_up": int(found.ready), "brokers_total": 1},
        **dict.fromkeys(("under_replicated", "below_min_isr", "offline")),
        "metadata_ok": metadata_ok,
    }
    brokers = f"brokers {int(found.ready)}/1"
    return Health(document, _line(found.ready, brokers, [], metadata_ok, found.problems))


def unreachable(error: TailraceError) -> Health:
    """Nobody answered: nothing is known but that."""
    unknown = ("brokers_total", "under_replicated", "below_min_isr", "offline")
    document: dict[str, object] = {
        **{"healthy": False, "problems": [str(error)], "brokers_up": 0},
        **dict.fromkeys(unknown),
        "metadata_ok": False,
    }
    return Health(document, f"UNREACHABLE  {error}", error)


def _line(
    healthy: bool, brokers: str, numbers: list[str], metadata_ok: bool, problems: list[str]
) -> str:
    head = "HEALTHY" if healthy else "UNHEALTHY"
    metadata = "metadata ok" if metadata_ok else "metadata not ok"
    return "  ".join((head, brokers, *numbers, metadata, *problems))
