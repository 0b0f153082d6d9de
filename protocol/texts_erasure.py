"""The texts of erasures and their receipts; rules as in ``texts.py``."""

import uuid

from tailrace.protocol import errors
from tailrace.protocol.texts import shown
from tailrace.protocol.units import format_count as count, format_seconds


def erasure_not_found(topic: str, erasure_id: bytes) -> errors.TopicNotFound:
    """T010: no such erasure was asked of the topic, or its receipt is no longer kept."""
    receipt_id = str(uuid.UUID(bytes=erasure_id))
    return errors.TopicNotFound(
        "T010",
        f"topic '{shown(topic)}' has no erasure {receipt_id}",
        "Receipts are kept for 30 days, the newest 1,000 of a topic.",
        name=f"{shown(topic)}/{receipt_id}",
        similar=[],
    )


def erasures_full(topic: str, *, pending: int, waited_s: float) -> errors.RequestTimeout:
    """T034: so many erasures of one topic are pending that no other is taken on."""
    return errors.RequestTimeout(
        "T034",
        f"erase of topic '{shown(topic)}' not taken on in {format_seconds(waited_s)} s: "
        f"{count(pending)} erasures of it are pending; nothing was done",
        "Erase more keys and records with one call, or try again later.",
    )
