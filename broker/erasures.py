"""The erasures of this broker's topics: the store first, then memory, then whoever waits.

- A request is answered only when it is stored; asked for again under the same id it is the same
  erasure, and nothing is stored twice. Another request under that id is refused: its receipt would
  say that records are gone which nobody looked for.
- The eraser alone changes an erasure; a deletion of the topic ends it, as nothing is left then.
- Every topic has a bounded number of pending erasures and of receipts. How old these are is told
  by the trusted clock: a step of the other must not take them.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.catalog import Topic
from tailrace.broker.erasure import PENDING_MAX, Erasure, outdated
from tailrace.broker.registry import Conflict, Registry
from tailrace.protocol import texts_erasure, texts_wire

PROGRESS_EVERY_S = 1.0
ROOM_WAIT_S = 5.0  # for one of too many pending erasures to come to its end


class Erasures:
    def __init__(self, registry: Registry, age_ms: Callable[[int], int]) -> None:
        """``age_ms``: how long ago a time was, at least."""
        self.asked = Bell()  # rung for the eraser
        self.problems: list[str] = []  # what keeps some of them from being done, by the eraser
        self._registry = registry
        self._age_ms = age_ms
        self._topics: dict[bytes, dict[bytes, Erasure]] = {}  # by topic id, then by erasure id
        self._asking = trio.Lock()  # so that one id is stored once
        self._changed = trio.Event()
        self._stopping = False
        self._stored_at = -PROGRESS_EVERY_S  # when progress was, in trio's time

    async def load(self, topic_ids: Collection[bytes]) -> None:
        """What the store knows. Erasures of topics that are gone came to their end with them."""
        found = await self._registry.erasures()
        for erasure in found:
            if erasure.topic_id in topic_ids:
                self._topics.setdefault(erasure.topic_id, {})[erasure.erasure_id] = erasure
        await self._registry.forget_erasures(
            [erasure for erasure in found if erasure.topic_id not in topic_ids]
        )
        if self.pending_count:
            self.asked.ring()

    # ── clients ──────────────────────────────────────────────────────────────────────────────

    async def ask(self, erasure: Erasure) -> Erasure:
        """Take a request on, or find it taken on before. T034 if too many wait, T100, T121 if its
        id is that of another."""
        async with self._asking:
            ends_at = trio.current_time() + ROOM_WAIT_S
            asked = (erasure.topic_id, erasure.erasure_id, erasure.fingerprint)
            while (known := self.known(*asked)) is None:
                pending = len(self.pending(erasure.topic_id))
                if pending < PENDING_MAX:
                    break
                if trio.current_time() >= ends_at or self._stopping:
                    raise texts_erasure.erasures_full(
                        erasure.topic, pending=pending, waited_s=ROOM_WAIT_S
                    )
                await self._wait_change(ends_at)
            if known is not None:
                return known
            stored = await self._registry.put_erasure(erasure)
            if stored.topic_id != erasure.topic_id:
                raise texts_wire.malformed_frame("an erasure id that was used for another topic")
            _check_same(stored, erasure.fingerprint)
            self._topics.setdefault(stored.topic_id, {})[stored.erasure_id] = stored
        self.asked.ring()
        return stored

    def get(self, topic_id: bytes, erasure_id: bytes) -> Erasure | None:
        return self._topics.get(topic_id, {}).get(erasure_id)

    def known(self, topic_id: bytes, erasure_id: bytes, fingerprint: int | None) -> Erasure | None:
        """The erasure, if it was taken on before. T121 if that was another with its id."""
        found = self.get(topic_id, erasure_id)
        if found is not None:
            _check_same(found, fingerprint)
        return found

    def find(self, topic: Topic, erasure_id: bytes) -> Erasure:
        """The erasure, or T010."""
        found = self.get(topic.topic_id, erasure_id)
        if found is None:
            raise texts_erasure.erasure_not_found(topic.name, erasure_id)
        return found

    async def wait(self, erasure: Erasure, seconds: float) -> None:
        """Return once it is complete or gone, the broker stops, or so long has passed."""
        ends_at = trio.current_time() + seconds
        while not self._stopping and trio.current_time() < ends_at:
            known = self.get(erasure.topic_id, erasure.erasure_id)
            if known is None or known.completed_at is not None:
                return
            await self._wait_change(ends_at)

    def release(self) -> None:
        """The broker stops: nobody is to wait any longer."""
        self._stopping = True
        self._tell()

    # ── the eraser ───────────────────────────────────────────────────────────────────────────

    @property
    def pending_count(self) -> int:
        """Of all topics."""
        return sum(
            one.completed_at is None for known in self._topics.values() for one in known.values()
        )

    def topic_ids(self) -> list[bytes]:
        """Topics that have erasures, pending or complete."""
        return list(self._topics)

    def pending(self, topic_id: bytes) -> list[Erasure]:
        """Those of a topic that are not complete, the oldest first."""
        known = self._topics.get(topic_id, {}).values()
        return [one for one in known if one.completed_at is None]

    def of(self, topic_id: bytes) -> list[Erasure]:
        """Those of a topic, pending or complete, the oldest first."""
        return list(self._topics.get(topic_id, {}).values())

    async def update(self, changed: Sequence[Erasure]) -> None:
        """Store how far some of them are. One whose topic is gone is let go. T100."""
        for erasure in changed:
            if self.get(erasure.topic_id, erasure.erasure_id) is None:
                continue
            try:
                stored = await self._registry.put_erasure(erasure)
            except Conflict:
                continue  # the topic was deleted meanwhile
            if self.get(erasure.topic_id, erasure.erasure_id) is not None:
                self._topics[erasure.topic_id][erasure.erasure_id] = stored
        self._tell()

    async def progress(self, changed: Sequence[Erasure]) -> None:
        """Partitions are done, which a restart would find out again: store that now and then. T100.

        An erasure of a thousand partitions is large, and would be stored a thousand times.
        """
        if trio.current_time() - self._stored_at >= PROGRESS_EVERY_S:
            await self.update(changed)
            self._stored_at = trio.current_time()
            return
        for erasure in changed:
            if self.get(erasure.topic_id, erasure.erasure_id) is not None:
                self._topics[erasure.topic_id][erasure.erasure_id] = erasure

    async def expire(self) -> None:
        """Forget receipts that are too old or too many. T100."""
        for topic_id in self.topic_ids():
            gone = outdated(list(self._topics[topic_id].values()), self._age_ms)
            await self._registry.forget_erasures(gone)
            for erasure in gone:
                self._topics.get(topic_id, {}).pop(erasure.erasure_id, None)

    async def forget_topic(self, topic_id: bytes) -> None:
        """A topic was deleted, and with it all that was to be erased. T100."""
        gone = self._topics.pop(topic_id, {})
        self._tell()
        with suppress(Conflict):
            await self._registry.forget_erasures(list(gone.values()))

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    async def _wait_change(self, ends_at: float) -> None:
        with trio.move_on_at(ends_at):
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _check_same(known: Erasure, fingerprint: int | None) -> None:
    """T121 unless both were asked for with the same keys and records, as far as that is known."""
    if None not in (known.fingerprint, fingerprint) and known.fingerprint != fingerprint:
        raise texts_wire.malformed_frame("an erasure id that was used for other keys or records")
