"""The seams that broker and client share: clock, transport, network.

Production and simulation differ in these alone (and in the disk, the metadata store and the
offload of threads, which only a broker has). Whoever implements one keeps to three rules:

- a transport that broke raises an ``OSError``; one that was closed here raises
  ``ConnectionAbortedError``; the peer's orderly end is ``b""`` from ``receive``;
- ``send`` may be cancelled at any point, after which the transport is only good for closing;
- sleeping and deadlines are not a seam: they go through trio or anyio, whose clock the
  simulation replaces as a whole.
"""

import ssl
from collections.abc import Sequence
from typing import Protocol


class Clock(Protocol):
    """Two clocks, because they answer two questions (safety R20)."""

    def now(self) -> float:
        """Monotonic seconds, for every timeout and lease."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, UTC: only for record timestamps and retention."""
        ...


class FileRange(Protocol):
    """A range of a file's bytes that a transport may pass on without copying them."""

    @property
    def offset(self) -> int:
        """Position of the first byte in the file."""
        ...

    @property
    def length(self) -> int:
        """How many bytes."""
        ...

    def fileno(self) -> int:
        """The file's descriptor for ``sendfile``, or -1 where there is none (use ``view``)."""
        ...

    def view(self) -> memoryview:
        """The bytes themselves; stays valid while the returned view lives."""
        ...

    def cached(self) -> bool:
        """Whether the bytes can be had without waiting for the device."""
        ...


Buffer = bytes | bytearray | memoryview | FileRange


class Transport(Protocol):
    """One open connection. One task receives, one task sends."""

    @property
    def peer(self) -> str:
        """The other side's ``host:port``, for logs."""
        ...

    async def receive(self, max_bytes: int) -> bytes:
        """At least one byte and at most ``max_bytes``; ``b""`` when the peer ended."""
        ...

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all of the buffers, in order, waiting while the peer does not read."""
        ...

    def send_nowait(self, data: bytes) -> int:
        """How many leading bytes of ``data`` were taken at once; 0 if that would block.

        Never called while a ``send`` is under way.
        """
        ...

    def close(self) -> None:
        """Close at once, without waiting for the peer; safe to call again."""
        ...


class ClientNet(Protocol):
    """The network as a client sees it."""

    async def connect(self, host: str, port: int, tls: ssl.SSLContext | None) -> Transport:
        """An open transport, after the TLS handshake if there is one, or an ``OSError``."""
        ...
