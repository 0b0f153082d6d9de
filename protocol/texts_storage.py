"""The text of what is wrong with a broker's directory, its disk or its files (see ``texts``)."""

from tailrace.protocol import errors
from tailrace.protocol.texts import shown
from tailrace.protocol.units import format_count as count


def directory_locked(path: str, *, pid: int, role: str, broker: str) -> errors.BrokerError:
    """T090."""
    return errors.BrokerError(
        "T090",
        f"{shown(path)} is locked by pid {pid} ({role}, broker {shown(broker)})",
        "Stop it, or use another storage.data_dir.",
        **{"path": path, "pid": pid, "role": role, "broker": broker},
    )


def directory_foreign(
    path: str, *, broker: str, cluster: str, configured_broker: str, configured_cluster: str
) -> errors.BrokerError:
    """T091. ``broker`` and ``cluster``: what the directory says."""
    return errors.BrokerError(
        "T091",
        f"{shown(path)} belongs to broker {shown(broker)} of cluster {shown(cluster)}, the "
        f"configuration says {shown(configured_broker)} of {shown(configured_cluster)}",
        "Refusing to start. Fix broker.id or storage.data_dir.",
        path=path,
    )


def directory_format(path: str, *, found: object, newest: int) -> errors.BrokerError:
    """T092: written by a newer release, or no ``meta.json`` of ours at all."""
    return errors.BrokerError(
        "T092",
        f"{shown(path)} has format {shown(str(found))}, this release reads up to {newest}",
        "Refusing to start. Upgrade tailrace, or use another storage.data_dir.",
        path=path,
    )


def sync_failed(path: str, *, reason: str) -> errors.BrokerError:
    """T093: what the kernel still holds is unknown, so the process ends and never retries (R21)."""
    return errors.BrokerError(
        "T093",
        f"sync of {shown(path)} failed: {shown(reason)}; nothing since the last sync was "
        "acknowledged, the directory is marked suspect",
        "Check the disk, then start again: what was not synced is checked and written anew.",
        path=path,
    )


def corruption_found(
    path: str, *, position: int, reason: str, first_offset: int, next_offset: int | None
) -> errors.BrokerError:
    """T094 for recovery and offline tools. ``next_offset``: None where the damage has no end."""
    last = "the end" if next_offset is None else count(next_offset - 1)
    return errors.BrokerError(
        "T094",
        f"{shown(path)} is corrupt at byte {count(position)}: {shown(reason)}; offsets "
        f"{count(first_offset)} to {last} are not served",
        f"Restore the file from a replica or a backup; look: tailrace segment verify {shown(path)}",
        **{"path": path, "position": position, "reason": reason},
        first_offset=first_offset,
        next_offset=next_offset,
    )
