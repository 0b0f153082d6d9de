"""Holds the logs of all brokers, and what is promised of them, against each other.

A promise is made where somebody outside hears of it: an acknowledgement for acks=all, or a high
watermark shown to a client, says that everything below an offset is committed. What is committed
stands in the *true log* of a partition, batch by batch, as the first promise found it:

- S1, S7, S8: when a promise is made, every member of ISR and ELR in the metadata store holds it
  durably, and so do (or did) at least ``min_isr`` brokers; a member of the maximal ISR that is not
  yet, or no longer, in the store is not asked;
- S2, S6: whoever leads, from its election on, has the whole true log; what is promised again is
  what was promised before;
- S13: nobody cuts a committed batch off; and no disk of a candidate loses one when power fails. Who
  was told to hold no copy any more may still remove it when the store has named him again: it
  counts for nothing until he is in sync;
- S4: equal (partition, offset, epoch) means equal bytes and an equal batch before: so equal logs
  (but where each replica compacts by itself, and but for what its writer took back before anybody
  else had it);
- S5: one broker writes in an epoch, the one that the store named; S9: epochs never fall along a
  log; S10: offsets have no gaps.

Pure: everything that happens is told, in order. Of a broker whose disk was lost nothing is asked
until it has registered with the new one (R7). What it had told of the old one may be counted for
longer: a leader hears of the loss later than the store. So what that disk held durably was held,
until its broker is in sync again; by then every leader knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tailrace.broker.catalog import Leadership
from tailrace.simulation.checkers import Violation
from tailrace.simulation.log_files import PartitionKey
from tailrace.simulation.replica_logs import Entry, Identity, ReplicaLog

SHOWN_MAX = 200  # violations that are kept: the first ones tell most


class Logs(Protocol):
    """The logs on one broker's disk."""

    def log(self, key: PartitionKey) -> ReplicaLog: ...

    def is_durable(self, entry: Entry) -> bool: ...


@dataclass
class TrueLog:
    """What is committed of one partition."""

    end: int = 0
    last: int = -1  # base offset of its last batch
    identities: dict[int, Identity] = field(default_factory=dict[int, Identity])  # by base offset


@dataclass(frozen=True, slots=True)
class Written:
    """A batch as it was first written anywhere."""

    identity: Identity
    before: tuple[int, int, int] | None  # base, epoch, checksum of the batch before; None: unknown
    node: str
    copied: bool = False  # another broker has written it, too
    taken_back: bool = False  # its writer has it no more; a copy may be on its way all the same


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """What the metadata store says of one partition now."""

    leadership: Leadership
    min_isr: int
    compacted: bool


