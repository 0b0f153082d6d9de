"""The erasures of all topics: the store first, then memory, then whoever waits.

- A request is answered only when it is stored; asked for again under the same id it is the same
  erasure, and nothing is stored twice. Another request under that id is refused: its receipt would
  say that records are gone which nobody looked for.
- Each broker's eraser says how far it is itself, and takes nothing back of what others said; what
  these say is read when the store has changed (``run``). A deletion of the topic ends an erasure:
  nothing is left then.
- What this broker has not stored yet of its progress is kept apart, so that reading loses nothing.
- Every topic has a bounded number of pending erasures and of receipts. How old these are is told
  by the trusted clock: a step of the other must not take them.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.catalog import Topic
from tailrace.broker.erasure import (
    ERASURES,
    PENDING_MAX,
    Erasure,
    Progress,
    Replicas,
    outdated,
)
from tailrace.broker.registry import Conflict, Registry
from tailrace.protocol import texts_erasure, texts_wire
from tailrace.protocol.errors import MetadataUnavailable

PROGRESS_EVERY_S = 1.0
AGAIN_S = 1.0  # before the store is asked again
LOOK_EVERY_S = 60.0
ROOM_WAIT_S = 5.0  # for one of too many pending erasures to come to its end


class Erasures:
    def __init__(self, registry: Registry, broker_id: str, age_ms: Callable[[int], int]) -> None:
        """``age_ms``: how long ago a time was, at least."""
        self.broker_id = broker_id
        self.asked = Bell()  # rung for the eraser
        self.problems: list[str] = []  # what keeps some of them from being done, by the eraser
        self._registry = registry
        self._age_ms = age_ms
        self._topics: dict[bytes, dict[bytes, Erasure]] = {}  # by topic id, then by erasure id
        self._stored: dict[bytes, Erasure] = {}  # by erasure id: as the store has them
        self._since = 0  # the latest revision among them
        self._unstored: dict[bytes, dict[int, Progress]] = {}  # by erasure id, by partition
        self._asking = trio.Lock()  # so that one id is stored once
        self._storing = trio.Lock()
        self._changed = trio.Event()
        self._stopping = False
        self._stored_at = -PROGRESS_EVERY_S  # when progress was, in trio's time

    async def load(self, topic_ids: Collection[bytes]) -> None:
        """What the store knows. Erasures of topics that are gone came to their end with them."""
        found = await self._registry.erasures()
        for erasure in found:
            if erasure.topic_id in topic_ids:
                self._put(erasure)
        await self._registry.forget_erasures(
            [erasure for erasure in found if erasure.topic_id not in topic_ids]
        )
        if self.pending_count:
            self.asked.ring()

    async def run(self) -> None:
        """Know what other brokers stored, for ever."""
        watch = self._registry.store.watch(ERASURES)
        try:
            while True:
                try:
                    with trio.move_on_after(LOOK_EVERY_S):  # a watch is a hint (R17)
                        await watch.wait()
                    await self.refresh()
                except MetadataUnavailable:  # told by whoever keeps the view up to date
                    await trio.sleep(AGAIN_S)
        finally:
            watch.close()

    async def refresh(self) -> None:
        """Read what was stored since it was last read. T100."""
        changed = False
        for entry in await self._registry.entries(ERASURES, self._since):
            erasure = Erasure.from_json(entry.key, entry.value, entry.revision)
            known = self.get(erasure.topic_id, erasure.erasure_id)
            if known is None or known.revision < erasure.revision:
                self._put(erasure)
                changed = True
            self._since = max(self._since, entry.revision)
        if changed:
            self.asked.ring()
            self._tell()

    def _put(self, stored: Erasure) -> None:
        """Know it as it is stored, and what of it is not stored yet."""
        known = self._stored[stored.erasure_id] = stored
        made = self._unstored.get(stored.erasure_id)
        if made and stored.completed_at is None:
            known = stored.with_progress(self.broker_id, made)
        else:
            self._unstored.pop(stored.erasure_id, None)
        self._topics.setdefault(stored.topic_id, {})[stored.erasure_id] = known

    def _drop(self, erasure: Erasure) -> None:
        self._topics.get(erasure.topic_id, {}).pop(erasure.erasure_id, None)
        self._stored.pop(erasure.erasure_id, None)
        self._unstored.pop(erasure.erasure_id, None)

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
            stored = await self._registry.change_erasure(erasure, lambda one: one)
            if stored.topic_id != erasure.topic_id:
                raise texts_wire.malformed_frame("an erasure id that was used for another topic")
            _check_same(stored, erasure.fingerprint)
            self._put(stored)
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

    async def store(self, erasure: Erasure, made: Mapping[int, Progress]) -> None:
        """This broker is so far, by partition: durably on return. One whose topic is gone is let
        go. T100."""
        if made:
            self.progress(erasure, made)
        if erasure.erasure_id in self._unstored:
            await self._store(erasure)

    def progress(self, erasure: Erasure, made: Mapping[int, Progress]) -> None:
        """The same, to be stored by the next ``flush``: a restart would find it out again.

        An erasure of a thousand partitions is large, and would be stored a thousand times.
        """
        known = self.get(erasure.topic_id, erasure.erasure_id)
        if known is not None and known.completed_at is None:
            self._unstored.setdefault(erasure.erasure_id, {}).update(made)
            self._put(self._stored[erasure.erasure_id])

    @property
    def all_stored(self) -> bool:
        """Whether ``flush`` has nothing to do."""
        return not self._unstored

    async def flush(self) -> None:
        """Store what progress was made, unless that was done just now. T100."""
        if self.all_stored or trio.current_time() - self._stored_at < PROGRESS_EVERY_S:
            return
        for topic_id in self.topic_ids():
            for erasure in self.pending(topic_id):
                if erasure.erasure_id in self._unstored:
                    await self._store(erasure)
        self._stored_at = trio.current_time()

    async def _store(self, erasure: Erasure) -> None:
        async with self._storing:  # an older one is not to come last
            made = dict(self._unstored.get(erasure.erasure_id, {}))

            def with_it(known: Erasure) -> Erasure:
                return known if known.completed_at else known.with_progress(self.broker_id, made)

            await self._change(erasure, with_it)
            left = self._unstored.get(erasure.erasure_id, {})
            for number in [number for number, one in made.items() if left.get(number) == one]:
                del left[number]
            if not left:
                self._unstored.pop(erasure.erasure_id, None)

    async def shorten(self, erasure: Erasure, number: int, end: int) -> None:
        """The leader's log ends there, below the end of the share: records were lost (S3). T100."""

        def shorter(known: Erasure) -> Erasure:
            share = known.shares[number]
            return known.with_share(number, replace(share, end=min(share.end, end)))

        await self._change(erasure, shorter)

    async def complete(self, erasure: Erasure, now_ms: int, replicas: Replicas) -> bool:
        """End it if every replica there is now is done; whether this call did. T100."""
        done_at = max(now_ms, erasure.requested_at)

        def ended(known: Erasure) -> Erasure:
            pending = known.pending(replicas)
            if known.completed_at is not None or not pending or any(pending.values()):
                return known
            return known.completed(done_at, pending)

        known = self.get(erasure.topic_id, erasure.erasure_id)
        if known is None or ended(known) == known:
            return False
        await self._store(erasure)
        await self._change(erasure, ended)
        after = self.get(erasure.topic_id, erasure.erasure_id)
        return after is not None and after.completed_at == done_at

    async def _change(self, erasure: Erasure, change: Callable[[Erasure], Erasure]) -> None:
        known = self._stored.get(erasure.erasure_id)
        if known is None:
            return
        try:
            stored = await self._registry.change_erasure(known, change)
        except Conflict:
            return  # the topic was deleted meanwhile
        known = self._stored.get(erasure.erasure_id)
        if known is not None and known.revision < stored.revision:
            self._put(stored)
        self._tell()

    async def expire(self) -> None:
        """Forget receipts that are too old or too many. T100."""
        for topic_id in self.topic_ids():
            gone = outdated(list(self._topics[topic_id].values()), self._age_ms)
            await self._registry.forget_erasures(gone)
            for erasure in gone:
                self._drop(erasure)

    async def forget_topic(self, topic_id: bytes) -> None:
        """A topic was deleted, and with it all that was to be erased. T100."""
        gone = dict(self._topics.get(topic_id, {}))
        for erasure in gone.values():
            self._drop(erasure)
        self._topics.pop(topic_id, None)
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
