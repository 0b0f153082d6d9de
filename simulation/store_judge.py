"""Watches what brokers write into the metadata store (S3, S9, S30, S31, R7, R9).

Every change of a partition compares its revision (S30). Epochs rise by one with each election, and
nobody is elected from outside ISR and ELR (S3). Whoever enters the ISR is named with its broker
epoch as it is now, and has everything that is committed and all that its leader had when its epoch
began (S31). A broker that comes with another disk is in no set any more when it registers (R7), and
candidates never get fewer than ``min_isr`` but by that, or by their own wish (R9).

Pure, but for the texts that it takes from the broker: keys and documents are the store's format.
"""

from tailrace.broker.catalog import PARTITIONS, TOPICS, Leadership, Topic, parse_partition_key
from tailrace.broker.members import BROKERS, BrokerRecord
from tailrace.broker.metadata import Entry as Stored
from tailrace.simulation.cluster_judge import ClusterJudge, PartitionFacts
from tailrace.simulation.log_files import PartitionKey
from tailrace.simulation.meta import StoreChange


class StoreJudge:
    """For ``MetaKeep.taps``."""

    def __init__(self, judge: ClusterJudge, min_isr: str = "auto") -> None:
        """``min_isr``: where a topic says nothing of it."""
        self.unclean: set[PartitionKey] = set()  # an operator asked for such an election
        self.changes: dict[str, int] = {}  # by kind: how often
        self._judge = judge
        self._min_isr = min_isr
        self._topics: dict[bytes, Topic] = {}
        self._early: dict[PartitionKey, Leadership] = {}  # stored before their topic
        self._directories: dict[str, str] = {}
        self._brokers: dict[str, int] = {}  # who is registered: broker epoch

    def tap(self, change: StoreChange) -> None:
        for key, now in change.after.items():
            if key.startswith(TOPICS):
                self._topic(change.before[key], now)
        for key, now in change.after.items():
            if key.startswith(PARTITIONS):
                self._partition(change, key, change.before[key], now)
            elif key.startswith(BROKERS):
                self._broker(key, now)

    def _topic(self, before: Stored | None, now: Stored | None) -> None:
        topic = None if now is None else Topic.from_json(now.value, now.revision)
        if before is not None:
            old = Topic.from_json(before.value, before.revision)
            if topic is None or topic.topic_id != old.topic_id or topic.state == "deleting":
                self._topics.pop(old.topic_id, None)
                for number in range(len(old.partitions)):
                    self._judge.removed((old.topic_id, number))
        if topic is not None and topic.state == "live":
            self._topics[topic.topic_id] = topic
            for number in range(len(topic.partitions)):
                key = topic.topic_id, number
                early = self._early.pop(key, None)
                known = self._judge.partitions.get(key)
                if early is not None:
                    self._judge.led(key, self._facts(key, early), elected=True)
                elif known is not None:
                    self._judge.partitions[key] = self._facts(key, known.leadership)

    def _partition(
        self, change: StoreChange, path: str, before: Stored | None, now: Stored | None
    ) -> None:
        key = parse_partition_key(path)
        if now is None:
            self._early.pop(key, None)
            return
        compared = change.compare.get(path)
        if before is not None and compared != before.revision:  # a new one has a new topic's id
            what = f"{path} was {before.revision}, it was changed without looking ({compared})"
            self._judge.violated("S30", key, what)
        new = Leadership.from_json(now.value, now.revision)
        old = None if before is None else Leadership.from_json(before.value, before.revision)
        if key[0] not in self._topics:
            self._early[key] = new
            return
        facts = self._facts(key, new)
        elected = old is None or new.leader_epoch > old.leader_epoch or new.leader != old.leader
        if old is not None:
            self._change(key, facts, old, change)
        self._judge.led(key, facts, elected=elected and new.leader is not None)

    def _change(
        self, key: PartitionKey, facts: PartitionFacts, old: Leadership, change: StoreChange
    ) -> None:
        new, violated = facts.leadership, self._judge.violated
        self._count(old, new)
        if new.leader_epoch not in (old.leader_epoch, old.leader_epoch + 1):
            violated("S9", key, f"epoch {new.leader_epoch} after {old.leader_epoch}")
        begun = new.leader_epoch > 0  # else nobody has led yet: there is nothing to lose
        other = begun and new.leader is not None and new.leader != old.leader
        if other and new.leader_epoch == old.leader_epoch:
            violated("S9", key, f"{old} became {new} in the same epoch")
        pool = {*old.isr, *old.elr}
        outside = begun and new.leader is not None and new.leader not in pool
        if outside and key not in self.unclean:
            violated("S3", key, f"{new.leader} was elected from outside {old}")
        for what, wrong in (
            ("the leader is not in the ISR", new.leader is not None and new.leader not in new.isr),
            ("ISR and ELR overlap", bool({*new.isr} & {*new.elr})),
            ("members are no replicas", not {*new.isr, *new.elr} <= {*new.replicas}),
            ("somebody is twice in it", len({*new.isr, *new.elr}) != len(new.isr) + len(new.elr)),
        ):
            if wrong:
                violated("S8", key, f"{what}: {new}")
        lost = pool - {*new.isr, *new.elr} - self._judge.wiped - {change.host}  # it said so itself
        gone = lost & {*new.replicas}
        if begun and gone and len(new.isr) + len(new.elr) < min(facts.min_isr, len(pool)):
            violated("R9", key, f"{old} became {new}: too few candidates, min_isr {facts.min_isr}")
        for one in sorted({*new.isr} - {*old.isr}):
            self._joined(key, one, old, new, change)

    def _joined(
        self, key: PartitionKey, one: str, old: Leadership, new: Leadership, change: StoreChange
    ) -> None:
        """S31, for one that was not in the ISR. An election takes one out of the ELR: S6, S7."""
        if new.leader_epoch != old.leader_epoch:
            return
        compared = change.compare.get(BROKERS + one)
        if one not in self._brokers or compared != self._brokers[one]:
            what = f"{one} joined with broker epoch {compared}, it has {self._brokers.get(one)}"
            self._judge.violated("S31", key, what)
        self._judge.check_joined(key, one)

    def _broker(self, path: str, now: Stored | None) -> None:
        broker_id = path.removeprefix(BROKERS)
        if now is None:
            self._brokers.pop(broker_id, None)
            return
        record = BrokerRecord.from_json(path, now.value, now.revision)
        self._brokers[broker_id] = now.revision
        known = self._directories.get(broker_id)
        self._directories[broker_id] = record.directory
        if known is None or known == record.directory:
            return
        for key, facts in self._judge.partitions.items():
            if broker_id in (*facts.leadership.isr, *facts.leadership.elr):
                what = f"{broker_id} came with another disk, and is in {facts.leadership}"
                self._judge.violated("R7", key, what)
        self._judge.wiped.discard(broker_id)

    def _facts(self, key: PartitionKey, leadership: Leadership) -> PartitionFacts:
        topic = self._topics[key[0]]
        wanted = len(topic.partitions[key[1]].replicas)
        asked = topic.config.get("min_isr", self._min_isr)
        min_isr = wanted // 2 + 1 if asked == "auto" else int(asked)
        compacted = topic.internal or "compact" in topic.config.get("cleanup", "")
        return PartitionFacts(leadership, min_isr, compacted)

    def _count(self, old: Leadership, new: Leadership) -> None:
        for kind, happened in (
            ("elections", new.leader_epoch > old.leader_epoch and new.leader is not None),
            ("leaderless", new.leader is None and old.leader is not None),
            ("isr shrunk", bool({*old.isr} - {*new.isr})),
            ("isr grown", bool({*new.isr} - {*old.isr})),
        ):
            if happened:
                self.changes[kind] = self.changes.get(kind, 0) + 1
