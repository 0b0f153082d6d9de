"""Topics and records of a broker, for arranging a test and for asserting what came of it.

Needs nothing but a URL, so it works on any cluster. Synchronous, for tests of any framework: async
ones may call all of it too.
"""

import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar, overload

from tailrace.client.codecs import CodecSpec
from tailrace.client.opening import Typed, Untyped
from tailrace.client.records import ConfigValue, Record, RecordMetadata
from tailrace.client.sync import Admin, Client, connect
from tailrace.protocol.errors import TailraceError, TopicExists, TopicNotFound
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing.blocking import outside_loops

V = TypeVar("V")
Keys: TypeAlias = Iterable[bytes | None]

POLL_S = 0.02


class Records:
    """Topics and records of the broker at ``url``, for arranging and for asserting."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._clients: list[Client] = []
        self._own: Client | None = None

    @outside_loops
    def client(self) -> Client:
        """A connected client of its own; closed with the broker."""
        client = connect(self.url)
        client.__enter__()
        self._clients.append(client)
        return client

    def name(self, topic: str) -> str:
        """A topic name that nobody else has, for tests that share a broker."""
        return f"{topic}-{secrets.token_hex(4)}"

    @outside_loops
    def create_topic(self, name: str, partitions: int = 1, **config: ConfigValue) -> None:
        """Create a topic; TopicExists T012 if there is one."""
        self._admin.create_topic(name, partitions=partitions, config=config)

    @overload
    def seed(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        keys: Keys | None = ...,
        partitions: int = ...,
    ) -> list[RecordMetadata]: ...
    @overload
    def seed(
        self,
        topic: str,
        values: Iterable[V | None],
        *,
        keys: Keys | None = ...,
        partitions: int = ...,
        value: CodecSpec[V],
    ) -> list[RecordMetadata]: ...
    @outside_loops
    def seed(
        self,
        topic: str,
        values: Iterable[Any],
        *,
        keys: Keys | None = None,
        partitions: int = 1,
        value: CodecSpec[Any] = bytes,
    ) -> list[RecordMetadata]:
        """Write records, durably and in order; creates the topic if it is missing."""
        with suppress(TopicExists):
            self.create_topic(topic, partitions)
        with self._client.producer(value=value, linger=0.0) as producer:
            columns = list(values)
            return list(
                producer.send_many(topic, columns, keys=None if keys is None else list(keys))
            )

    @overload
    def records(self, topic: str, *, partition: int | None = ...) -> list[Record[bytes, bytes]]: ...
    @overload
    def records(
        self, topic: str, *, partition: int | None = ..., value: Typed[V]
    ) -> list[Record[bytes, V]]: ...
    @overload
    def records(
        self, topic: str, *, partition: int | None = ..., value: Untyped
    ) -> list[Record[bytes, Any]]: ...
    @outside_loops
    def records(
        self, topic: str, *, partition: int | None = None, value: CodecSpec[Any] = bytes
    ) -> list[Record[bytes, Any]]:
        """All records there are now, by partition and offset."""
        return self._read(topic, partition, value)

    @overload
    def wait_values(
        self, topic: str, *, count: int, timeout: float = ...
    ) -> list[bytes | None]: ...
    @overload
    def wait_values(
        self, topic: str, *, count: int, timeout: float = ..., value: Typed[V]
    ) -> list[V | None]: ...
    @overload
    def wait_values(
        self, topic: str, *, count: int, timeout: float = ..., value: Untyped
    ) -> list[Any]: ...
    @outside_loops
    def wait_values(
        self, topic: str, *, count: int, timeout: float = 2.0, value: CodecSpec[Any] = bytes
    ) -> list[Any]:
        """The values, once there are ``count`` of them; AssertionError after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        found: list[Record[bytes, Any]] = []
        while True:
            quiet_s = max(deadline - time.monotonic(), POLL_S)
            with suppress(TopicNotFound):  # it may be created yet
                found = self._read(topic, None, value, idle_timeout=quiet_s)
            if len(found) >= count:
                return [record.value for record in found]
            if time.monotonic() >= deadline:
                raise AssertionError(self._too_few(topic, len(found), count, timeout))
            time.sleep(POLL_S)

    @outside_loops
    def close_clients(self) -> None:
        """Close every client made here."""
        clients, self._clients, self._own = self._clients, [], None
        for client in clients:
            client.close()

    def _read(
        self,
        topic: str,
        partition: int | None,
        value: CodecSpec[Any],
        idle_timeout: float | None = None,
    ) -> list[Record[bytes, Any]]:
        """Up to the end as of now, or until nothing came for ``idle_timeout`` seconds."""
        detail = self._admin.describe_topic(topic)
        chosen = range(detail.partitions) if partition is None else [partition]
        with self._client.consumer(
            partitions=[TopicPartition(topic, each) for each in chosen],
            value=value,
            stop_at_end=True,
            idle_timeout=idle_timeout,
        ) as consumer:
            found = list(consumer)
        return sorted(found, key=lambda record: (record.partition, record.offset))

    @property
    def _client(self) -> Client:
        if self._own is None:
            self._own = self.client()
        return self._own

    @property
    def _admin(self) -> Admin:
        return self._client.admin

    def _too_few(self, topic: str, found: int, count: int, timeout: float) -> str:
        lines = [f"{found} of {count} records in {topic!r} after {timeout:g} s"]
        try:
            partitions = self._admin.describe_topic(topic).partition_list
        except TailraceError as error:
            lines.append(f"  {error}")
        else:
            lines += [
                f"  {topic}[{part.partition}]: log_start {part.log_start}, "
                f"log_end {part.log_end}, high_watermark {part.high_watermark}, {part.status}"
                for part in partitions
            ]
        return "\n".join([*lines, *self._last_events()])

    def _last_events(self) -> list[str]:
        return []
