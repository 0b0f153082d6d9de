"""A group and its members, told in sentences: what stands in the transcripts beside this file.

A sentence begins with its second: ``at 12.5 s, ann beats``. Before it happens, everything does that
was due until then. Members are told of news at once if their heartbeat waits; they send the next
one only when the story says so. Every change goes through bytes, as a coordinator would store it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tailrace.broker import group_record
from tailrace.broker.assignment import Partition
from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings, Who
from tailrace.broker.group_offsets import Committed
from tailrace.broker.group_topics import TopicShape, TopicShapes
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitPartition,
    HeartbeatRequest,
    HeartbeatResponse,
    OwnedPartitions,
    Rebalance,
)
from tailrace.protocol.messages_group import AWAY_EPOCH, JOIN_EPOCH, LEAVE_EPOCH, NO_MEMBER

_SENTENCE = re.compile(r"at ([\d.]+) s, (.+)")
_NAME = re.compile(r"(\w+)\[(\d+)(?:-(\d+))?\]")
_NOW_MS = 1_763_690_000_000


@dataclass
class Actor:
    """A member as its client sees things."""

    name: str
    topics: tuple[str, ...]
    instance_id: str | None = None
    epoch: int = JOIN_EPOCH
    told_generation: int = -1
    assigned: dict[Partition, int] = field(default_factory=dict[Partition, int])
    waiting: HeartbeatRequest | None = None


class Story:
    """One group. ``tell`` takes a sentence and returns what comes of it, line by line."""

    def __init__(self) -> None:
        self._settings = GroupSettings("b1", members_max=5, assign_delay_s=0)
        self._session_ms = 10_000
        self._rebalance_ms = 60_000
        self._counts: dict[str, int] = {}
        self._lives: dict[str, int] = {}  # how often a topic of that name was made
        self._actors: dict[str, Actor] = {}
        self._now = 0.0
        self._lines: list[str] = []
        self._group = self._new_group()

    def tell(self, sentence: str) -> list[str]:
        self._lines = []
        match = _SENTENCE.fullmatch(sentence)
        assert match is not None, f"no sentence: {sentence}"
        self._pass_time(float(match[1]))
        for pattern, happens in SENTENCES:
            found = re.fullmatch(pattern, match[2])
            if found is not None:
                try:
                    happens(self, *found.groups())
                except TailraceError as error:
                    self._lines.append(str(error))
                self._settle()
                return self._lines
        raise AssertionError(f"nobody knows how to: {match[2]}")

    # ── sentences ────────────────────────────────────────────────────────────────────────────

    def wait(self) -> None:
        """Time has passed already."""

    def limits(self, session: str, rebalance: str, delay: str) -> None:
        self._session_ms, self._rebalance_ms = int(session) * 1000, int(rebalance) * 1000
        self._settings = GroupSettings("b1", members_max=5, assign_delay_s=int(delay) / 1000)
        self._group = self._new_group()

    def topic(self, name: str, count: str) -> None:
        if name not in self._counts:
            self._lives[name] = self._lives.get(name, 0) + 1
        self._counts[name] = int(count)
        self._group.topics_changed(self._now, self._shapes())

    def no_topic(self, name: str) -> None:
        del self._counts[name]
        names = self._names()
        orphans = self._group.topics_changed(self._now, self._shapes())
        for topic_id, number in orphans:
            self._lines.append(f"forgotten: the offset of {names[topic_id]}[{number}]")

    def join(self, name: str, topics: str, instance: str | None, owned: str | None) -> None:
        actor = Actor(name, tuple(sorted(topics.split(" and "))), instance)
        self._actors[name] = actor
        self._send(actor, JOIN_EPOCH, self._partitions(owned))

    def beat(self, name: str, epoch: str | None, busy: str | None, owned: str | None) -> None:
        """``busy``: what it still has in hand; ``owned``: all that it says it has."""
        actor = self._actors[name]
        mine = self._partitions(owned) if owned else [*actor.assigned, *self._partitions(busy)]
        self._send(actor, actor.epoch if epoch is None else int(epoch), mine)

    def leave(self, name: str) -> None:
        self._send(self._actors.pop(name), LEAVE_EPOCH, [])

    def go_away(self, name: str) -> None:
        self._send(self._actors.pop(name), AWAY_EPOCH, [])

    def commit(self, name: str, what: str, offset: str, since: str | None) -> None:
        ((topic_id, number),) = self._partitions(what)
        member = NO_MEMBER if name == "somebody" else name
        known = self._actors[name].assigned if name in self._actors else {}
        epoch = int(since) if since is not None else known.get((topic_id, number), -1)
        one = CommitPartition(topic_id, number, int(offset), 0, -1, -1, epoch, "")
        request = CommitOffsetsRequest("g", member, (one,))
        writes = self._group.check_commit(request, _NOW_MS)
        self._write_offsets(writes.puts)
        result = self._group.commit_response(request, writes).results[0]
        if result.error is not None:
            self._lines.append(f"T{result.error.code:03}: {result.error.message}")
        else:
            self._lines.append(f"committed: {what} at {result.offset}")

    def reset(self, what: str, offset: str) -> None:
        targets = dict.fromkeys(self._partitions(what), int(offset))
        self._write_offsets(self._group.check_reset(targets, _NOW_MS).puts)
        self.offsets()

    def offsets(self) -> None:
        names = self._names()
        for one in self._group.fetch(None).offsets:
            self._lines.append(f"{names[one.topic_id]}[{one.partition}] at {one.offset}")

    def describe(self) -> None:
        generation = f"generation {self._group.generation}"
        self._lines.append(f"{self._group.state}, {generation}, {len(self._group.members)} members")
        for member in self._group.describe_members(self._now, _NOW_MS):
            keys = [(one.topic, one.partition) for one in member.assigned]
            self._lines.append(f"{member.member_id} has {_ranges(keys)}")

    def restart(self) -> None:
        """Everything is read again from its records."""
        old, self._group = self._group, self._new_group()
        offsets = {key: group_record.offset_value(one) for key, one in old.offsets.items()}
        self._group.applied({key: group_record.read_offset(one) for key, one in offsets.items()})
        group_record.restore(self._group, group_record.state_value(old), self._now)
        self._group.reloaded(self._now)

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _new_group(self) -> Group:
        return Group("g", self._settings, self._shapes())

    def _pass_time(self, until: float) -> None:
        assert until >= self._now, "time runs backwards"
        for _ in range(100):
            due = max(self._now, self._group.next_deadline())
            if due > until:
                break
            self._now = due
            for member in self._group.expire(due):
                self._lines.append(f"at {due:g} s, {member.member_id} is out")
            self._settle()
        self._now = until

    def _send(self, actor: Actor, epoch: int, owned: Sequence[Partition]) -> None:
        by_topic = groupby(sorted(owned), key=lambda key: key[0])
        request = HeartbeatRequest(
            group="g",
            member_id=actor.name,
            member_epoch=epoch,
            instance_id=actor.instance_id,
            topics=actor.topics,
            owned=tuple(
                OwnedPartitions(topic_id, tuple(number for _, number in keys))
                for topic_id, keys in by_topic
            ),
            session_timeout_ms=self._session_ms,
            rebalance_timeout_ms=self._rebalance_ms,
            wait_ms=3_000,
            told_generation=actor.told_generation,
        )
        self._group.heartbeat(self._now, request, Who(actor.name, "127.0.0.1", "1"))
        actor.waiting = request if epoch >= JOIN_EPOCH else None

    def _settle(self) -> None:
        """What changed is durable: whoever waits for news is told."""
        self._group.written = self._group.changes
        for actor in self._actors.values():
            if actor.waiting is not None and self._group.ready(actor.waiting):
                request, actor.waiting = actor.waiting, None
                try:
                    self._hear(actor, self._group.answer(request))
                except TailraceError as error:
                    self._lines.append(f"{actor.name} is told {error}")
        self._group.take_ended()

    def _hear(self, actor: Actor, answer: HeartbeatResponse) -> None:
        actor.epoch = answer.member_epoch
        actor.assigned = {
            (topic.topic_id, one.partition): one.assignment_epoch
            for topic in answer.assigned
            for one in topic.partitions
        }
        notes = {
            (topic.topic, one.partition): f" since {one.assignment_epoch}"
            + (" (added later)" if one.added_later else "")
            for topic in answer.assigned
            for one in topic.partitions
        }
        shares = [
            _ranges([key for key, _ in some]) + note
            for note, some in groupby(notes.items(), key=lambda one: one[1])
        ]
        has = ", ".join(shares) or "nothing"
        stable = "stable" if answer.stable else "moving"
        self._lines.append(f"{actor.name} has {has}; epoch {answer.member_epoch}, {stable}")
        for rebalance in answer.rebalances:
            actor.told_generation = rebalance.generation
            self._lines.append(f"{actor.name} logs {_logged(rebalance)}")

    def _write_offsets(self, puts: dict[Partition, Committed]) -> None:
        written = {
            group_record.offset_key("g", key): group_record.offset_value(one)
            for key, one in puts.items()
        }
        for (key, value), one in zip(written.items(), puts.items(), strict=True):
            assert group_record.read_key(key) == ("g", one[0])
            assert group_record.read_offset(value) == one[1]
        self._group.applied(puts)

    def _shapes(self) -> TopicShapes:
        return TopicShapes(
            {name: TopicShape(self._id(name), count) for name, count in self._counts.items()}
        )

    def _id(self, name: str) -> bytes:
        return f"{name}.{self._lives[name]}".encode().ljust(16, b".")

    def _names(self) -> dict[bytes, str]:
        return {
            f"{name}.{life}".encode().ljust(16, b"."): name
            for name, lives in self._lives.items()
            for life in range(1, lives + 1)
        }

    def _partitions(self, text: str | None) -> list[Partition]:
        return [
            (self._id(name), number)
            for name, first, last in _NAME.findall(text or "")
            for number in range(int(first), int(last or first) + 1)
        ]


def _logged(rebalance: Rebalance) -> str:
    """The line of C14."""
    moved = ", ".join(
        f"{_ranges([(one.topic, number) for number in one.partitions])} -> {one.client_id}"
        for one in rebalance.moved
    )
    return f"rebalanced: {moved or 'nothing'} ({rebalance.reason}), {rebalance.took_ms} ms"


def _ranges(keys: Sequence[tuple[str, int]]) -> str:
    """``hello[0-2] hello[5]``."""
    runs: list[list[tuple[str, int]]] = []
    for topic, number in sorted(keys):
        if runs and runs[-1][-1] == (topic, number - 1):
            runs[-1].append((topic, number))
        else:
            runs.append([(topic, number)])
    names = [
        f"{run[0][0]}[{run[0][1]}]" if len(run) == 1 else f"{run[0][0]}[{run[0][1]}-{run[-1][1]}]"
        for run in runs
    ]
    return " ".join(names) or "nothing"


_SOME = r"((?:\w+\[[\d-]+\] ?)+|nothing)"
SENTENCES: tuple[tuple[str, Callable[..., None]], ...] = (
    ("time has passed", Story.wait),
    (
        r"sessions last (\d+) s, rebalances (\d+) s, the first assignment waits (\d+) ms",
        Story.limits,
    ),
    (r"topic (\w+) has (\d+) partitions?", Story.topic),
    (r"topic (\w+) is gone", Story.no_topic),
    (
        rf"(\w+) joins, reading (\w+(?: and \w+)*)(?: as (\w+))?(?:, still owning {_SOME})?",
        Story.join,
    ),
    (rf"(\w+) beats(?: of epoch (\d+))?(?:, busy with {_SOME})?(?:, owning {_SOME})?", Story.beat),
    (r"(\w+) leaves", Story.leave),
    (r"(\w+) goes away", Story.go_away),
    (r"(\w+) commits (\w+\[\d+\]) at (\d+)(?: of (\d+))?", Story.commit),
    (r"an admin resets (\w+\[\d+\]) to (\d+)", Story.reset),
    ("the offsets are looked at", Story.offsets),
    ("the group is looked at", Story.describe),
    ("the coordinator restarts", Story.restart),
)
