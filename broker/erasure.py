"""Erasures as values: what was asked for, how far it is, the receipt (pure).

- An erasure is asked for once, under an id its client made; it is stored before it is answered, so
  that a restart goes on with it.
- What is stored of a key are digests, and only while the erasure is pending. What stays are 16
  bits over the whole request: enough to tell that an id is used for another one, too few to confirm
  anybody's guess of a key.
- Each partition has a share of its own: records at or above its ``end``, the log end when it was
  asked for, are none of its business.
- Every replica erases in its own files, and says so; complete is an erasure when all have that hold
  a copy then.
- ``records`` of a replica counts what it found below ``counted_to``; both are stored before the
  files change, so that a crash between counts nothing twice and forgets nothing. The replicas found
  the same, but for what one of them never had, or had compacted: the most counts.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from uuid import UUID

from tailrace.protocol.messages import ErasureResponse, ReplicaErasure
from tailrace.storage.erasure import KeyDigest, Target

ERASURES = "erasures/"
KEYS_MAX = 1_000  # of one request
RECORDS_MAX = 1_000
PENDING_MAX = 100  # of one topic
RECEIPTS_MAX = 1_000  # of one topic, the newest
FINGERPRINT_BYTES = 2
RECEIPTS_MS = 30 * 86_400_000  # so long after completion a receipt is kept

Replicas = Callable[[bytes, int], Iterable[str]]  # who holds a copy, by topic id and partition


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one replica is with one partition."""

    records: int = 0
    counted_to: int = 0
    done: bool = False

    def counted(self, records: int, next_offset: int) -> "Progress":
        """So many more records were found, all below ``next_offset``."""
        return replace(
            self, records=self.records + records, counted_to=max(self.counted_to, next_offset)
        )


NOTHING = Progress()
EVERYBODY = ""  # in place of a broker: what stays of their progress when all are done


@dataclass(frozen=True, slots=True)
class Share:
    """One partition's part of an erasure."""

    end: int
    offsets: tuple[int, ...] = ()  # single records asked for, rising
    by: Mapping[str, Progress] = field(default_factory=dict[str, Progress])  # broker

    @property
    def records(self) -> int:
        """Found so far."""
        return max((one.records for one in self.by.values()), default=0)

    def of(self, broker_id: str) -> Progress:
        """One replica's."""
        return self.by.get(broker_id, NOTHING)

    def done(self, broker_id: str) -> bool:
        """Whether there is nothing to be done by a replica any more."""
        return not self.end or self.of(broker_id).done

    def put(self, broker_id: str, progress: Progress) -> "Share":
        return replace(self, by={**self.by, broker_id: progress})


