"""The oracle of groups sees two owners, a lost commit, a skipped record; and not more."""

import pytest
import trio
from trio.testing import MockClock

from tailrace.protocol.fields import WireError
from tailrace.protocol.messages import (
    AssignedPartition,
    AssignedTopic,
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    CommitPartition,
    CommitResult,
    CommittedOffset,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    OffsetTarget,
    OwnedPartitions,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
)
from tailrace.simulation.freeze import Freezer
from tailrace.simulation.group_oracle import GroupOracle
from tailrace.simulation.group_tap import Answer, Asked, Question

TOPIC_ID, GROUP = bytes(range(16)), "g"
WHERE = "orders", 0
SESSION_S, REBALANCE_S = 2.0, 4.0


class Net:
    """Requests and answers made by hand; everything arrives at once."""

    def __init__(self) -> None:
        self.oracle = GroupOracle()

    def say(self, now: float, client: str, asked: Asked) -> Question:
        question = Question(client, asked)
        self.oracle.sent(now, question)
        self.oracle.arrived(now, question)
        return question

    def answer(self, now: float, question: Question, answer: Answer) -> None:
        self.oracle.answered(now, question, answer)

    def beat(self, now: float, member: str, epoch: int, *, owns: bool) -> Question:
        owned = (OwnedPartitions(TOPIC_ID, (0,)),) if owns else ()
        asked = HeartbeatRequest(
            *(GROUP, member, epoch, None, ("orders",), owned),
            *(int(SESSION_S * 1000), int(REBALANCE_S * 1000), 600, -1),
        )
        return self.say(now, member, asked)

    def tell(self, now: float, question: Question, epoch: int, since: int | None) -> None:
        """``since``: the assignment epoch of its partition, None: it has none."""
        partitions = () if since is None else (AssignedPartition(0, since, False),)
        topics = (AssignedTopic("orders", TOPIC_ID, partitions),)
        answer = HeartbeatResponse(epoch, since or 9, 600, topics, True, 1, 1, ())
        self.answer(now, question, answer)

    def join(self, now: float, member: str, *, epoch: int, since: int | None) -> None:
        self.tell(now, self.beat(now, member, 0, owns=False), epoch, since)

    def commit(
        self, now: float, member: str, offset: int, since: int, *, code: int | None = None
    ) -> None:
        one = CommitPartition(TOPIC_ID, 0, offset, -1, -1, -1, since, "")
        question = self.say(now, member, CommitOffsetsRequest(GROUP, member, (one,)))
        error = None if code is None else WireError(code, "refused", "", {})
        result = CommitResult(TOPIC_ID, 0, error, offset)
        self.answer(now, question, CommitOffsetsResponse((result,)))

    def ask(self, now: float, client: str) -> Question:
        return self.say(now, client, FetchOffsetsRequest(GROUP, None))

    def show(self, now: float, question: Question, offset: int | None) -> None:
        found = () if offset is None else (CommittedOffset(TOPIC_ID, 0, offset, -1, -1, -1, 0, ""),)
        self.answer(now, question, FetchOffsetsResponse(found))

    def did(self, *offsets: int) -> None:
        self.oracle.done[WHERE] |= set(offsets)

    @property
    def broken(self) -> list[str]:
        return [one.invariant for one in self.oracle.violations]


@pytest.fixture
def net() -> Net:
    return Net()


