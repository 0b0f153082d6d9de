"""Looks at every group each second, so that what is said of one is more than a moment's.

What it sees goes into one ``Track`` (lag.py) per group and partition; where nothing happened that
is a comparison of two numbers. What is slower to come by (when the oldest unread record was
appended, when it expires) is worked out when somebody asks: for one group, or for all of them at a
scrape, a few at a time, so that nobody else has to wait.

Where a log ends that is led elsewhere, this broker's own copy says, or else its leader
(``distant.py``); of one without a copy here it is not known for how long records have waited.

Which partitions a group reads: all of the topics that its members subscribe to, or that it has
committed anything of. Those of deleted topics, and deleted groups, are forgotten at the next look.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from tailrace.broker.assignment import Partition as Key
from tailrace.broker.catalog import Catalog, Topic
from tailrace.broker.clock import Timekeeper
from tailrace.broker.distant import Distant
from tailrace.broker.group import Group
from tailrace.broker.group_offsets import Committed
from tailrace.broker.lag import NOTHING, Track, Verdict, drain_s, present_s
from tailrace.broker.outlook import Outlook
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import World
from tailrace.storage.glance import Glance

LOOK_EVERY_S = 1.0
GROUPS_AT_ONCE = 64  # looked at before others get their turn
PARTITIONS_AT_ONCE = 32  # asked about before others get theirs: 60 us for one with lag
WARM_S = 1.0  # spent on reading what is not in memory, for one group that is asked about


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a group is with one partition, right now."""

    topic: str
    topic_id: bytes
    partition: int
    committed: Committed | None
    log_start: int  # -1, here and in ``log_end``: offline, nothing is known
    log_end: int
    lag_records: int
    lag_ms: int | None  # None: not known
    rate: float  # offsets per second over the window
    write_rate: float  # of the log, likewise
    drain_s: float | None  # None: never
    verdict: Verdict
    margin_s: float | None  # None: never


