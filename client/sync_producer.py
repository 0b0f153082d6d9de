"""The producer of the synchronous client (``sync.py``)."""

import inspect
from collections.abc import Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Generic, Self

from tailrace.client import delivery, producer as async_producer
from tailrace.client.portal import Portal, close_after
from tailrace.client.records import Headers, K, RecordMetadata, V
from tailrace.client.shapes import ProducerHealth
from tailrace.protocol import texts_client


class Producer(Generic[K, V]):
    """Use as ``with client.producer() as producer``; see ``tailrace.Producer``."""

    def __init__(self, portal: Portal, inner: async_producer.Producer[K, V]) -> None:
        self._portal = portal
        self._inner = inner
        portal.producers[inner] = _caller()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        close_after(self.close, exc)

    def send(
        self,
        topic: str,
        value: V | None,
        *,
        key: K | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> RecordMetadata:
        """Write one record and wait until it is durable; see ``tailrace.Producer.send``."""
        return self._portal.call(
            self._inner.send,
            topic,
            value,
            key=key,
            partition=partition,
            timestamp=timestamp,
            headers=headers,
        )

    def enqueue(
        self,
        topic: str,
        value: V | None,
        *,
        key: K | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> "Delivery":
        """Accept one record, waiting only for room."""

        async def enqueue() -> delivery.Delivery:
            return await self._inner.enqueue(
                topic, value, key=key, partition=partition, timestamp=timestamp, headers=headers
            )

        return Delivery(self._portal, self._portal.call(enqueue))

    def enqueue_nowait(
        self,
        topic: str,
        value: V | None,
        *,
        key: K | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> "Delivery":
        """Accept one record, or raise BufferFull T023 if there is no room."""
        inner = self._portal.run(
            self._inner.enqueue_nowait,
            topic,
            value,
            key=key,
            partition=partition,
            timestamp=timestamp,
            headers=headers,
        )
        return Delivery(self._portal, inner)

    def send_many(
        self,
        topic: str,
        values: Sequence[V | None],
        *,
        keys: Sequence[K | None] | None = None,
        timestamps: Sequence[int] | None = None,
        headers: Sequence[Headers] | None = None,
        partition: int | None = None,
    ) -> Sequence[RecordMetadata]:
        """Write columns of records; see ``tailrace.Producer.send_many``."""
        return self._portal.call(
            self._inner.send_many,
            topic,
            values,
            keys=keys,
            timestamps=timestamps,
            headers=headers,
            partition=partition,
        )

    def flush(self, *, timeout: float | None = None) -> None:
        """Until everything accepted before is durable; RequestTimeout T034 after ``timeout`` s."""
        self._portal.call(self._inner.flush, timeout=timeout)

    def health(self) -> ProducerHealth:
        """What waits and since when; never fails."""
        return self._inner.health()

    def close(self) -> None:
        """Flush within ``close_timeout``, then end; raises CloseTimeout T026, FlushError T025."""
        if self._portal.producers.pop(self._inner, None) is not None:
            self._portal.call(self._inner.aclose)


class Delivery:
    """What becomes of an enqueued record."""

    def __init__(self, portal: Portal, inner: delivery.Delivery) -> None:
        self._portal = portal
        self._inner = inner

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Wait until the record is durable; raises what became of it.

        After ``timeout`` seconds RequestTimeout T034; the record is still on its way then.
        """

        async def awaited() -> RecordMetadata:
            return await self._inner

        future = self._portal.start(awaited)
        try:
            return future.result(timeout)
        except KeyboardInterrupt:
            future.cancel()
            raise
        except CancelledError:
            raise self._portal.crash() or texts_client.already_closed("Client") from None
        except TimeoutError:
            if future.done():
                raise  # the record's own: SendTimeout
            future.cancel()
        address = self._portal.client.health().address or "the cluster"
        raise texts_client.request_timeout("a delivery", address=address, waited_s=timeout or 0.0)

    def done(self) -> bool:
        """Whether ``result`` would return or raise at once."""
        return self._inner.done()


def _caller() -> tuple[str, int]:
    """File and line of the user's call: the first frame outside of this room."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("?", 0)
