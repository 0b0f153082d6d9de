"""How the broker is: what its probes answer.

The server writes the fields as it goes; nothing here waits or asks anybody. A broker is ready when
it can take requests; on a disk below its reserve, with records that are damaged, or without the
cluster's metadata store while its lease lasts, it still serves what it can: degraded, but ready.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tailrace.protocol.units import counted, format_count
from tailrace.storage.report import Progress

OPENING_BYTES = 256 * 1024  # opening a partition takes about as long as reading that much
DAMAGE_SHOWN = 3  # damaged ranges that are named
Status = Literal["ok", "degraded", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``/readyz``."""

    name: str
    ok: bool
    detail: str


@dataclass(slots=True)
class Health:
    """The state behind ``/readyz`` and ``/startupz``."""

    partitions_total: int = 0  # to be opened at start
    partitions_done: int = 0
    recovering: list[Progress] = field(default_factory=list[Progress])  # a log each
    recovered: bool = False
    metadata: str = "embedded"  # the kind of the metadata store
    metadata_error: str = ""  # why the metadata store cannot be used, or ""
    lease_held: Callable[[], bool] = lambda: True  # while it is, leaders go on without the store
    listening: tuple[str, ...] = ()  # addresses that accept clients
    disk_low: str = ""  # why writes are refused, or ""
    damage: Callable[[], Sequence[str]] = tuple  # ranges that cannot be served, a text each
    draining: bool = False

    def checks(self) -> list[Check]:
        """Every check, always in the same order."""
        opened = f"{self.partitions_done:,} of {counted(self.partitions_total, 'partition')} opened"
        if self.recovered:  # others were made since then, and some are gone
            opened = f"{counted(self.partitions_total, 'partition')} opened at the start"
        disk = "; ".join(filter(None, (self.disk_low, self._damage())))
        lease = "" if self.lease_held() else "the lease has ended: no writes are taken"
        metadata = "; ".join(filter(None, (self.metadata_error, lease)))
        return [
            Check("recovered", self.recovered, opened),
            Check("metadata", not metadata, metadata or f"{self.metadata} store open"),
            Check("listeners", bool(self.listening), ", ".join(self.listening) or "none is bound"),
            Check("disk", not disk, disk or "above min_free"),
            Check("shutdown", not self.draining, "stopping" if self.draining else "not asked for"),
        ]

    def _damage(self) -> str:
        return "; ".join(few(self.damage(), DAMAGE_SHOWN))

    @property
    def status(self) -> Status:
        """``degraded`` is ready all the same."""
        bad = {check.name for check in self.checks() if not check.ok}
        bearable = {"disk"}
        if self.metadata != "embedded" and self.lease_held():
            bearable.add("metadata")
        if bad - bearable:
            return "fail"
        return "degraded" if bad else "ok"

    def readiness(self) -> tuple[int, dict[str, object]]:
        """Status code and document of ``/readyz``."""
        checks = [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in self.checks()]
        status = self.status
        return (503 if status == "fail" else 200), {"status": status, "checks": checks}

    def startup(self) -> tuple[int, dict[str, object]]:
        """Status code and document of ``/startupz``."""
        bytes_done, bytes_total = self.recovery_bytes
        counts: dict[str, object] = {
            "partitions_done": self.partitions_done,
            "partitions_total": self.partitions_total,
            "bytes_done": bytes_done,
            "bytes_total": bytes_total,
        }
        if self.recovered:
            return 200, {"status": "started", "progress": 1.0, **counts}
        return 503, {"status": "recovering", "progress": self.progress, **counts}

    @property
    def recovery_bytes(self) -> tuple[int, int]:
        """What recovery has read, and an estimate of what it has to read."""
        return (
            sum(one.done_bytes for one in self.recovering),
            sum(one.planned_bytes for one in self.recovering),
        )

    @property
    def progress(self) -> float:
        """Share of the work that is done, 0 to 1: bytes read and partitions opened."""
        if self.recovered:
            return 1.0
        done, total = self.recovery_bytes
        done += self.partitions_done * OPENING_BYTES
        total += self.partitions_total * OPENING_BYTES
        return round(done / max(1, total), 4)


def few(texts: Sequence[str], most: int) -> list[str]:
    """The first of them, and how many more there are: an answer stays short."""
    shown = list(texts[:most])
    return [*shown, f"and {format_count(len(texts) - most)} more"] if len(texts) > most else shown