@dataclass(frozen=True, slots=True)
class Erasure:
    """One request, as ``erasures/{id}`` has it."""

    erasure_id: bytes
    topic_id: bytes
    topic: str
    requested_at: int  # ms since the epoch
    keys: tuple[KeyDigest, ...]
    shares: Mapping[int, Share] = field(default_factory=dict[int, Share])  # by partition
    completed_at: int | None = None
    revision: int = 0  # of its key in the store; 0 while it is not stored
    fingerprint: int | None = None  # of the request; None: not known
    brokers: tuple[str, ...] = ()  # who had copies when it was complete

    @property
    def key(self) -> str:
        return ERASURES + self.erasure_id.hex()

    @property
    def records(self) -> int:
        """Found so far, in all partitions."""
        return sum(share.records for share in self.shares.values())

    def target(self, partition: int, broker_id: str) -> Target | None:
        """What a replica still has to do in a partition, or None."""
        share = self.shares.get(partition)
        if share is None or share.done(broker_id) or self.completed_at is not None:
            return None
        return Target(self.keys, share.offsets, share.end, share.of(broker_id).counted_to)

    def with_share(self, partition: int, share: Share) -> "Erasure":
        return replace(self, shares={**self.shares, partition: share})

    def with_progress(self, broker_id: str, made: Mapping[int, Progress]) -> "Erasure":
        """So far is this replica now, by partition."""
        shares = {number: self.shares[number].put(broker_id, one) for number, one in made.items()}
        return replace(self, shares={**self.shares, **shares})

    def pending(self, replicas: Replicas) -> dict[str, bool]:
        """Everybody who holds a copy, and whether there is something to be done in one."""
        found: dict[str, bool] = {}
        for number, share in self.shares.items():
            for broker in replicas(self.topic_id, number):
                found[broker] = found.get(broker, False) or not share.done(broker)
        return found

    def completed(self, now_ms: int, brokers: Iterable[str]) -> "Erasure":
        """Done by all of ``brokers``: the receipt stays, what was looked for does not."""
        shares = {
            number: Share(share.end, by={EVERYBODY: Progress(share.records, done=True)})
            for number, share in self.shares.items()
        }
        brokers = tuple(sorted(brokers))
        return replace(self, completed_at=now_ms, keys=(), shares=shares, brokers=brokers)

    def receipt(self, replicas: Replicas) -> ErasureResponse:
        """What a client is told. ``replicas``: of its partitions, now."""
        pending = dict.fromkeys(self.brokers, False)
        if self.completed_at is None:
            pending = self.pending(replicas)
        return ErasureResponse(
            erasure_id=self.erasure_id,
            topic=self.topic,
            records=self.records,
            requested_at=self.requested_at,
            completed_at=self.completed_at,
            replicas=tuple(ReplicaErasure(one, not pending[one]) for one in sorted(pending)),
        )

    def to_json(self) -> bytes:
        return _dump(
            {
                "topic_id": str(UUID(bytes=self.topic_id)),
                "topic": self.topic,
                "requested_at": self.requested_at,
                "completed_at": self.completed_at,
                "fingerprint": self.fingerprint,
                "brokers": self.brokers,
                "keys": [
                    [f"{key.hash64:016x}", b64encode(key.sha256).decode()] for key in self.keys
                ],
                "partitions": {
                    str(number): [
                        *(share.end, list(share.offsets)),
                        {
                            broker: [one.records, one.counted_to, one.done]
                            for broker, one in share.by.items()
                        },
                    ]
                    for number, share in self.shares.items()
                },
            }
        )

    @classmethod
    def from_json(cls, key: str, value: bytes, revision: int) -> "Erasure":
        document: Any = json.loads(value)
        shares = {
            int(number): Share(
                end, tuple(offsets), {broker: Progress(*one) for broker, one in by.items()}
            )
            for number, (end, offsets, by) in document["partitions"].items()
        }
        return cls(
            erasure_id=bytes.fromhex(key.removeprefix(ERASURES)),
            topic_id=UUID(document["topic_id"]).bytes,
            topic=document["topic"],
            requested_at=document["requested_at"],
            keys=tuple(KeyDigest(int(h, 16), b64decode(digest)) for h, digest in document["keys"]),
            shares=shares,
            completed_at=document["completed_at"],
            revision=revision,
            fingerprint=document["fingerprint"],
            brokers=tuple(document["brokers"]),
        )


def fingerprint_of(keys: Iterable[KeyDigest], records: Iterable[tuple[int, int]]) -> int:
    """Of what is asked for; ``records`` as (partition, offset). The order does not count."""
    hasher = sha256()
    for digest in sorted({key.sha256 for key in keys}):
        hasher.update(digest)
    for partition, offset in sorted(set(records)):
        hasher.update(f"{partition}:{offset},".encode())
    return int.from_bytes(hasher.digest()[:FINGERPRINT_BYTES])


def shares_of(
    ends: Mapping[int, int], records: Iterable[tuple[int, int]], *, keys: bool
) -> dict[int, Share]:
    """The shares of a request. ``ends``: log ends by partition, of all of them where keys are asked
    for, as any may hold one; else of those that hold the records.
    """
    wanted: dict[int, set[int]] = {number: set() for number in ends} if keys else {}
    for number, offset in records:
        wanted.setdefault(number, set()).add(offset)
    return {
        number: Share(ends[number], tuple(sorted(offsets)))
        for number, offsets in sorted(wanted.items())
    }


def outdated(receipts: Sequence[Erasure], age_ms: Callable[[int], int]) -> list[Erasure]:
    """The receipts of one topic that are kept no longer: too old, or too many."""
    complete = sorted(
        (one for one in receipts if one.completed_at is not None),
        key=lambda one: (one.completed_at or 0, one.erasure_id),
        reverse=True,
    )
    return [
        one
        for place, one in enumerate(complete)
        if place >= RECEIPTS_MAX or age_ms(one.completed_at or 0) > RECEIPTS_MS
    ]


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
