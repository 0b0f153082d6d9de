"""Members and their coordinator, joined in memory: whatever gets lost between them, they agree.

The client's half is the real ``Pulse`` and ``Membership``, the broker's the real ``Group``; between
them connections break, heartbeats and answers get lost, members stand still and come back.
"""

from collections import deque
from dataclasses import dataclass, field
from random import Random

import pytest

from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings, Who
from tailrace.broker.group_topics import TopicShape, TopicShapes
from tailrace.client.membership import (
    Assigned,
    Assignment,
    Event,
    Failed,
    Identity,
    Lost,
    Membership,
    Withdrawn,
)
from tailrace.client.pulse import Beat, Pulse
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import HeartbeatResponse

PARTITIONS = 7
TOPIC_ID = b"t" * 16
SHAPES = TopicShapes({"orders": TopicShape(TOPIC_ID, PARTITIONS)})
SETTLED_S = 60.0  # without faults, long after everything is over


@dataclass(eq=False)
class Reader:
    """One member, what its user has in hand, and its connection."""

    name: str
    pulse: Pulse
    reads: dict[int, Assignment] = field(default_factory=dict[int, Assignment])
    to_release: list[Assignment] = field(default_factory=list[Assignment])
    outbox: deque[Beat] = field(default_factory=deque[Beat])
    inbox: deque[tuple[Beat, HeartbeatResponse | TailraceError]] = field(
        default_factory=deque[tuple[Beat, HeartbeatResponse | TailraceError]]
    )
    asleep_until: float = 0.0
    thrown_out: bool = False  # and it does not know yet
    gone: bool = False

    def happened(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Assigned(partitions):
                    for one in partitions:
                        assert one.partition not in self.reads, "assigned twice"
                        self.reads[one.partition] = one
                case Withdrawn(partitions):
                    for one in partitions:
                        assert self.reads[one.partition] == one
                        self.to_release.append(one)
                case Lost(partitions):
                    for one in partitions:
                        assert self.reads.pop(one.partition) == one
                    self.to_release = [one for one in self.to_release if one not in partitions]
                    self.thrown_out = False
                case Failed(error):
                    raise error
                case _:
                    pass


class World:
    """A group, its members, and chance."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.group = Group("g", GroupSettings(assign_delay_s=0.2), SHAPES)
        self.readers: list[Reader] = []
        self.held: list[tuple[Reader, Beat, float]] = []
        self.calm = False
        for _ in range(self.random.randint(1, 4)):
            self.join()

    # ── what may happen ──────────────────────────────────────────────────────────────────────

    def join(self) -> None:
        name = f"m{len(self.readers)}"
        who = Identity("g", name, None, ("orders",), 9_000, 1_000_000)
        self.readers.append(Reader(name, Pulse(Membership(who), self.random)))

    def leave(self, reader: Reader) -> None:
        reader.pulse.leave()
        reader.reads.clear()  # it stops reading before it says so
        reader.to_release.clear()
        reader.gone = True

    def break_connection(self, reader: Reader) -> None:
        """What was on its way may have arrived, or not; nothing comes back."""
        while reader.outbox and self.random.random() < 0.5:
            self.arrive(reader, reader.outbox.popleft())
        reader.outbox.clear()
        reader.inbox.clear()
        self.held = [one for one in self.held if one[0] is not reader]
        reader.pulse.lost_connection(self.now)

    def fall_asleep(self, reader: Reader) -> None:
        reader.asleep_until = self.now + self.random.choice((1.0, 8.0, 20.0))

    def act(self, reader: Reader) -> None:
        """Its thread and its user get to run."""
        if self.now < reader.asleep_until:
            return
        while reader.inbox:
            beat, answer = reader.inbox.popleft()
            if isinstance(answer, TailraceError):
                reader.happened(reader.pulse.refused(beat, answer, self.now))
            else:
                reader.happened(reader.pulse.answered(beat, answer, self.now))
        if self.now >= reader.pulse.overdue_at():
            self.break_connection(reader)
        while reader.to_release and (self.calm or self.random.random() < 0.5):
            one = reader.to_release.pop(0)
            del reader.reads[one.partition]
            reader.happened(reader.pulse.release(one))
        while reader.pulse.next_at() <= self.now:
            reader.outbox.append(reader.pulse.send(self.now))

    # ── the coordinator ──────────────────────────────────────────────────────────────────────

    def arrive(self, reader: Reader, beat: Beat) -> None:
        older = [one for one in self.held if one[0] is reader]
        self.held = [one for one in self.held if one[0] is not reader]
        try:
            self.group.heartbeat(self.now, beat.request, Who(reader.name, "", ""))
        except TailraceError as error:
            reader.inbox.append((beat, error))
            return
        self.group.written = self.group.changes
        for _, old, _ in older:
            self.answer(reader, old)
        self.held.append((reader, beat, self.now + self.group.hold_s(beat.request)))

    def answer(self, reader: Reader, beat: Beat) -> None:
        try:
            reader.inbox.append((beat, self.group.answer(beat.request)))
        except TailraceError as error:
            reader.inbox.append((beat, error))

    def coordinate(self) -> None:
        for member in self.group.expire(self.now):
            next(r for r in self.readers if r.name == member.member_id).thrown_out = True
        self.group.written = self.group.changes
        held, self.held = self.held, []
        for reader, beat, until in held:
            if beat.last or self.now >= until or self.group.ready(beat.request):
                self.answer(reader, beat)
            else:
                self.held.append((reader, beat, until))

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def turn(self) -> None:
        self.now += self.random.choice((0.001, 0.01, 0.1, 0.5))
        if not self.calm:
            self.disturb()
        for reader in self.random.sample(self.readers, len(self.readers)):
            self.act(reader)
            while reader.outbox and (self.calm or self.random.random() < 0.8):
                self.arrive(reader, reader.outbox.popleft())
        self.coordinate()
        self.check()

    def disturb(self) -> None:
        alive = [reader for reader in self.readers if not reader.gone]
        chance = self.random.random()
        if chance < 0.02 and len(alive) < 6:
            self.join()
        elif alive and chance < 0.03:
            self.leave(self.random.choice(alive))
        elif alive and chance < 0.08:
            self.break_connection(self.random.choice(alive))
        elif alive and chance < 0.10:
            self.fall_asleep(self.random.choice(alive))

    def check(self) -> None:
        """S23 from where the members stand."""
        for reader in self.readers:
            if not reader.thrown_out and reader.name in self.group.members:
                for number, one in reader.reads.items():
                    assert self.group.owner(TOPIC_ID, number) == reader.name
                    holding = self.group.ownership.holdings[TOPIC_ID, number]
                    assert holding.since == one.assignment_epoch

    def check_settled(self) -> None:
        alive = [reader for reader in self.readers if not reader.gone]
        assert self.group.stable
        assert self.group.members.ids() == sorted(reader.name for reader in alive)
        counts = [len(reader.reads) for reader in alive]
        assert sum(counts) == (PARTITIONS if alive else 0)
        assert not alive or max(counts) - min(counts) <= 1
        assert all(reader.to_release == [] for reader in self.readers)


@pytest.mark.parametrize("seed", range(40))
def test_members_and_coordinator_agree_whatever_gets_lost(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.turn()
    world.calm = True
    ends_at = world.now + SETTLED_S
    while world.now < ends_at:
        world.turn()
    world.check_settled()
