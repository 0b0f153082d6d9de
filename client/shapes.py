"""What ``health()`` returns and hooks are told: frozen dataclasses.

Durations end in ``_ms`` or ``_seconds``, sizes in ``_bytes``; times are ms since the epoch, UTC.
Within a major version they only gain fields.
"""

from dataclasses import dataclass
from typing import Literal

from tailrace.protocol.shapes import TopicPartition


@dataclass(frozen=True)
class ClientHealth:
    """``client.health()``. ``healthy`` is ``state == "ok"``; ``reason`` says why it is not."""

    state: Literal["connecting", "ok", "reconnecting", "closed"]
    healthy: bool
    reason: str | None
    address: str | None


@dataclass(frozen=True)
class ProducerHealth:
    """``producer.health()``."""

    state: Literal["ok", "reconnecting", "stalled", "closed"]
    healthy: bool
    reason: str | None
    buffered_records: int
    buffered_bytes: int
    in_flight: int  # requests
    oldest_pending_ms: int | None
    last_ack: int | None


@dataclass(frozen=True)
class ConsumerHealth:
    """``consumer.health()``. ``stalled``: a record in the way cannot be delivered."""

    state: Literal["starting", "ok", "rebalancing", "reconnecting", "stalled", "closed"]
    healthy: bool
    reason: str | None
    assigned: list[TopicPartition]
    lag_records: int | None  # None until the first answer to a fetch
    last_record: int | None  # when records were last handed out
    last_commit: int | None


@dataclass(frozen=True)
class Event:
    """What a hook of ``client.on`` is told."""

    name: str
    at: int
    reason: str
    details: dict[str, object]
