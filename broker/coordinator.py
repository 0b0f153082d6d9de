"""The coordinator of consumer groups, as this broker runs it.

A group belongs to the partition of ``__offsets`` that owns the hash of its name; whoever leads that
partition coordinates the group. Its log is read when the lead begins; until then its groups answer
T036, and at any other broker T032.

    Coordinator    finds groups, takes requests to them
    └ Shards       the partitions of __offsets that are led here (offsets_shards.py)
      └ Shard         one of them: its groups, what is to be written (offsets_shard.py)
        └ HostedGroup    a group with its waiting heartbeats and its timer (hosted_group.py)
          └ Group           what it is, as values (group.py)

Invariants:
- whatever is decided is written before anybody is told, in the order of the decisions (R36), and
  on all in-sync replicas: a coordinator that was replaced without knowing acknowledges nothing;
- a group that is asked about exists, or is not there at all: never "not yet" (S25);
- without a lease (``valid``) nothing is answered from memory, as it may be old (R15), and nobody is
  late: members cannot be heard.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import trio

from tailrace.broker import group_changes as changes
from tailrace.broker.appender import Appender
from tailrace.broker.assignment import Partition as PartitionKey
from tailrace.broker.awake import PULSE_S, Awake
from tailrace.broker.bell import Bell
from tailrace.broker.call import Call
from tailrace.broker.config import Config
from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings, Who
from tailrace.broker.group_offsets import Offsets
from tailrace.broker.group_record import read_key, read_offset, restore
from tailrace.broker.group_roster import EXPIRED
from tailrace.broker.group_topics import TopicShape, TopicShapes
from tailrace.broker.hosted_group import HostedGroup
from tailrace.broker.lag_report import not_found
from tailrace.broker.metrics import Metrics
from tailrace.broker.offsets_log import Done, OffsetsLog
from tailrace.broker.offsets_shard import Shard
from tailrace.broker.offsets_shards import Shards
from tailrace.broker.shelf import Shelf
from tailrace.broker.timers import Timers
from tailrace.broker.topics import Topics
from tailrace.broker.world import Offload, World
from tailrace.protocol import texts, texts_group
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    HeartbeatRequest,
)

log = logging.getLogger("tailrace.broker.coordinator")

OFFSETS = "__offsets"
OFFSETS_PARTITIONS = 16
KEYS_AT_ONCE = 200  # taken in before others have their turn


class Coordinator:
    """``syncing`` says whether a round of sync is under way, ``flush`` sends answers, ``valid``
    whether this broker's lease is, ``refresh`` reads again what topics there are (T100)."""

    def __init__(
        self,
        world: World,
        config: Config,
        topics: Topics,
        shelf: Shelf,
        appender: Appender,
        timers: Timers,
        metrics: Metrics,
        *,
        syncing: Callable[[], bool],
        flush: Callable[[], None],
        valid: Callable[[], bool],
        refresh: Callable[[], Awaitable[object]],
    ) -> None:
        self._world = world
        self._settings = GroupSettings(
            broker_id=config.broker.id,
            members_max=config.group.members_max,
            session_timeout_min_ms=config.group.session_timeout_min_ms,
            session_timeout_max_ms=config.group.session_timeout_max_ms,
            assign_delay_s=config.group.assign_delay_s,
        )
        self._topics = topics
        self._timers = timers
        self._metrics = metrics
        self._syncing = syncing
        self._flush = flush
        self._valid = valid
        self._refresh = refresh
        self._awake = Awake(timers, self._back)
        self._bell = Bell()  # there is something to be written
        self._shards = Shards(
            *(shelf, appender, world.clock, timers),
            load=self._load,
            wake=self._bell.ring,
            flush=flush,
        )
        self._shapes = TopicShapes({})
        self._topics_moved = False
        self._stopping = False

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """The topics are there: begin to read what was written down."""
        self._shapes = self._shapes_now()
        now = trio.current_time()
        self._awake.start(now)
        self._timers.at(now + PULSE_S, self._pulse)
        self.leads_changed()

    def leads_changed(self) -> None:
        """This broker leads other partitions than before: groups come and go with them."""
        offsets = self._topics.catalog.find(OFFSETS)
        if offsets is not None:
            self._shards.open(offsets)
            self._shards.follow()
        elif self._shards.topic is not None:
            self._shards.close()

    async def run(self) -> None:
        """Write what was decided, for ever."""
        while True:
            await self._bell.wait()
            if self._topics_moved:
                self._topics_moved = False
                self._regroup()
            if not self._syncing():  # else ``write`` is called at its end, with more to be written
                self.write()

    def write(self) -> None:
        """Append what was decided. To be called, too, when a round of sync has ended and before
        the next begins: so nothing waits for more than two of them."""
        for shard in self._shards:
            shard.write()
        self._flush()

    async def run_loading(self) -> None:
        """Load what is led and not loaded, for ever."""
        await self._shards.run_loading()

    def topics_changed(self) -> None:
        """A topic came, went or was changed, or partitions are led by others than before."""
        self.leads_changed()
        self._topics_moved = True
        self._bell.ring()

    def release(self) -> None:
        """The broker stops: nobody waits for news any longer."""
        self._stopping = True
        for hosted in self._shards.groups():
            hosted.release()

    # ── groups ───────────────────────────────────────────────────────────────────────────────

    @property
    def exists(self) -> bool:
        """Whether there is a topic for groups yet."""
        return self._shards.topic is not None

    async def find(self, group: str) -> int:
        """The partition of ``__offsets`` that holds a group; T031 T100.

        The topic is made at its first use.
        """
        if self._shards.topic is None:
            self._shards.open(await self._topics.internal(OFFSETS, OFFSETS_PARTITIONS))
        return self._shards.number(group)

    def all(self) -> list[Group]:
        """Every group that is coordinated and loaded here."""
        return [hosted.group for hosted in self._shards.groups()]

    def has(self, name: str) -> bool:
        """Whether there is such a group, loaded here."""
        return self._shards.held(name) is not None

    def check_loaded(self) -> None:
        """Raise T032, T036 or T033 unless ``all`` are all that are coordinated here."""
        self._check_lease(None)
        for error in self._shards.follow():
            raise error
        for shard in self._shards:
            self._check_loaded(shard, None)

    def get(self, name: str) -> Group:
        """A group. T043, T036."""
        return self._existing(name)[1].group

    def expire_member(self, name: str, member_id: str) -> None:
        """As if its session had run out now: for tests. T043, T036; ValueError for no member."""
        _, hosted = self._existing(name)
        if member_id not in hosted.group.members:
            known = ", ".join(hosted.group.members.ids()) or "nobody"
            raise ValueError(f"{member_id!r} is no member of group {name!r}; there are: {known}")
        hosted.group.leave(trio.current_time(), member_id, reason=EXPIRED)
        hosted.look()

    def _shard(self, name: str) -> Shard:
        """Where a group lives, loaded; only once there is an ``__offsets``. T032, T036, T033."""
        self._check_lease(name)
        shard = self._shards.of(name)
        self._check_loaded(shard, name)
        return shard

    def _check_lease(self, name: str | None) -> None:
        if not self._valid():
            raise self._no_lease(name)

    def _no_lease(self, name: str | None) -> TailraceError:
        number = 0 if name is None or self._shards.topic is None else self._shards.number(name)
        return texts.not_leader(OFFSETS, number, broker=self._settings.broker_id)

    def _check_loaded(self, shard: Shard, name: str | None) -> None:
        if not shard.loaded:
            raise shard.refusal or self._loading(name)

    def _loading(self, name: str | None) -> TailraceError:
        return texts_group.coordinator_loading(name, broker=self._settings.broker_id)

    def _existing(self, name: str) -> tuple[Shard, HostedGroup]:
        """T043 with similar names, T032, T036."""
        if self._shards.topic is None:
            self._check_lease(name)
            raise not_found(name, ())
        shard = self._shard(name)
        hosted = shard.groups.get(name)
        if hosted is None:
            raise not_found(name, self.all())
        if hosted.leaving:
            raise self._loading(name)
        return shard, hosted

    def _present(self, name: str) -> tuple[Shard, HostedGroup]:
        """The group, or one that is nowhere known yet. T032, T036."""
        shard = self._shard(name)
        hosted = shard.groups.get(name) or self._host(shard, name)
        if hosted.leaving:
            raise self._loading(name)
        return shard, hosted

    def _host(self, shard: Shard, name: str) -> HostedGroup:
        def changed(hosted: HostedGroup) -> None:
            shard.groups.setdefault(name, hosted)
            shard.changed(hosted)

        return HostedGroup(
            Group(name, self._settings, self._shapes),
            broker_id=self._settings.broker_id,
            timers=self._timers,
            metrics=self._metrics,
            changed=changed,
            awake=self._check_awake,
            flush=self._flush,
        )

    # ── requests ─────────────────────────────────────────────────────────────────────────────

    def heartbeat(self, call: Call, request: HeartbeatRequest, who: Who) -> None:
        """Answered when there is news. T032 T036 T042 T070 T082."""
        _, hosted = self._present(request.group)
        hosted.beat(call, request, who)
        if self._stopping:
            hosted.release()

    def commit(self, call: Call, request: CommitOffsetsRequest) -> None:
        """Answered when it is durable on all in-sync replicas. T032 T036 T044, and those of a write
        that fails."""
        changes.commit(
            *self._present(request.group), call, request, self._world.clock.wall_ms(), self._metrics
        )

    def fetch(self, request: FetchOffsetsRequest) -> FetchOffsetsResponse:
        """What is committed, durably. T032 T036."""
        if self._shards.topic is None:
            self._check_lease(request.group)
            return FetchOffsetsResponse(Offsets().fetch(request.partitions))
        return self._present(request.group)[1].group.fetch(request.partitions)

    def reset(self, name: str, targets: Mapping[PartitionKey, int], done: Done) -> None:
        """Move committed offsets, all of them or none; ``done`` is told once. T032 T036 T043
        T044."""
        changes.reset(*self._existing(name), targets, self._world.clock.wall_ms(), done)

    def delete(self, name: str, done: Done) -> None:
        """Forget a group; ``done`` is told once. T032 T036 T043 T044."""
        changes.delete(*self._existing(name), self._metrics, done)

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    def _shapes_now(self) -> TopicShapes:
        catalog = self._topics.catalog
        found = (catalog.by_name[name] for name in catalog.names(internal=True))
        return TopicShapes(
            {topic.name: TopicShape(topic.topic_id, len(topic.partitions)) for topic in found}
        )

    def _regroup(self) -> None:
        """Tell every group of the topics there are."""
        shapes = self._shapes_now()
        if shapes.by_name == self._shapes.by_name:
            return
        self._shapes = shapes
        now = trio.current_time()
        for shard in self._shards:
            if shard.loaded:
                for hosted in shard.groups.values():
                    self._adapt(shard, hosted, now)

    def _back(self, now: float) -> None:
        """This broker was away: nobody's session ended meanwhile."""
        for group in self.all():
            group.fresh_sessions(now)

    def _check_awake(self, now: float) -> None:
        """Before anybody is said to be late."""
        if self._valid():
            self._awake.check(now)
        else:
            self._back(now)

    def _pulse(self) -> None:
        """Who waits for a coordinator without a lease looks elsewhere."""
        now = trio.current_time()
        if not self._valid():
            self._back(now)
            for hosted in self._shards.groups():
                hosted.turn_away(self._no_lease(hosted.group.name))
            self._flush()
        self._timers.at(now + PULSE_S, self._pulse)

    def _adapt(self, shard: Shard, hosted: HostedGroup, now: float) -> None:
        orphans = hosted.group.topics_changed(now, self._shapes)
        changes.bury_offsets(shard, hosted.group, orphans)
        hosted.look()

    # ── loading ──────────────────────────────────────────────────────────────────────────────

    async def _load(self, shard: Shard) -> None:
        """T031, T032, T033, T100; ``RecordError``."""
        began = self._world.clock.now()
        groups = await read_groups(shard.log, self._world.offload, partial(self._host, shard))
        committed = {topic_id for one in groups.values() for topic_id, _ in one.group.offsets}
        if not committed <= self._shapes.names.keys():
            await self._refresh()  # a topic may be too new to be known here: no orphan of it yet
            self._regroup()
        shard.log.led()  # with no await behind it: what was read is all there is, and ours
        if shard.gone is not None:
            return
        now = trio.current_time()
        shard.loaded, shard.refusal, shard.groups = True, None, groups
        for hosted in groups.values():
            hosted.group.fresh_sessions(now)
            hosted.group.reloaded(now)
            self._adapt(shard, hosted, now)
        if groups:
            log.info(
                "loaded %d groups with %d offsets from __offsets[%d] in %.3f s",
                *(len(groups), sum(len(one.group.offsets) for one in groups.values())),
                *(shard.log.number, self._world.clock.now() - began),
                extra={"event": "group.loaded", "code": None},
            )


async def read_groups(
    log: OffsetsLog, offload: Offload, host: Callable[[str], HostedGroup]
) -> dict[str, HostedGroup]:
    """The groups by name, as they were written. T031, T032, T033; ``RecordError``."""
    groups: dict[str, HostedGroup] = {}
    for count, (key, value) in enumerate((await log.replay(offload)).items(), 1):
        name, partition = read_key(key)
        if name not in groups:
            groups[name] = host(name)
        if partition is None:
            restore(groups[name].group, value, trio.current_time())
        else:
            groups[name].group.applied({partition: read_offset(value)})
        if count % KEYS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return groups
