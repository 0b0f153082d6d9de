"""What the SDK counts in the user's process, if that has imported prometheus_client.

The metrics are made in the library's default registry at the first thing to be counted after the
import; what came before is not counted. Nobody who does not use the library pays for it: this
module does not import it, and without it each call is one look into ``sys.modules``.

Invariants: nothing here raises, waits or fails a send: a name that is taken in the registry is told
once, at WARNING, and that metric is not counted. ``FAMILIES`` is what docs/metrics.md lists.
"""

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tailrace.client.room import Room
from tailrace.protocol import texts

_log = logging.getLogger("tailrace.client")
BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
Skipped = Literal["undecodable", "given_up", "out_of_range"]


@dataclass(frozen=True, slots=True)
class ClientFamily:
    """One metric of the SDK; ``name`` as it is exposed."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    doc: str
    alert: str = ""
    values: tuple[str, ...] = ()  # of its label, where all are known: they stand at 0


SEND_DURATION = ClientFamily(
    "tailrace_client_send_duration_seconds",
    "histogram",
    (),
    "From accepting the first record of a batch until the batch is acknowledged, or given up.",
)
BUFFER_BYTES = ClientFamily(
    "tailrace_client_buffer_bytes",
    "gauge",
    (),
    "Records accepted by all producers of the process that have no outcome yet.",
)
RETRIES = ClientFamily(
    "tailrace_client_retries_total",
    "counter",
    ("reason",),
    "Attempts made again by the SDK itself, by the code of the error before; reconnect: a "
    "connection.",
)
BLOCKED_LOOP = ClientFamily(
    "tailrace_client_blocked_loop_seconds_total",
    "counter",
    (),
    "How long handlers kept the event loop from running; T050 in the log names the line.",
    "rate(tailrace_client_blocked_loop_seconds_total[5m]) > 0.1",
)
SKIPPED = ClientFamily(
    "tailrace_client_skipped_records_total",
    "counter",
    ("reason",),
    "Records a consumer left out: undecodable (on_decode_error), given_up (a handler's error "
    "policy), out_of_range (on_out_of_range).",
    "increase(tailrace_client_skipped_records_total[1h]) > 0",
    values=get_args(Skipped),
)
FAMILIES = (SEND_DURATION, BUFFER_BYTES, RETRIES, BLOCKED_LOOP, SKIPPED)


class Instruments:
    """The metrics of the process, each made when it is first needed. Any thread may count."""

    def __init__(self, modules: Mapping[str, Any] = sys.modules) -> None:
        self._modules = modules
        self._made: dict[str, Any] = {}
        self._taken: dict[str, ValueError] = {}  # names of somebody else's in the registry
        self._told: set[str] = set()
        self._making = threading.Lock()
        self._rooms: dict[int, weakref.ref[Room]] = {}

    # ── what is counted ──────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Somebody sends or reads: what is not counted yet stands at 0, so that an alert on its
        increase sees the first time, too."""
        if "prometheus_client" in self._modules:
            for family in FAMILIES:
                self._count(family, lambda metric: None)

    def sent(self, seconds: float) -> None:
        """A batch has its outcome."""
        if "prometheus_client" in self._modules:
            self._count(SEND_DURATION, lambda metric: metric.observe(seconds))
            if BUFFER_BYTES.name not in self._made:  # the import came after the producer
                self.begin()

    def retried(self, reason: str) -> None:
        """Something is tried again: after the error of this code, or ``reconnect``."""
        if "prometheus_client" in self._modules:
            self._count(RETRIES, lambda metric: metric.labels(reason).inc())

    def skipped(self, reason: Skipped, records: int) -> None:
        """So many records were passed over."""
        if records > 0 and "prometheus_client" in self._modules:
            self._count(SKIPPED, lambda metric: metric.labels(reason).inc(records))

    def blocked(self, seconds: float) -> Exception | None:
        """The event loop did not run for so long. What counting failed with is returned, and not
        logged here: what blocks the loop may hold the lock of a log handler."""
        if "prometheus_client" not in self._modules:
            return None
        return self._try(BLOCKED_LOOP, lambda metric: metric.inc(seconds))

    def buffers(self, room: Room) -> None:
        """A producer's bytes count from now on, for as long as it lives."""
        key = id(room)
        rooms = self._rooms
        rooms[key] = weakref.ref(room, lambda _: rooms.pop(key, None))
        self.begin()

    def buffered_bytes(self) -> int:
        """Of all producers; called by whoever scrapes, in a thread of its own."""
        found = [one() for one in list(self._rooms.values())]
        return sum(room.used for room in found if room is not None)

    # ── the library's ────────────────────────────────────────────────────────────────────────

    def _count(self, family: ClientFamily, count: Callable[[Any], object]) -> None:
        failure = self._try(family, count)
        if failure is not None and family.name not in self._told:
            self._told.add(family.name)
            extra = {"event": "client.not_counted", "code": None}
            _log.warning(
                "%s is not counted: %s", family.name, texts.error_summary(failure), extra=extra
            )

    def _try(self, family: ClientFamily, count: Callable[[Any], object]) -> Exception | None:
        try:
            metric = self._made.get(family.name)
            if metric is None:
                if family.name in self._taken:
                    return self._taken[family.name]
                metric = self._make(family)
            if metric is not None:
                count(metric)
        except Exception as error:  # the border to the user's library: a metric fails no send
            return error
        return None

    def _make(self, family: ClientFamily) -> Any:
        """None: another thread is at it."""
        if not self._making.acquire(blocking=False):
            return None
        try:
            library, name = self._modules["prometheus_client"], family.name
            if name not in self._made:
                if family.kind == "counter":
                    made = library.Counter(name.removesuffix("_total"), family.doc, family.labels)
                    for value in family.values:
                        made.labels(value)
                elif family.kind == "histogram":
                    made = library.Histogram(name, family.doc, family.labels, buckets=BOUNDS)
                else:
                    made = library.Gauge(name, family.doc, family.labels)
                    made.set_function(self.buffered_bytes)
                self._made[name] = made
            return self._made[name]
        except ValueError as error:
            self._taken[family.name] = error.with_traceback(None)
            raise
        finally:
            self._making.release()


instruments = Instruments()  # one for the process, as the registry is
