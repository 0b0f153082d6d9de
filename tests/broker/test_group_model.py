"""A group against members that behave, but whose messages are late, lost, sent twice or overtake
each other; members that pause, crash, come back, and a coordinator that restarts.

Held against it:

- S23: a partition has one owner per assignment epoch, and commits of nobody else count; no two
  members read a partition at once, but for one that was silent for its session, was replaced under
  its instance id, or kept a partition longer than its rebalance timeout;
- S24: committed offsets never fall;
- evenness: a stable group is balanced to within one, and every partition is somebody's;
- L5: left alone, it is stable within three rebalance timeouts.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tailrace.broker import group_record
from tailrace.broker.assignment import Partition
from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings, Who
from tailrace.broker.group_topics import TopicShape, TopicShapes
from tailrace.protocol.errors import GroupFenced
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitPartition,
    HeartbeatRequest,
    HeartbeatResponse,
    OwnedPartitions,
)
from tailrace.protocol.messages_group import AWAY_EPOCH, JOIN_EPOCH, LEAVE_EPOCH

SESSION_S = 10
REBALANCE_S = 30
NAMES = ("ann", "bob", "cid", "dan")
INSTANCES = {"cid": "c", "dan": "c"}  # the same one: each takes over from the other
WHO = Who("client", "127.0.0.1", "1")

some_member = st.sampled_from(NAMES)


@dataclass
class Client:
    """A member as it should behave."""

    name: str
    epoch: int = JOIN_EPOCH
    reading: dict[Partition, int] = field(default_factory=dict[Partition, int])  # with its epoch
    busy: dict[Partition, int] = field(default_factory=dict[Partition, int])  # yet to give up
    sent: int = 0
    heard: int = 0  # the newest request of which it read the answer
    inside: bool = False
    fenced_for_good: bool = False

    def request(self, epoch: int) -> HeartbeatRequest:
        owned: dict[bytes, list[int]] = {}
        for topic_id, number in sorted([*self.reading, *self.busy]):
            owned.setdefault(topic_id, []).append(number)
        return HeartbeatRequest(
            group="g",
            member_id=self.name,
            member_epoch=epoch,
            instance_id=INSTANCES.get(self.name),
            topics=("t",),
            owned=tuple(OwnedPartitions(topic, tuple(some)) for topic, some in owned.items()),
            session_timeout_ms=SESSION_S * 1000,
            rebalance_timeout_ms=REBALANCE_S * 1000,
            wait_ms=0,
            told_generation=-1,
        )

    def drop(self) -> None:
        """Everything is lost; it begins anew."""
        self.epoch = JOIN_EPOCH
        self.reading, self.busy = {}, {}
        self.inside = False
        self.heard = self.sent  # answers to what it said before concern somebody else

    def hear(self, number: int, answer: HeartbeatResponse) -> None:
        if number <= self.heard or not self.inside:
            return
        self.heard = number
        self.epoch = answer.member_epoch
        wanted = {
            (topic.topic_id, one.partition): one.assignment_epoch
            for topic in answer.assigned
            for one in topic.partitions
        }
        had = self.reading | self.busy
        self.reading = wanted
        self.busy = {key: since for key, since in had.items() if key not in wanted}


class GroupModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.partitions = 4
        self.topic_id = b"0" * 16
        self.settings = GroupSettings(assign_delay_s=0)
        self.group = Group("g", self.settings, self.shapes())
        self.clients = {name: Client(name) for name in NAMES}
        self.lives: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.to_group: list[tuple[str, int, int, HeartbeatRequest]] = []  # name, life, number
        self.old: deque[tuple[str, int, int, HeartbeatRequest]] = deque(maxlen=20)
        self.to_client: list[tuple[str, int, int, HeartbeatResponse | GroupFenced]] = []
        self.owner_of: dict[tuple[Partition, int], str] = {}  # by assignment epoch, for ever
        self.let_off: set[tuple[Partition, int, str]] = set()  # readers that may be found reading
        self.withdrawn_at: dict[Partition, tuple[str, float]] = {}
        self.committed: dict[Partition, int] = {}
        self.generation = 0

    def shapes(self) -> TopicShapes:
        return TopicShapes({"t": TopicShape(self.topic_id, self.partitions)})

    @initialize(members=st.lists(some_member, max_size=4), delay_s=st.sampled_from((0, 0.2)))
    def some_are_there(self, members: list[str], delay_s: float) -> None:
        self.settings = GroupSettings(assign_delay_s=delay_s)
        self.group = Group("g", self.settings, self.shapes())
        for name in members:
            self.exchange(name)
            self.everybody_goes_on(done=True)

    # ── what members do ──────────────────────────────────────────────────────────────────────

    @rule(name=some_member)
    def beat(self, name: str) -> None:
        """Send what it owns now; joining if it is outside."""
        client = self.clients[name]
        if client.fenced_for_good:
            return
        client.inside = True
        client.sent += 1
        request = client.request(client.epoch)
        self.to_group.append((name, self.lives[name], client.sent, request))

    @rule(name=some_member, goes_for_good=st.booleans())
    def leave(self, name: str, goes_for_good: bool) -> None:
        """Close: drop everything, then say so."""
        client = self.clients[name]
        client.drop()
        client.sent += 1
        epoch = LEAVE_EPOCH if goes_for_good else AWAY_EPOCH
        self.to_group.append((name, self.lives[name], client.sent, client.request(epoch)))

    @rule(name=some_member)
    def crash(self, name: str) -> None:
        """Gone without a word; starts anew under the same name, knowing nothing."""
        self.clients[name] = Client(name, sent=self.clients[name].sent)
        self.lives[name] += 1

    @rule(name=some_member, number=st.integers(0, 8))
    def finish(self, name: str, number: int) -> None:
        """The record in hand is done: a partition is really given up."""
        self.clients[name].busy.pop((self.topic_id, number), None)

    @rule(name=some_member, number=st.integers(0, 8), offset=st.integers(0, 50))
    def commit(self, name: str, number: int, offset: int) -> None:
        key = (self.topic_id, number)
        client = self.clients[name]
        since = (client.reading | client.busy).get(key)
        if since is not None:
            self._commit(name, key, since, offset)

    @rule(name=some_member, data=st.data(), back=st.integers(0, 2))
    def commit_as_a_zombie(self, name: str, data: st.DataObject, back: int) -> None:
        """Of any partition, as of the present assignment or an older one."""
        key = (self.topic_id, data.draw(st.integers(0, self.partitions - 1)))
        holding = self.group.ownership.holdings.get(key)
        self._commit(name, key, holding.since - back if holding else back, 99)

    # ── what the network does ────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.to_group)
    @rule(data=st.data(), answered=st.booleans())
    def deliver_request(self, data: st.DataObject, answered: bool) -> None:
        """Any of those under way; perhaps its answer is lost."""
        place = data.draw(st.integers(0, len(self.to_group) - 1))
        self._handle(*self.to_group.pop(place), answered)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def deliver_an_old_one_again(self, data: st.DataObject) -> None:
        """Of this life or a former one; joins are not sent twice."""
        self._handle(*data.draw(st.sampled_from(self.old)), answered=False)

    @precondition(lambda self: self.to_client)
    @rule(data=st.data(), lost=st.booleans())
    def deliver_answer(self, data: st.DataObject, lost: bool) -> None:
        place = data.draw(st.integers(0, len(self.to_client) - 1))
        name, life, number, answer = self.to_client.pop(place)
        if not lost:
            self._hear(name, life, number, answer)

    @rule(name=some_member)
    def exchange(self, name: str) -> None:
        """One heartbeat as it mostly goes."""
        client = self.clients[name]
        self.beat(name)
        if client.inside and self.to_group:
            self._handle(*self.to_group.pop(), answered=True)
            self._hear(*self.to_client.pop())

    @rule(done=st.booleans())
    def everybody_goes_on(self, done: bool) -> None:
        """All that are inside exchange; records in hand get done, or not."""
        for name in NAMES:
            if self.clients[name].inside:
                self.exchange(name)
                if done:
                    self.clients[name].busy = {}
                    self.exchange(name)

    # ── what else happens ────────────────────────────────────────────────────────────────────

    @rule(name=some_member)
    def one_is_silent(self, name: str) -> None:
        """For longer than its session, while the others go on."""
        for _ in range(4):
            for other in NAMES:
                if other != name and self.clients[other].inside:
                    self.exchange(other)
            self.time_passes(3)

    @rule(seconds=st.sampled_from((0.1, 3, 11, 31)))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(50):
            due = self.group.next_deadline()
            if due > until:
                break
            self.now = max(self.now, due)
            for member in self.group.expire(self.now):
                self._let_off(member.member_id)
            self._look()
        self.now = until

    @rule()
    def coordinator_restarts(self) -> None:
        """From its records; what is under way to it is lost."""
        old = self.group
        self.group = Group("g", self.settings, self.shapes())
        group_record.restore(self.group, group_record.state_value(old), self.now)
        self.group.applied(old.offsets)
        self.group.reloaded(self.now)
        self.group.written = self.group.changes
        self.to_group.clear()
        assert {key: one.since for key, one in old.ownership.holdings.items()}.items() <= {
            key: one.since for key, one in self.group.ownership.holdings.items()
        }.items()
        for key, holding in self.group.ownership.holdings.items():
            if holding.withdrawn:
                self.withdrawn_at[key] = (holding.owner, self.now)
        self._look()

    @precondition(lambda self: self.partitions < 9)
    @rule()
    def topic_grows(self) -> None:
        self.partitions += 1
        self.group.topics_changed(self.now, self.shapes())
        self._look()

    @precondition(lambda self: self.topic_id == b"0" * 16)
    @rule()
    def topic_is_made_anew(self) -> None:
        """At once, under the same name: another topic."""
        self.topic_id = bytes([self.topic_id[0] + 1]) * 16
        self.group.topics_changed(self.now, self.shapes())
        assert not self.group.offsets
        assert all(topic_id == self.topic_id for topic_id, _ in self.group.ownership.holdings)
        self._look()

    # ── what must hold ───────────────────────────────────────────────────────────────────────

    @invariant()
    def nobody_reads_what_another_one_has(self) -> None:
        for key, holding in self.group.ownership.holdings.items():
            for client in self.clients.values():
                since = (client.reading | client.busy).get(key)
                if since is None or client.name == holding.owner:
                    continue
                assert (key, since, client.name) in self.let_off, f"{client.name} reads {key}, too"

    @invariant()
    def a_stable_group_is_even(self) -> None:
        if not self.group.stable or not len(self.group.members):
            return
        owners = self.group.ownership.owners()
        assert set(owners) == {(self.topic_id, number) for number in range(self.partitions)}
        loads = Counter(owners.values())
        counts = [loads[member] for member in self.group.members.ids()]
        assert max(counts) - min(counts) <= 1

    def teardown(self) -> None:
        """L5: whoever is there goes on, gives up what it shall, or is stuck with it for ever."""
        if not len(self.group.members):
            return
        end = self.now + 3 * REBALANCE_S
        self.to_group.clear()
        self.to_client.clear()
        stuck = {name for name in NAMES if self.clients[name].busy}
        while self.now < end and not (self.group.stable and self.now > end - 2 * REBALANCE_S):
            for name in self.group.members.ids():
                if self.clients[name].inside:
                    if name not in stuck:
                        self.clients[name].busy = {}
                    self.exchange(name)
            self.time_passes(3)
            self.nobody_reads_what_another_one_has()
        assert self.group.stable
        self.a_stable_group_is_even()

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _handle(
        self, name: str, life: int, number: int, request: HeartbeatRequest, answered: bool
    ) -> None:
        before = {member.member_id for member in self.group.members}
        answer: HeartbeatResponse | GroupFenced
        if request.member_epoch > JOIN_EPOCH:
            self.old.append((name, life, number, request))
        if request.member_epoch == JOIN_EPOCH:  # begins its life anew: a former one may be reading
            self._let_off(name, kept=request)
        try:
            self.group.heartbeat(self.now, request, WHO)
            for gone in before - set(self.group.members.ids()):
                self._let_off(gone)
            self.group.written = self.group.changes
            answer = self.group.answer(request)
        except GroupFenced as error:
            answer = error
        self._look()
        if answered:
            self.to_client.append((name, life, number, answer))

    def _hear(
        self, name: str, life: int, number: int, answer: HeartbeatResponse | GroupFenced
    ) -> None:
        client = self.clients[name]
        if life != self.lives[name]:
            return
        if isinstance(answer, HeartbeatResponse):
            client.hear(number, answer)
        elif number > client.heard and client.inside:
            client.fenced_for_good = client.epoch == JOIN_EPOCH
            client.drop()

    def _commit(self, name: str, key: Partition, since: int, offset: int) -> None:
        one = CommitPartition(*key, offset, 0, -1, -1, since, "")
        request = CommitOffsetsRequest("g", name, (one,))
        writes = self.group.check_commit(request, 0)
        self.group.applied(writes.puts)
        result = self.group.commit_response(request, writes).results[0]
        holding = self.group.ownership.holdings.get(key)
        owns = holding is not None and (holding.owner, holding.since) == (name, since)
        assert (result.error is None) == owns
        before = self.committed.get(key, -1)
        assert result.offset == (max(before, offset) if owns else before)
        self.committed[key] = result.offset

    def _let_off(self, name: str, kept: HeartbeatRequest | None = None) -> None:
        """It lost what it has by a rule that it may not know of yet."""
        topics = kept.owned if kept else ()
        owned = {(topic.topic_id, number) for topic in topics for number in topic.partitions}
        client = self.clients[name]
        for key, since in (client.reading | client.busy).items():
            if key not in owned:
                self.let_off.add((key, since, name))

    def _look(self) -> None:
        """After every change: owners are for ever, and they changed by the rules."""
        self.group.written = self.group.changes
        assert self.group.generation >= self.generation
        self.generation = self.group.generation
        holdings = self.group.ownership.holdings
        for key, (owner, since_s) in list(self.withdrawn_at.items()):
            holding = holdings.get(key)
            if holding is not None and holding.owner == owner and holding.withdrawn:
                assert self.now < since_s + REBALANCE_S
                continue
            del self.withdrawn_at[key]
            if self.now >= since_s + REBALANCE_S:
                self._let_off_forced(key, owner)
        for key, holding in holdings.items():
            assert self.owner_of.setdefault((key, holding.since), holding.owner) == holding.owner
            if holding.withdrawn and key not in self.withdrawn_at:
                self.withdrawn_at[key] = (holding.owner, self.now)

    def _let_off_forced(self, key: Partition, owner: str) -> None:
        client = self.clients[owner]
        since = (client.reading | client.busy).get(key)
        if since is not None:
            self.let_off.add((key, since, owner))


GroupModel.TestCase.settings = settings(stateful_step_count=30)
TestGroupModel = GroupModel.TestCase
