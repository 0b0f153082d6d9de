"""Where records go that cannot be worked on: another topic, durably, before anything moves on."""

from typing import TYPE_CHECKING, Any

from tailrace.client.records import Record
from tailrace.protocol.texts import error_summary

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.client.producer import Producer


class DeadLetters:
    """The producer of one consumer's dead letters, made when the first one is sent."""

    def __init__(self, client: "Client", group: str | None = None) -> None:
        self._client = client
        self._group = group
        self._producer: Producer[bytes, bytes] | None = None

    async def send(
        self, topic: str, record: Record[Any, Any], error: BaseException, attempts: int
    ) -> None:
        """Write the record to ``topic`` with where it came from and why; returns when durable.

        Raises what ``Producer.send`` raises. Cancelled: it may have been written, and comes again.
        """
        if self._producer is None:
            self._producer = self._client.producer()
        about: dict[str, str | None] = {
            "topic": record.topic,
            "partition": str(record.partition),
            "offset": str(record.offset),
            "group": self._group,
            "error": error_summary(error),
            "attempts": str(attempts),
        }
        headers = [
            (f"tailrace-dlq-{name}", None if text is None else text.encode(errors="replace"))
            for name, text in about.items()
        ]
        await self._producer.send(
            topic,
            record.raw_value,
            key=record.raw_key,
            timestamp=record.timestamp,
            headers=[*record.headers, *headers],
        )

    async def aclose(self) -> None:
        """Close the producer, if there is one."""
        if self._producer is not None:
            await self._producer.aclose()