def test_partition_that_was_released_may_change_hands(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.tell(0.5, net.beat(0.4, "a", 1, owns=True), 2, None)
    net.beat(0.6, "a", 2, owns=False)
    net.join(0.7, "b", epoch=3, since=2)
    assert net.broken == []


def test_partition_that_was_not_released_may_not(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.tell(0.5, net.beat(0.4, "a", 1, owns=True), 2, None)
    net.join(0.7, "b", epoch=3, since=2)
    assert net.broken == ["S23"]


def test_heartbeat_from_before_the_assignment_releases_nothing(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=None)
    older = net.beat(0.1, "a", 1, owns=False)
    net.tell(0.2, older, 2, 1)
    net.beat(0.3, "a", 1, owns=False)
    net.join(0.4, "b", epoch=3, since=2)
    assert net.broken == ["S23"]


@pytest.mark.parametrize(("after_s", "broken"), [(SESSION_S + 0.1, []), (SESSION_S - 0.1, ["S23"])])
def test_silent_owner_loses_what_it_has(net: Net, after_s: float, broken: list[str]) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.join(after_s, "b", epoch=3, since=2)
    assert net.broken == broken


def test_two_owners_of_one_generation_are_never_right(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.join(9.0, "b", epoch=3, since=1)
    assert net.broken == ["S23"]


@pytest.mark.parametrize(("code", "broken"), [(None, ["S23"]), (42, [])])
def test_late_commit_of_a_former_owner_is_refused(
    net: Net, code: int | None, broken: list[str]
) -> None:
    net.did(0, 1, 2)
    net.join(0.0, "a", epoch=1, since=1)
    net.join(9.0, "b", epoch=3, since=2)
    net.commit(9.1, "a", 3, 1, code=code)
    assert net.broken == broken


@pytest.mark.parametrize(
    ("shown", "broken"), [(5, []), (7, []), (4, ["S24"]), (-1, ["S24"]), (None, ["S24"])]
)
def test_acked_commit_is_returned_from_then_on(
    net: Net, shown: int | None, broken: list[str]
) -> None:
    net.did(*range(5))
    net.join(0.0, "a", epoch=1, since=1)
    net.commit(1.0, "a", 5, 1)
    net.show(2.0, net.ask(2.0, "b"), shown)
    assert net.broken == broken


def test_answer_to_an_older_question_may_be_older(net: Net) -> None:
    net.did(*range(5))
    net.join(0.0, "a", epoch=1, since=1)
    question = net.ask(0.9, "b")
    net.commit(1.0, "a", 5, 1)
    net.show(2.0, question, None)
    assert net.broken == []


def test_reset_may_lower_what_is_committed(net: Net) -> None:
    net.did(*range(5))
    net.join(0.0, "a", epoch=1, since=1)
    net.commit(1.0, "a", 5, 1)
    question = net.say(
        2.0, "admin", ResetOffsetsRequest(GROUP, (OffsetTarget(TOPIC_ID, 0, 2),), False)
    )
    net.show(2.1, net.ask(2.1, "b"), 2)
    net.answer(2.2, question, ResetOffsetsResponse(()))
    net.show(2.3, net.ask(2.3, "b"), 2)
    assert net.broken == []
    net.show(2.4, net.ask(2.4, "b"), 1)
    assert net.broken == ["S24"]


def test_member_reads_on_from_where_the_group_stands(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.show(0.2, net.ask(0.1, "a"), 3)
    for offset in (3, 4):
        net.oracle.read(0.3, GROUP, "a", WHERE, 1, offset)
    net.oracle.sought("a", WHERE, 1, 0)
    net.oracle.read(0.4, GROUP, "a", WHERE, 1, 0)
    assert net.broken == []
    net.oracle.read(0.5, GROUP, "a", WHERE, 1, 2)
    assert net.broken == ["S25"]


def test_member_may_begin_anew_where_it_asked_again(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.show(0.2, net.ask(0.1, "a"), 3)
    for offset in (3, 4):
        net.oracle.read(0.3, GROUP, "a", WHERE, 1, offset)
    net.show(0.5, net.ask(0.4, "a"), 4)
    net.oracle.read(0.6, GROUP, "a", WHERE, 1, 4)
    assert net.broken == []
    net.oracle.read(0.7, GROUP, "a", WHERE, 1, 4)
    assert net.broken == ["S25"]


@pytest.mark.parametrize("first", [0, 2, 4])
def test_member_begins_nowhere_else(net: Net, first: int) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.show(0.2, net.ask(0.1, "a"), 3)
    net.oracle.read(0.3, GROUP, "a", WHERE, 1, first)
    assert net.broken == ["S25"]


def test_nothing_is_read_after_it_was_released(net: Net) -> None:
    net.join(0.0, "a", epoch=1, since=1)
    net.show(0.2, net.ask(0.1, "a"), 0)
    net.oracle.read(0.3, GROUP, "a", WHERE, 1, 0)
    net.tell(0.5, net.beat(0.4, "a", 1, owns=True), 2, None)
    net.beat(0.6, "a", 2, owns=False)
    net.oracle.read(0.7, GROUP, "a", WHERE, 1, 1)
    assert net.broken == ["S23"]


def test_nothing_is_committed_that_nobody_processed(net: Net) -> None:
    net.did(0, 2)
    net.join(0.0, "a", epoch=1, since=1)
    net.commit(0.1, "a", 1, 1)
    assert net.broken == []
    net.commit(0.2, "a", 3, 1)
    assert net.broken == ["S25"]


def test_frozen_process_goes_on_where_it_was_even_if_it_was_cancelled() -> None:
    async def main() -> list[float]:
        freezer, moments = Freezer(), list[float]()

        async def work() -> None:
            await trio.sleep(1.0)
            moments.append(trio.current_time())
            try:
                await trio.sleep(100.0)
            finally:
                moments.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(freezer.drive, work())
            await trio.sleep(0.5)
            freezer.freeze(5.0)
            await trio.sleep(6.5)
            freezer.freeze(5.0)
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        return moments

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) == [5.5, 12.0]
