"""What is due to be committed, what a commit may not be, and how they follow each other."""

import math
from functools import partial

import anyio
import pytest

from tailrace.client.commits import CommitPoint, Commits, Ledger, check_metadata
from tailrace.client.coordinator import Coordinator
from tailrace.client.membership import Assignment
from tailrace.protocol import texts, texts_group
from tailrace.protocol.errors import ConfigError, RequestTimeout, TailraceError, to_wire
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    CommitResult,
    Request,
    Response,
)
from tests.client.world import Run, World


def assignment(partition: int, epoch: int = 1) -> Assignment:
    return Assignment("orders", b"t" * 16, partition, epoch, added_later=False)


def test_what_is_committed_already_is_not_due() -> None:
    ledger = Ledger()
    zero, one = assignment(0), assignment(1)
    points = {zero: CommitPoint(5), one: CommitPoint(3)}
    assert ledger.due(points) == points
    ledger.stored(zero, 5)
    assert ledger.due(points) == {one: CommitPoint(3)}
    assert ledger.due({zero: CommitPoint(6)}) == {zero: CommitPoint(6)}


def test_lower_commits_never_go_out_by_themselves() -> None:
    ledger = Ledger()
    ledger.stored(assignment(0), 5)
    assert ledger.due({assignment(0): CommitPoint(4)}) == {}


def test_beginning_of_a_log_is_worth_a_commit() -> None:
    assert Ledger().due({assignment(0): CommitPoint(0)})


def test_next_assignment_of_a_partition_knows_nothing_of_the_one_before() -> None:
    ledger = Ledger()
    ledger.stored(assignment(0), 5)
    assert ledger.due({assignment(0, epoch=2): CommitPoint(4)})
    ledger.forget(assignment(0))
    assert ledger.known(assignment(0)) == -1


def test_metadata_has_a_limit_in_bytes() -> None:
    check_metadata("é" * 2_048)
    with pytest.raises(ConfigError, match="at most 4,096 bytes, not 4,098") as caught:
        check_metadata("é" * 2_049)
    assert caught.value.code == "T082"


class Answering(Coordinator):
    """A coordinator that stores what it is sent, unless told otherwise; it answers on ``go``."""

    def __init__(self, world: World) -> None:
        super().__init__(world.client(), "g")
        self.requests: list[CommitOffsetsRequest] = []
        self.refusals: dict[int, TailraceError] = {}  # by partition
        self.failure: TailraceError | None = None
        self.go = anyio.Event()
        self.go.set()

    async def request(self, message: Request, *, timeout: float) -> Response:
        assert isinstance(message, CommitOffsetsRequest)
        self.requests.append(message)
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        results = tuple(
            CommitResult(one.topic_id, one.partition, None, one.offset)
            if (error := self.refusals.get(one.partition)) is None
            else CommitResult(one.topic_id, one.partition, to_wire(error), -1)
            for one in message.partitions
        )
        return CommitOffsetsResponse(results)

    def offsets(self) -> list[dict[int, int]]:
        """What came, request by request."""
        return [{one.partition: one.offset for one in r.partitions} for r in self.requests]


FENCED = texts_group.group_fenced("g", "m1", reason="orders[1] is not its own any more")


def test_all_partitions_go_in_one_request(run: Run, world: World) -> None:
    async def main() -> None:
        coordinator = Answering(world)
        commits = Commits(world.client(), coordinator, "m1")
        points = {assignment(n, epoch=4): CommitPoint(10 + n, 2, 3, 4) for n in range(3)}
        outcome = await commits.store(points, "note", timeout=math.inf)
        assert outcome.stored == {one: 10 + one.partition for one in points}
        (request,) = coordinator.requests
        assert (request.group, request.member_id) == ("g", "m1")
        assert [one.offset for one in request.partitions] == [10, 11, 12]
        first = request.partitions[0]
        assert (first.leader_epoch, first.timestamp, first.append_time) == (2, 3, 4)
        assert (first.assignment_epoch, first.metadata) == (4, "note")
        assert commits.last is not None

    run(main)


def test_one_is_under_way_at_a_time_and_the_next_leaves_out_what_it_stored(
    run: Run, world: World
) -> None:
    async def main() -> None:
        coordinator = Answering(world)
        commits = Commits(world.client(), coordinator, "m1")
        coordinator.go = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for points in ({0: 5}, {0: 5, 1: 6}, {0: 5}):
                wanted = {assignment(n): CommitPoint(offset) for n, offset in points.items()}
                tasks.start_soon(partial(commits.store, wanted, timeout=math.inf))
                await anyio.wait_all_tasks_blocked()  # trio starts tasks in any order
            assert coordinator.offsets() == [{0: 5}]
            coordinator.go.set()
        assert coordinator.offsets() == [{0: 5}, {1: 6}]

    run(main)


def test_explicit_commit_behind_one_that_is_stuck_ends_in_time(run: Run, world: World) -> None:
    async def main() -> None:
        coordinator = Answering(world)
        commits = Commits(world.client(), coordinator, "m1")
        coordinator.go = anyio.Event()
        async with anyio.create_task_group() as tasks:
            stuck = {assignment(0): CommitPoint(5)}
            tasks.start_soon(partial(commits.store, stuck, timeout=math.inf))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RequestTimeout):
                await commits.store({assignment(1): CommitPoint(1)}, timeout=0.01)
            coordinator.go.set()
        assert coordinator.offsets() == [{0: 5}]

    run(main)


def test_partition_of_somebody_else_is_refused_and_the_others_are_stored(
    run: Run, world: World
) -> None:
    async def main() -> None:
        coordinator = Answering(world)
        gone = texts.topic_id_not_found(b"t" * 16, broker="n1")
        coordinator.refusals = {1: FENCED, 2: gone}
        commits = Commits(world.client(), coordinator, "m1")
        points = {assignment(n): CommitPoint(5) for n in range(3)}
        outcome = await commits.store(points, timeout=math.inf)
        assert outcome.stored == {assignment(0): 5}
        assert outcome.refused == [assignment(1)]
        assert "not its own" in outcome.reason
        assert outcome.error is not None
        assert outcome.error.code == "T010"
        assert commits.ledger.due(points).keys() == {assignment(1), assignment(2)}

    run(main)


def test_member_that_is_none_any_more_is_refused_everything(run: Run, world: World) -> None:
    async def main() -> None:
        coordinator = Answering(world)
        coordinator.failure = FENCED
        commits = Commits(world.client(), coordinator, "m1")
        points = {assignment(n): CommitPoint(5) for n in range(2)}
        outcome = await commits.store(points, timeout=math.inf)
        assert outcome.refused == list(points)

    run(main)


def test_nothing_new_is_no_request(run: Run, world: World) -> None:
    async def main() -> None:
        coordinator = Answering(world)
        commits = Commits(world.client(), coordinator, "m1")
        points = {assignment(0): CommitPoint(5)}
        await commits.store(points, timeout=math.inf)
        await commits.store(points, timeout=math.inf)
        assert len(coordinator.requests) == 1

    run(main)