class Watched:
    """One group and its tracks."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.tracks: dict[Key, Track] = {}
        self.rows: list[tuple[Key, Track, Partition]] = []  # the same, of those that are here
        self.distant: list[tuple[Key, Track]] = []  # the others
        self.stamps: dict[Key, tuple[int, int]] = {}  # position and append time, where exact
        self._seen: tuple[int, int, Catalog] | None = None
        self._version: object = None

    def refresh(self, shelf: Shelf, distant: Distant, now: float) -> None:
        """Which partitions it reads may have changed, and where they are."""
        group, catalog = self.group, shelf.catalog
        seen = (group.generation, len(group.offsets), catalog)
        if self._seen is not None and self._seen[:2] == seen[:2] and self._seen[2] is catalog:
            if self.distant or self._version is not distant.version:
                self._find(distant)
            return
        self._seen = seen
        before, self.tracks = self.tracks, {}
        for key in (
            (topic.topic_id, number)
            for topic in topics_of(group, catalog)
            for number in range(len(topic.partitions))
        ):
            track = before.get(key)
            if track is None:
                one, partition = group.offsets.get(key), distant.here(key)
                track = Track(
                    now,
                    NOTHING if one is None else one.offset,
                    distant.of(key).end if partition is None else partition.high_watermark,
                )
            self.tracks[key] = track
        self.stamps = {key: one for key, one in self.stamps.items() if key in self.tracks}
        self._find(distant)

    def _find(self, distant: Distant) -> None:
        """A partition may be opened one day, or move; else all stays as long as the view."""
        self._version = distant.version
        found = [(key, track, distant.here(key)) for key, track in self.tracks.items()]
        self.rows = [(key, track, one) for key, track, one in found if one is not None]
        self.distant = [(key, track) for key, track, one in found if one is None]


class Watcher:
    def __init__(
        self,
        world: World,
        shelf: Shelf,
        time: Timekeeper,
        groups: Callable[[], Iterable[Group]],
        distant: Distant,
        *,
        window_s: float,
    ) -> None:
        self.window_s = window_s
        self._world = world
        self._shelf = shelf
        self._groups = groups
        self._distant = distant
        self._outlook = Outlook(world, shelf, time, window_s=window_s)
        self._watched: dict[str, Watched] = {}
        self._looked_at = world.clock.now()

    async def run(self) -> None:
        """Look each second, until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Look at every group once."""
        now, before = self._world.clock.now(), self._looked_at
        self._outlook.look(now)
        await self._look_far(now)
        there: dict[str, Watched] = {}
        for count, group in enumerate(list(self._groups()), 1):
            there[group.name] = watched = self._of(group, now)
            self._observe(watched, now, before)
            if count % GROUPS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
                now = self._world.clock.now()  # somebody may have asked about a group meanwhile
        self._watched = there
        self._looked_at = now

    async def _look_far(self, now: float) -> None:
        """Ask for what is not here, and that alone."""
        wanted: set[Key] = set()
        for count, group in enumerate(list(self._groups()), 1):
            wanted.update(key for key, _ in self._of(group, now).distant)
            if count % GROUPS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        self._distant.keep(wanted)
        if wanted:
            await self._distant.ask(sorted(wanted))

    def _of(self, group: Group, now: float) -> Watched:
        watched = self._watched.get(group.name)
        if watched is None or watched.group is not group:
            watched = self._watched[group.name] = Watched(group)
        watched.refresh(self._shelf, self._distant, now)
        return watched

    def _observe(self, watched: Watched, now: float, before: float) -> None:
        """On the path of every partition of every group each second."""
        get, window_s = watched.group.offsets.get, self.window_s
        working = len(watched.group.members) > 0
        for key, track, partition in watched.rows:
            one = get(key)
            committed = NOTHING if one is None else one.offset
            end = partition.replica.high_watermark
            moved = committed != track.committed
            if not moved and end == track.end:
                continue
            start = partition.log.start if committed == NOTHING else 0
            track.observe(now, before, committed, end, start, window_s)
            if moved and not working:
                track.forget_rates(now)
        for key, track in watched.distant:
            log = self._distant.of(key)
            if not log.known:
                continue
            one = get(key)
            committed = NOTHING if one is None else one.offset
            if committed != track.committed or log.end != track.end:
                start = log.start if committed == NOTHING else 0
                moved = committed != track.committed
                track.observe(now, before, committed, log.end, start, window_s)
                if moved and not working:
                    track.forget_rates(now)

    # ── what is asked ────────────────────────────────────────────────────────────────────────

    async def progress(self, group: Group) -> list[Progress]:
        """Every partition that a group reads, by topic and number; each as of its turn, and without
        those that go meanwhile. The disk is not waited for: where it would have to be read,
        ``lag_ms`` is a little more than it is."""
        now = self._world.clock.now()
        watched = self._of(group, now)
        self._observe(watched, now, self._looked_at)
        found: list[Progress] = []
        for count, key in enumerate(list(watched.tracks), 1):
            if key in watched.tracks and key[0] in self._shelf.catalog.by_id:
                found.append(self._progress(watched, key, now))
            if count % PARTITIONS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
                now = self._world.clock.now()
        return sorted(found, key=lambda one: (one.topic, one.partition))

    async def warm(self, group: Group) -> None:
        """Read in a thread, and ask others, what makes ``progress`` exact, as far as that takes no
        longer than a second."""
        watched = self._of(group, self._world.clock.now())
        with trio.move_on_after(WARM_S):
            if watched.distant:
                await self._distant.ask([key for key, _ in watched.distant])
            for count, key in enumerate(list(watched.tracks), 1):
                if count % PARTITIONS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                partition = self._distant.here(key)
                if partition is None or not partition.serving:
                    continue
                glance = self._glance(watched, key, partition)
                if glance is not None and glance.warm is not None:
                    await self._read(glance.warm)

    async def _read(self, work: Callable[[], object]) -> None:
        try:
            await self._world.offload.run(work)
        except OSError:
            return  # the reader of the partition will be told

    def _progress(self, watched: Watched, key: Key, now: float) -> Progress:
        partition, track = self._distant.here(key), watched.tracks[key]
        committed = watched.group.offsets.get(key)
        topic = self._shelf.catalog.by_id[key[0]].name
        if partition is not None and partition.serving:
            start, end = partition.log.start, partition.high_watermark
        elif partition is None and self._distant.of(key).known:
            start, end = self._distant.of(key)
        else:
            return Progress(topic, *key, committed, -1, -1, 0, None, 0.0, 0.0, None, "ok", None)
        position = start if committed is None else committed.offset
        lag = max(0, end - max(position, start))
        rate, write_rate = track.rates(now, self.window_s)
        present, written = track.rates(now, present_s(self.window_s))
        working = len(watched.group.members) > 0
        pace = track.pace(now, window_s=self.window_s) if working else (0.0, written)
        margin_s = 0.0 if position < start else None
        if lag and margin_s is None and partition is not None:
            margin_s = self._outlook.margin_s(partition, position, *pace, now)
        return Progress(
            topic=topic,
            topic_id=key[0],
            partition=key[1],
            committed=committed,
            log_start=start,
            log_end=end,
            lag_records=lag,
            lag_ms=self._lag_ms(watched, key, partition) if lag else 0,
            rate=rate,
            write_rate=write_rate,
            drain_s=drain_s(lag, present if working else 0.0, written),
            verdict=track.verdict(now, end - position, window_s=self.window_s),
            margin_s=margin_s,
        )

    def _lag_ms(self, watched: Watched, key: Key, partition: Partition | None) -> int | None:
        """How long the oldest unread record has been waiting."""
        if partition is None:
            return None
        glance = self._glance(watched, key, partition)
        return None if glance is None else max(0, self._world.clock.wall_ms() - glance.append_time)

    def _glance(self, watched: Watched, key: Key, partition: Partition) -> Glance | None:
        """When it was appended; None: there is none, or it cannot be told."""
        committed = watched.group.offsets.get(key)
        start = partition.log.start
        position = start if committed is None else max(start, committed.offset)
        known = watched.stamps.get(key)
        if known is not None and known[0] == position:
            return Glance(known[1], exact=True)
        if position >= partition.high_watermark:
            return None
        try:
            glance = partition.log.glance(position)
        except OSError:
            return None
        if glance is None or glance.append_time < 0:
            return None
        if glance.exact:
            watched.stamps[key] = (position, glance.append_time)
        return glance


def topics_of(group: Group, catalog: Catalog) -> list[Topic]:
    """The topics that a group reads: its members subscribe to them, or it has offsets of them.

    In an order that does not depend on hashes: a simulation repeats.
    """
    ids = dict.fromkeys(topic_id for topic_id, _ in group.offsets)
    found = [catalog.by_id.get(topic_id) for topic_id in ids]
    found += [catalog.find(name) for name in sorted(group.members.topics())]
    live = {one.topic_id: one for one in found if one is not None and one.state == "live"}
    return list(live.values())
