"""Watches the groups of one broker from outside: what was asked, told, committed, read.

It shares no state with the broker or its clients; it goes by what passed the network
(``group_tap.py``) and by what members say they were handed and are done with:

- S23: nobody is told that it has a partition that another one was told of, unless that one
  released it, left, was silent for its session or had its rebalance timeout to release it; the
  assignment epoch rises with every new owner; a commit that arrived after another owner was told
  is refused; a member reads nothing that it has released;
- S24: what was acked or shown is what every later answer shows, or more; less only after a reset;
- S25: a member begins to read a partition where an answer told it that the group stands, and then
  misses nothing and repeats nothing; "nothing is committed" is no answer after a commit;
- C12: nothing is committed by a member before everything below it was done by somebody.

A request is judged by what was known when it arrived (``Seen``): an answer may be older than one
that overtook it.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
)
from tailrace.protocol.messages_group import JOIN_EPOCH, NO_MEMBER, OwnedPartitions
from tailrace.simulation.checkers import Violation
from tailrace.simulation.group_tap import Answer, Key, Question, Seen
from tailrace.simulation.history import Where

FENCED = 42  # T042
ROUNDED_S = 0.002  # durations travel in whole ms


@dataclass
class Tenure:
    """One owner of one partition, as it was told. ``epoch``: of the assignment."""

    member: str
    epoch: int
    known_since: int  # the member epoch with which it was told
    named_at: float  # when it was told of it last
    free: bool = False  # somebody else may have it: the owner said so, went, or was away too long


@dataclass
class Party:
    """One member, as its heartbeats say."""

    session_s: float
    rebalance_s: float
    instance_id: str | None
    heard_at: float
    told: dict[Key, tuple[int, int]] = field(
        default_factory=dict[Key, tuple[int, int]]
    )  # assignment epoch, and the newest member epoch that named it
    epochs: dict[Key, set[int]] = field(default_factory=dict[Key, set[int]])  # of assignments
    given_up: set[tuple[Key, int]] = field(default_factory=set[tuple[Key, int]])


@dataclass
class Reading:
    """Of one partition under one assignment."""

    expected: int | None = None  # the next offset; None: it has not begun
    answers: set[int] = field(default_factory=set[int])  # since it began: where it may begin (anew)


@dataclass
class GroupView:
    """What there is to know of one group."""

    tenures: dict[Key, Tenure] = field(default_factory=dict[Key, Tenure])
    parties: dict[str, Party] = field(default_factory=dict[str, Party])
    floors: dict[Key, int] = field(default_factory=dict[Key, int])  # acked or shown (S24)
    resets: dict[Question, None] = field(default_factory=dict[Question, None])  # unanswered


class GroupOracle:
    """An ``Observer``. ``violations`` grows as something goes wrong."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.commits = 0  # partitions of commits that were acked
        self.refused = 0  # and of those that were refused by T042
        self.told = 0  # partitions that came to a member
        self.done: dict[Where, set[int]] = defaultdict(set)  # processed, by any member
        self._groups: dict[str, GroupView] = defaultdict(GroupView)
        self._names: dict[bytes, str] = {}
        self._gone: set[bytes] = set()  # topics that were deleted, perhaps
        self._members: dict[str, str] = {}  # member id by client
        self._readings: dict[tuple[str, Where, int], Reading] = {}  # client, where, epoch
        self._done_below: dict[Where, int] = defaultdict(int)

    # ── what members say ─────────────────────────────────────────────────────────────────────

    def read(self, now: float, group: str, client: str, where: Where, epoch: int, at: int) -> None:
        """A member was handed the record at an offset, under that assignment."""
        reading = self._readings.setdefault((client, where, epoch), Reading())
        what = f"{client} read {where[0]}[{where[1]}]@{at} at {now:.6f} s"
        if at != reading.expected:
            if at not in reading.answers:
                stands, after = sorted(reading.answers) or "nothing", reading.expected
                self._violated(
                    "S25", f"{what}, the next was {after}; it was told to begin at {stands}"
                )
            reading.answers.clear()  # it may begin again where a later answer says
        reading.expected = at + 1
        party = self._groups[group].parties.get(self._members.get(client, ""))
        if party is not None:
            for (topic_id, number), since in party.given_up:
                if (self._names[topic_id], number) == where and since == epoch:
                    self._violated("S23", f"{what}, which it had released")

    def sought(self, client: str, where: Where, epoch: int, to: int) -> None:
        """A member chose another place in a partition."""
        self._readings.setdefault((client, where, epoch), Reading()).expected = to

    def topic_goes(self, topic_id: bytes) -> None:
        """Somebody is about to delete it: what is committed of it goes, sooner or later."""
        self._gone.add(topic_id)

    # ── what passes the network ──────────────────────────────────────────────────────────────

    def sent(self, now: float, question: Question) -> None:
        """See ``Observer``."""
        message = question.message
        if isinstance(message, CommitOffsetsRequest) and message.member_id != NO_MEMBER:
            self._check_done(now, message)
        elif isinstance(message, HeartbeatRequest):
            self._members[question.client] = message.member_id
            self._note_given_up(message)
        elif isinstance(message, ResetOffsetsRequest) and not message.dry_run:
            self._groups[message.group].resets[question] = None

    def arrived(self, now: float, question: Question) -> None:
        """See ``Observer``."""
        message = question.message
        if isinstance(message, HeartbeatRequest):
            self._hear(now, message)
            return
        group = self._groups[message.group]
        owners = {key: (tenure.member, tenure.epoch) for key, tenure in group.tenures.items()}
        question.seen = Seen(dict(group.floors), owners)

    def answered(self, now: float, question: Question, answer: Answer) -> None:
        """See ``Observer``."""
        match question.message, answer:
            case HeartbeatRequest() as asked, HeartbeatResponse():
                self._tell(now, asked, answer)
            case CommitOffsetsRequest() as asked, CommitOffsetsResponse():
                self._ack(now, question, asked, answer)
            case FetchOffsetsRequest() as asked, FetchOffsetsResponse():
                self._show(now, question, asked, answer)
            case ResetOffsetsRequest() as asked, ResetOffsetsResponse():
                self._groups[asked.group].resets.pop(question, None)
                if not asked.dry_run:
                    floors = self._groups[asked.group].floors
                    floors |= {(one.topic_id, one.partition): one.offset for one in asked.targets}
            case _:
                pass

    # ── members ──────────────────────────────────────────────────────────────────────────────

    def _hear(self, now: float, asked: HeartbeatRequest) -> None:
        group = self._groups[asked.group]
        party = group.parties.get(asked.member_id)
        if party is None:
            party = group.parties[asked.member_id] = Party(0.0, 0.0, None, now)
        owned = _owned(asked.owned)
        away = now - party.heard_at >= party.session_s - ROUNDED_S
        for key, tenure in group.tenures.items():
            if tenure.member == asked.member_id:
                knows = asked.member_epoch <= JOIN_EPOCH or asked.member_epoch >= tenure.known_since
                if away or (knows and key not in owned):
                    tenure.free = True
            elif asked.member_epoch == JOIN_EPOCH and asked.instance_id is not None:
                other = group.parties[tenure.member]
                if other.instance_id == asked.instance_id:
                    tenure.free = True  # it takes over
        party.heard_at, party.instance_id = now, asked.instance_id
        party.session_s = asked.session_timeout_ms / 1000
        party.rebalance_s = asked.rebalance_timeout_ms / 1000

    def _tell(self, now: float, asked: HeartbeatRequest, answer: HeartbeatResponse) -> None:
        group, member = self._groups[asked.group], asked.member_id
        party = group.parties[member]
        if asked.member_epoch < JOIN_EPOCH:
            self._let_go(group, member)
            return
        for topic in answer.assigned:
            self._names[topic.topic_id] = topic.topic
            for one in topic.partitions:
                key = topic.topic_id, one.partition
                party.told[key] = one.assignment_epoch, answer.member_epoch
                party.epochs.setdefault(key, set()).add(one.assignment_epoch)
                party.given_up.discard((key, one.assignment_epoch))
                self._name_owner(now, group, key, member, one.assignment_epoch, answer.member_epoch)

    def _name_owner(
        self, now: float, group: GroupView, key: Key, member: str, epoch: int, member_epoch: int
    ) -> None:
        old = group.tenures.get(key)
        if old is not None and (old.member, old.epoch) == (member, epoch):
            old.named_at = now
            if old.free:  # a withdrawal was taken back
                old.free, old.known_since = False, member_epoch
            return
        self.told += 1
        group.tenures[key] = Tenure(member, epoch, member_epoch, now)
        if old is None:
            return
        what = f"{self._name(key)} is {member[:8]}'s since {epoch}, told at {now:.6f} s"
        if epoch <= old.epoch:
            self._violated("S23", f"{what}; it was {old.member[:8]}'s since {old.epoch}")
        elif old.member != member and not self._may_change(now, group, old):
            self._violated(
                "S23", f"{what}; {old.member[:8]} has not released it, told at {old.named_at:.6f} s"
            )

    def _may_change(self, now: float, group: GroupView, old: Tenure) -> bool:
        party = group.parties[old.member]
        return (
            old.free
            or now - party.heard_at >= party.session_s - ROUNDED_S
            or now - old.named_at >= party.rebalance_s - ROUNDED_S
        )

    def _let_go(self, group: GroupView, member: str) -> None:
        for tenure in group.tenures.values():
            if tenure.member == member:
                tenure.free = True

    def _note_given_up(self, asked: HeartbeatRequest) -> None:
        party = self._groups[asked.group].parties.get(asked.member_id)
        if party is None or asked.member_epoch < JOIN_EPOCH:
            return
        owned = _owned(asked.owned)
        for key, (epoch, told_with) in party.told.items():
            begins_anew = asked.member_epoch == JOIN_EPOCH
            if key not in owned and (begins_anew or told_with <= asked.member_epoch):
                party.given_up.add((key, epoch))

    # ── offsets ──────────────────────────────────────────────────────────────────────────────

    def _check_done(self, now: float, asked: CommitOffsetsRequest) -> None:
        """C12, S25: what is committed is done, so nobody who goes on there misses it."""
        for one in asked.partitions:
            name = self._names.get(one.topic_id)
            if name is None or one.topic_id in self._gone:
                continue
            where = name, one.partition
            below, done = self._done_below[where], self.done[where]
            while below in done:
                below += 1
            self._done_below[where] = below
            if one.offset > below:
                self._violated(
                    "S25",
                    f"{asked.member_id[:8]} commits {name}[{one.partition}]@{one.offset} at "
                    f"{now:.6f} s; {below} was not processed by anybody",
                )
                self._done_below[where] = one.offset  # told once

    def _ack(
        self,
        now: float,
        question: Question,
        asked: CommitOffsetsRequest,
        answer: CommitOffsetsResponse,
    ) -> None:
        group = self._groups[asked.group]
        assert question.seen is not None, "answered before it arrived"
        floors, owners = question.seen.floors, question.seen.owners
        for one, result in zip(asked.partitions, answer.results, strict=True):
            if result.error is not None:
                self.refused += result.error.code == FENCED
                continue
            key = one.topic_id, one.partition
            self.commits += 1
            owner = owners.get(key)
            mine = asked.member_id, one.assignment_epoch
            if asked.member_id != NO_MEMBER and owner != mine:
                self._violated(
                    "S23",
                    f"{self._name(key)}@{one.offset} committed by {mine[0][:8]} of {mine[1]} at "
                    f"{now:.6f} s, while {owner and owner[0][:8]} of {owner and owner[1]} had it",
                )
            least = max(one.offset, floors.get(key, -1))
            self._check_floor(now, group, key, result.offset, least, "acked")

    def _show(
        self,
        now: float,
        question: Question,
        asked: FetchOffsetsRequest,
        answer: FetchOffsetsResponse,
    ) -> None:
        group = self._groups[asked.group]
        assert question.seen is not None, "answered before it arrived"
        floors = question.seen.floors
        shown = {(one.topic_id, one.partition): one.offset for one in answer.offsets}
        if asked.partitions is None:
            shown = dict.fromkeys(floors, -1) | shown
        for key, offset in shown.items():
            self._check_floor(now, group, key, offset, floors.get(key, -1), "shown")
            self._note_start(group, question.client, key, offset)

    def _check_floor(
        self, now: float, group: GroupView, key: Key, offset: int, floor: int, what: str
    ) -> None:
        if key[0] in self._gone:
            group.floors.pop(key, None)
            return
        for question in group.resets:
            assert isinstance(question.message, ResetOffsetsRequest)
            for one in question.message.targets:
                if (one.topic_id, one.partition) == key:
                    floor = min(floor, one.offset)
        if offset < floor:
            self._violated(
                "S24", f"{self._name(key)}: {offset} {what} at {now:.6f} s, after {floor}"
            )
        group.floors[key] = max(offset, group.floors.get(key, -1))

    def _note_start(self, group: GroupView, client: str, key: Key, offset: int) -> None:
        """Somebody was told where the group stands: a member may begin to read there."""
        party = group.parties.get(self._members.get(client, ""))
        if party is not None and key in party.told:
            where = self._names[key[0]], key[1]
            for epoch in party.epochs[key]:  # it may not have heard of the newest yet
                reading = self._readings.setdefault((client, where, epoch), Reading())
                reading.answers.add(max(offset, 0))

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _name(self, key: Key) -> str:
        return f"{self._names.get(key[0], key[0].hex()[:8])}[{key[1]}]"

    def _violated(self, invariant: str, what: str) -> None:
        self.violations.append(Violation(invariant, what))


def _owned(topics: Iterable[OwnedPartitions]) -> set[Key]:
    return {(topic.topic_id, number) for topic in topics for number in topic.partitions}
