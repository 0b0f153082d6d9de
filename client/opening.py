"""``Client.producer`` and ``Client.consumer``, typed so that key and value types are inferred.

Nine overloads each: a key or value codec is not given (``bytes``), or something with a type
(``str``, a model, a ``Codec[T]``), or the name of one that has none (``"json"``).
"""

from collections.abc import Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from tailrace.client.codecs import Codec, CodecSpec
from tailrace.client.records import Acks, At
from tailrace.protocol.batch import Compression
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.client.consumer import Consumer
    from tailrace.client.producer import Producer

K = TypeVar("K")
V = TypeVar("V")
Typed: TypeAlias = type[K] | Codec[K]
Untyped: TypeAlias = Literal["json", "msgpack"]


class ProducerOptions(TypedDict, total=False):
    """The other arguments of ``Client.producer``: docs/clients.md."""

    acks: Acks
    idempotent: bool
    linger: float
    batch_bytes: int
    compression: Compression
    buffer_bytes: int
    max_in_flight: int
    timeout: float
    close_timeout: float | None


class ConsumerOptions(TypedDict, total=False):
    """The other arguments of ``Client.consumer``: docs/clients.md."""

    group: str | None
    partitions: Sequence[TopicPartition] | None
    start: At
    commit: Literal["after", "manual"]
    commit_interval: float
    isolation: Literal["read_committed", "read_uncommitted"]
    on_out_of_range: Literal["raise", "earliest", "latest"]
    on_decode_error: Literal["raise", "skip", "dead_letter"]
    dead_letter: str | None
    prefetch_bytes: int
    fetch_wait: float
    session_timeout: float
    rebalance_timeout: float
    heartbeat: Literal["thread", "task"]
    instance_id: str | None
    max_processing: float | None
    idle_timeout: float | None
    stop_at_end: bool
    close_timeout: float | None


class Opening:
    """Mixed into ``Client``."""

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
        acks: Acks = "all",
        idempotent: bool = True,
        linger: float = 0.005,
        batch_bytes: int = 262_144,
        compression: Compression = "lz4",
        buffer_bytes: int = 67_108_864,
        max_in_flight: int = 5,
        timeout: float = 30.0,
        key: CodecSpec[Any] = bytes,
        value: CodecSpec[Any] = bytes,
        close_timeout: float | None = None,
    ) -> "Producer[Any, Any]":
        """A producer; use it as ``async with client.producer() as producer``.

        Every option: docs/clients.md. Durations are seconds; ``close_timeout`` None is the
        client's. A batch leaves with ``batch_bytes``; it grows to 512 KiB while all
        ``max_in_flight`` are under way.

        Raises ConfigError T082 for arguments that cannot be or do not go together, UsageError
        T053-T055.
        """
        from tailrace.client.producer import Producer
        from tailrace.client.producer_options import ProducerOptions as Options, checked

        client = cast("Client", self)
        client.check()
        options = Options(
            acks=acks,
            idempotent=idempotent,
            linger=linger,
            batch_bytes=batch_bytes,
            compression=compression,
            buffer_bytes=buffer_bytes,
            max_in_flight=max_in_flight,
            timeout=timeout,
            close_timeout=client.options.close_timeout if close_timeout is None else close_timeout,
        )
        return Producer(client, checked(options), key, value)

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
        group: str | None = None,
        partitions: Sequence[TopicPartition] | None = None,
        start: At = "earliest",
        key: CodecSpec[Any] = bytes,
        value: CodecSpec[Any] = bytes,
        commit: Literal["after", "manual"] = "after",
        commit_interval: float = 1.0,
        isolation: Literal["read_committed", "read_uncommitted"] = "read_committed",
        on_out_of_range: Literal["raise", "earliest", "latest"] = "raise",
        on_decode_error: Literal["raise", "skip", "dead_letter"] = "raise",
        dead_letter: str | None = None,
        prefetch_bytes: int = 16_777_216,
        fetch_wait: float = 5.0,
        session_timeout: float = 10.0,
        rebalance_timeout: float = 30.0,
        heartbeat: Literal["thread", "task"] = "thread",
        instance_id: str | None = None,
        max_processing: float | None = None,
        idle_timeout: float | None = None,
        stop_at_end: bool = False,
        close_timeout: float | None = None,
    ) -> "Consumer[Any, Any]":
        """A consumer; use it as ``async with client.consumer("orders") as consumer``.

        Every option: docs/clients.md, those of groups: docs/consumer_groups.md. Durations are
        seconds. With ``group`` it reads what the broker gives to this member of the group, and
        commits how far it is. Raises ConfigError T082 for arguments that cannot be or do not go
        together, InvalidName T013 for group and instance ids nobody could read in a log,
        UsageError T053-T055.
        """
        from tailrace.client.consumer import Consumer

        client = cast("Client", self)
        client.check()
        return Consumer(
            client,
            topics,
            group=group,
            partitions=partitions,
            start=start,
            key=key,
            value=value,
            commit=commit,
            commit_interval=commit_interval,
            isolation=isolation,
            on_out_of_range=on_out_of_range,
            on_decode_error=on_decode_error,
            dead_letter=dead_letter,
            prefetch_bytes=prefetch_bytes,
            fetch_wait=fetch_wait,
            session_timeout=session_timeout,
            rebalance_timeout=rebalance_timeout,
            heartbeat=heartbeat,
            instance_id=instance_id,
            max_processing=max_processing,
            idle_timeout=idle_timeout,
            stop_at_end=stop_at_end,
            close_timeout=client.options.close_timeout if close_timeout is None else close_timeout,
        )
