"""``producer`` and ``consumer`` of the synchronous client, typed like those of the other one."""

from collections.abc import Callable
from typing import Any, TypeVar, Unpack, overload

from tailrace.client.codecs import CodecSpec
from tailrace.client.opening import ConsumerOptions, ProducerOptions, Typed, Untyped
from tailrace.client.portal import Portal
from tailrace.client.sync_consumer import Consumer
from tailrace.client.sync_producer import Producer

K = TypeVar("K")
V = TypeVar("V")


class Opening:
    """Mixed into ``Client``."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    @overload
    def producer(self, **options: Unpack[ProducerOptions]) -> "Producer[bytes, bytes]": ...
    @overload
    def producer(
        self, *, value: Typed[V], **options: Unpack[ProducerOptions]
    ) -> "Producer[bytes, V]": ...
    @overload
    def producer(
        self, *, value: Untyped, **options: Unpack[ProducerOptions]
    ) -> "Producer[bytes, Any]": ...
    @overload
    def producer(
        self, *, key: Typed[K], **options: Unpack[ProducerOptions]
    ) -> "Producer[K, bytes]": ...
    @overload
    def producer(
        self, *, key: Typed[K], value: Typed[V], **options: Unpack[ProducerOptions]
    ) -> "Producer[K, V]": ...
    @overload
    def producer(
        self, *, key: Typed[K], value: Untyped, **options: Unpack[ProducerOptions]
    ) -> "Producer[K, Any]": ...
    @overload
    def producer(
        self, *, key: Untyped, **options: Unpack[ProducerOptions]
    ) -> "Producer[Any, bytes]": ...
    @overload
    def producer(
        self, *, key: Untyped, value: Typed[V], **options: Unpack[ProducerOptions]
    ) -> "Producer[Any, V]": ...
    @overload
    def producer(
        self, *, key: Untyped, value: Untyped, **options: Unpack[ProducerOptions]
    ) -> "Producer[Any, Any]": ...
    def producer(
        self,
        *,
        key: CodecSpec[Any] = bytes,
        value: CodecSpec[Any] = bytes,
        **options: Unpack[ProducerOptions],
    ) -> "Producer[Any, Any]":
        """A producer; use it as ``with client.producer() as producer``.

        Arguments and errors are those of ``tailrace.Client.producer``.
        """
        create: Callable[..., Any] = self._portal.client.producer
        return Producer(self._portal, self._portal.run(create, key=key, value=value, **options))

    @overload
    def consumer(
        self, *topics: str, **options: Unpack[ConsumerOptions]
    ) -> "Consumer[bytes, bytes]": ...
    @overload
    def consumer(
        self, *topics: str, value: Typed[V], **options: Unpack[ConsumerOptions]
    ) -> "Consumer[bytes, V]": ...
    @overload
    def consumer(
        self, *topics: str, value: Untyped, **options: Unpack[ConsumerOptions]
    ) -> "Consumer[bytes, Any]": ...
    @overload
    def consumer(
        self, *topics: str, key: Typed[K], **options: Unpack[ConsumerOptions]
    ) -> "Consumer[K, bytes]": ...
    @overload
    def consumer(
        self, *topics: str, key: Typed[K], value: Typed[V], **options: Unpack[ConsumerOptions]
    ) -> "Consumer[K, V]": ...
    @overload
    def consumer(
        self, *topics: str, key: Typed[K], value: Untyped, **options: Unpack[ConsumerOptions]
    ) -> "Consumer[K, Any]": ...
    @overload
    def consumer(
        self, *topics: str, key: Untyped, **options: Unpack[ConsumerOptions]
    ) -> "Consumer[Any, bytes]": ...
    @overload
    def consumer(
        self, *topics: str, key: Untyped, value: Typed[V], **options: Unpack[ConsumerOptions]
    ) -> "Consumer[Any, V]": ...
    @overload
    def consumer(
        self, *topics: str, key: Untyped, value: Untyped, **options: Unpack[ConsumerOptions]
    ) -> "Consumer[Any, Any]": ...
    def consumer(
        self,
        *topics: str,
        key: CodecSpec[Any] = bytes,
        value: CodecSpec[Any] = bytes,
        **options: Unpack[ConsumerOptions],
    ) -> "Consumer[Any, Any]":
        """A consumer; use it as ``with client.consumer("orders") as consumer``.

        Arguments and errors are those of ``tailrace.Client.consumer``.
        """
        create: Callable[..., Any] = self._portal.client.consumer
        inner = self._portal.run(create, *topics, key=key, value=value, **options)
        return Consumer(self._portal, inner)
