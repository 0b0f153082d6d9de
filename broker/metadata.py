"""The metadata store's interface: a small map with revisions, transactions and leases.

Contract, checked by one suite against every store (tests/broker/metadata_contract.py):

- every transaction that changes something takes the next revision, and all it wrote carries it;
- ``txn`` is atomic, and durable when it returns; a revision of 0 in ``compare`` means "absent";
- a key written with a lease vanishes when the lease ends, by ``revoke`` or for want of
  ``keepalive``; a lease is a hint of liveness, never mutual exclusion (R13);
- a watch is a hint as well: it wakes after changes below its prefix, perhaps late, perhaps for
  nothing; whoever wakes reads again (R17);
- when a call failed, its transaction may or may not have been applied (R16).

Values are JSON documents. Store away: ``MetadataUnavailable`` T100 from every call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

TXN_CHANGES_MAX = 100  # etcd allows 128 operations in one transaction (R18)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as read."""

    key: str
    value: bytes
    revision: int  # of the transaction that wrote it last; > 0


class Watch(Protocol):
    """Wakes when something below a prefix may have changed."""

    async def wait(self) -> None:
        """Return once something changed since the watch was made or last woke."""
        ...

    def close(self) -> None: ...


class MetadataStore(Protocol):
    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str, since: int = 0) -> Sequence[Entry]:
        """All entries whose key starts with ``prefix``, by key, as of one revision.

        With ``since`` only those written by a later revision; what was deleted does not show.
        """
        ...

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        """The new revision, or ``None`` if a compared revision was another one.

        At most ``TXN_CHANGES_MAX`` puts and deletes; no key in both. ``lease`` binds the puts to
        a lease; ``KeyError`` if that has ended. Cancelled: applied or not, unknown.
        """
        ...

    async def grant(self, ttl: float) -> int:
        """A new lease of ``ttl`` seconds."""
        ...

    async def keepalive(self, lease: int) -> bool:
        """Give the lease its ttl again; False if it has ended."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and remove its keys; one that has ended is fine."""
        ...

    def watch(self, prefix: str) -> Watch: ...

    async def aclose(self) -> None: ...