class ClusterJudge:
    """See the module. ``violations`` grows as the cluster goes wrong."""

    def __init__(self, logs: Mapping[str, Logs]) -> None:
        self.violations: list[Violation] = []
        self.partitions: dict[PartitionKey, PartitionFacts] = {}
        self.wiped: set[str] = set()  # lost their disks, and have not registered since
        self.promises = 0
        self.elections = 0
        self._logs = logs
        self._true: dict[PartitionKey, TrueLog] = {}
        self._written: dict[tuple[PartitionKey, int, int], Written] = {}
        self._named: dict[tuple[PartitionKey, int], str] = {}  # epoch -> its leader, by the store
        self._lost: dict[tuple[str, PartitionKey], ReplicaLog] = {}  # of lost disks
        self._dismissed: set[tuple[str, PartitionKey]] = set()  # with a copy of the time before

    def true_end(self, key: PartitionKey) -> int:
        """Everything below is promised."""
        true = self._true.get(key)
        return true.end if true is not None else 0

    def violated(self, invariant: str, key: PartitionKey, what: str) -> None:
        if len(self.violations) < SHOWN_MAX:
            where = f"{key[0].hex()[:8]}[{key[1]}]"
            self.violations.append(Violation(invariant, f"{where}: {what}"))

    # ── logs ─────────────────────────────────────────────────────────────────────────────────

    def appended(self, node: str, key: PartitionKey, entry: Entry, before: Entry | None) -> None:
        """S4, S5, S9, S10, at every write."""
        if before is not None:
            if entry.epoch < before.epoch:
                what = f"{node} wrote {entry.base} of epoch {entry.epoch} behind {before.epoch}"
                self.violated("S9", key, what)
            if entry.base != before.next:
                self.violated("S10", key, f"{node} wrote {entry.base} behind {before.next - 1}")
        else:
            self._dismissed.discard((node, key))  # a new copy
        link = None if before is None else (before.base, before.epoch, before.check)
        place = key, entry.base, entry.epoch
        first = self._written.get(place)
        if first is not None and first.taken_back and not first.copied and node == first.node:
            first = None  # it writes there anew
        if first is None:
            self._written[place] = Written(entry.identity, link, node)
            leader = self._named.get((key, entry.epoch))
            if leader != node and not (leader is None and key not in self.partitions):
                what = f"{node} wrote {entry.base} in epoch {entry.epoch}, which is {leader}'s"
                self.violated("S5", key, what)
            return
        if node != first.node and not first.copied:
            first = self._written[place] = replace(first, copied=True)
        if first.identity != entry.identity and not self._compacted(key):
            what = f"{entry.base} of epoch {entry.epoch} differs on {node} and {first.node}"
            self.violated("S4", key, what)
        if first.before is None:
            self._written[place] = replace(first, before=link)
        elif link is not None and link != first.before and not self._compacted(key):
            what = (
                f"behind {link[0]} of epoch {link[1]} on {node}, behind {first.before[0]} of epoch"
                f" {first.before[1]} on {first.node}: {entry.base} of epoch {entry.epoch}"
            )
            self.violated("S4", key, what)

    def cut(self, node: str, key: PartitionKey, gone: Sequence[Entry]) -> None:
        """S13: batches left the end of a log."""
        for entry in gone:
            first = self._written.get((key, entry.base, entry.epoch))
            if first is not None and first.node == node:
                self._written[key, entry.base, entry.epoch] = replace(first, taken_back=True)
        true = self._true.get(key)
        if true is None or key not in self.partitions or self._compacted(key):
            return
        if node not in self.partitions[key].leadership.replicas or (node, key) in self._dismissed:
            return  # it is, or was, to hold no copy any more
        for entry in gone:
            if true.identities.get(entry.base) == entry.identity:
                if entry.next <= self._start(key):  # it begins anew, where the leader begins
                    continue
                what = f"{node} cut {entry.base} off, all below {true.end} is committed"
                self.violated("S13", key, what)
                return

    def other_disk(self, node: str) -> None:
        """S1: power failed. Whoever may be elected still has what is committed."""
        if node in self.wiped:
            return
        for key, facts in self.partitions.items():
            if node in (*facts.leadership.isr, *facts.leadership.elr):
                self._check_holds("S1", node, key, "a power cut took it")

    def disk_lost(self, node: str) -> None:
        """All that a broker holds is about to go. Call it while that is there."""
        self.wiped.add(node)
        logs = self._logs[node]
        for key in self.partitions:
            lost = self._lost[node, key] = ReplicaLog()
            for entry in logs.log(key).entries:
                if logs.is_durable(entry):
                    lost.add(entry)

    # ── promises ─────────────────────────────────────────────────────────────────────────────

    def acked(self, node: str, key: PartitionKey, base: int, end: int, check: int) -> None:
        """A producer was told that its batch is durable: everything below ``end`` is."""
        true = self._true.get(key)
        if key in self.partitions and true is not None and end <= true.end:
            known = true.identities.get(base)
            if known is not None and known[2] != check and not self._compacted(key):
                self.violated("S2", key, f"{node} acked {base}, where something else is committed")
            return
        self.promised(node, key, end, "acked")

    def promised(self, node: str, key: PartitionKey, end: int, how: str) -> None:
        """A client was told that everything below ``end`` is committed."""
        facts = self.partitions.get(key)
        true = self._true.setdefault(key, TrueLog())
        if facts is None or end <= true.end:
            return  # the topic is gone; or it is known
        self.promises += 1
        log = self._logs[node].log(key)
        new = log.between(true.end, end)
        if not self._continues(log, new, true, key) or new[-1].next < end:
            has = f"its log goes from {log.start} to {log.end}"
            what = f"{node} {how} {end}, {true.end} is committed, {has}"
            self.violated("S6", key, what)
        candidates = {*facts.leadership.isr, *facts.leadership.elr} - self.wiped
        short = sorted(one for one in candidates if not self._has(one, key, new, facts))
        if short:
            what = f"{node} {how} {end}, which {', '.join(short)} of {facts.leadership} lacks"
            self.violated("S1", key, what)
        holders = [one for one in self._logs if self._has(one, key, new, facts)]
        had = [one for one in self._logs if self._had(one, key, new, facts)]
        if len({*holders, *had} & {*facts.leadership.replicas}) < facts.min_isr:
            what = f"{node} {how} {end}, durable on {holders} only, min_isr is {facts.min_isr}"
            self.violated("S1", key, what)
        for entry in new:
            true.identities[entry.base] = entry.identity
            true.last = entry.base
        true.end = max(end, new[-1].next if new else 0)

    def _continues(
        self, log: ReplicaLog, new: Sequence[Entry], true: TrueLog, key: PartitionKey
    ) -> bool:
        """Whether the new batches stand behind the true log's."""
        if not new:
            return False
        if new[0].base == true.end and (true.last < 0 or self._compacted(key)):
            return True
        last = log.find(true.last)
        known = last is not None and last.identity == true.identities[true.last]
        return new[0].base == true.end and (known or log.start >= true.end)

    def _has(
        self, node: str, key: PartitionKey, new: Sequence[Entry], facts: PartitionFacts
    ) -> bool:
        """Whether a broker holds these batches durably."""
        logs = self._logs[node]
        found = _among(logs.log(key), new, facts)
        return found is not None and all(map(logs.is_durable, found))

    def _had(
        self, node: str, key: PartitionKey, new: Sequence[Entry], facts: PartitionFacts
    ) -> bool:
        """Whether it did on a disk that it lost."""
        lost = self._lost.get((node, key))
        return lost is not None and _among(lost, new, facts) is not None

    # ── the metadata store ───────────────────────────────────────────────────────────────────

    def led(self, key: PartitionKey, facts: PartitionFacts, *, elected: bool) -> None:
        """The store names this leadership now. S6, S7 of all that may lead."""
        before = self.partitions.get(key)
        self.partitions[key] = facts
        now = facts.leadership
        if now.leader is not None:
            named = self._named.setdefault((key, now.leader_epoch), now.leader)
            if named != now.leader and now.leader_epoch > 0:  # in epoch 0 nobody leads yet
                what = f"epoch {now.leader_epoch} was {named}'s, now it is {now.leader}'s"
                self.violated("S5", key, what)
            if elected:
                self.elections += 1
                self._check_holds("S6", now.leader, key, f"elected in epoch {now.leader_epoch}")
        old = before.leadership if before is not None else Leadership(None, 0, ())
        self._dismissed |= {(one, key) for one in {*old.replicas} - {*now.replicas}}
        self._dismissed -= {(one, key) for one in (*now.isr, *now.elr)}
        for one in {*now.isr} - {*old.isr}:
            self._lost.pop((one, key), None)
        for one in sorted({*now.isr, *now.elr} - {*old.isr, *old.elr, now.leader}):
            self._check_holds("S7", one, key, "it is a candidate now")

    def check_joined(self, key: PartitionKey, node: str) -> None:
        """S31: one enters the ISR: it has what is committed, and all that its leader began with."""
        self._check_holds("S31", node, key, "it joins the ISR")
        now = self.partitions[key].leadership
        if now.leader is None or now.leader == node or node in self.wiped:
            return
        led = self._logs[now.leader].log(key)
        began = next((entry for entry in led.entries if entry.epoch >= now.leader_epoch), None)
        start = led.end if began is None else began.base
        end = self._logs[node].log(key).end
        if led.entries and end < start:
            what = f"{node} joins at {end}, epoch {now.leader_epoch} began at {start}"
            self.violated("S31", key, what)

    def removed(self, key: PartitionKey) -> None:
        """The topic is gone, with all that was promised of it."""
        self.partitions.pop(key, None)

    def serves(self, node: str) -> None:
        """S7: a broker has started: as a candidate it has what is committed."""
        for key, facts in self.partitions.items():
            if node in (*facts.leadership.isr, *facts.leadership.elr):
                self._check_holds("S7", node, key, "it serves again")

    def _check_holds(self, invariant: str, node: str, key: PartitionKey, when: str) -> None:
        true = self._true.get(key)
        if true is None or true.last < 0 or node in self.wiped:
            return
        log = self._logs[node].log(key)
        if self._compacted(key):
            held = log.end >= true.end
        else:
            last = log.find(true.last)
            held = last is not None and last.identity == true.identities[true.last]
        if not held:
            what = f"{node} has {log.start} to {log.end}, not {true.last} of {true.end}: {when}"
            self.violated(invariant, key, what)

    def _compacted(self, key: PartitionKey) -> bool:
        facts = self.partitions.get(key)
        return facts is None or facts.compacted

    def _start(self, key: PartitionKey) -> int:
        """Where the log of whoever leads begins."""
        leader = self.partitions[key].leadership.leader
        return 0 if leader is None else self._logs[leader].log(key).start


def _among(
    log: ReplicaLog, wanted: Sequence[Entry], facts: PartitionFacts
) -> Sequence[Entry] | None:
    """These batches as a log has them, but for those before its start; None: it lacks one."""
    if facts.compacted:
        return () if wanted and log.end >= wanted[-1].next else None
    found: list[Entry] = []
    for entry in wanted:
        own = log.find(entry.base)
        if own is None and entry.next <= log.start:
            continue
        if own is None or own.identity != entry.identity:
            return None
        found.append(own)
    return found
