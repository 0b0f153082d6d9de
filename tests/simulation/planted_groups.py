"""Known bugs of groups, in the broker and in its clients; ``planted.py`` says what for."""

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

from tailrace.broker.assignment import Partition
from tailrace.broker.coordinator import Coordinator
from tailrace.broker.group_fence import Fence
from tailrace.broker.group_offsets import Offsets
from tailrace.broker.group_ownership import Ownership
from tailrace.broker.offsets_shard import Entry, Shard
from tailrace.client.commits import CommitPoint
from tailrace.client.holding import Holding
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import FetchOffsetsRequest, FetchOffsetsResponse

Patches = Sequence[Any]


def commit_before_append() -> Patches:
    """A commit is acked when it is decided; it is written a little later."""
    submit = Shard.submit

    def hasty(self: Shard, entry: Entry) -> None:
        if entry.records and not entry.lasting:
            entry.done(None)
            entry = Entry(entry.records, _ignore)
        submit(self, entry)

    return [patch.object(Shard, "submit", hasty)]


def generation_not_checked() -> Patches:
    """Any member may commit any partition, whenever it had it."""

    def trusting(self: Fence, *given: Any) -> None:
        return None

    return [patch.object(Fence, "commit", trusting)]


def offsets_while_loading() -> Patches:
    """Before a coordinator has read what was committed, it answers that nothing was."""
    fetch = Coordinator.fetch

    def rash(self: Coordinator, request: FetchOffsetsRequest) -> FetchOffsetsResponse:
        try:
            return fetch(self, request)
        except TailraceError:
            return FetchOffsetsResponse(Offsets().fetch(request.partitions))

    return [patch.object(Coordinator, "fetch", rash)]


def given_away_before_released() -> Patches:
    """What is withdrawn from one member is another's at once."""
    aim = Ownership.aim

    def greedy(self: Any, now: float, generation: int, targets: Mapping[Partition, str]) -> None:
        aim(self, now, generation, targets)
        self._release(sorted(key for keys in self._leaving.values() for key in keys), generation)

    return [patch.object(Ownership, "aim", greedy)]


def commits_what_is_in_hand() -> Patches:
    """What is committed by itself includes the record that is being worked on."""

    def hasty(self: Holding) -> CommitPoint | None:
        return None if self.holder is None else self.handed_out

    return [patch.object(Holding, "processed", property(hasty))]


def _ignore(error: TailraceError | None) -> None:
    """Nobody is told."""
