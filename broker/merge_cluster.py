"""The brokers of a cluster, put together from a view and what they say of themselves (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tailrace.broker.cluster_status import ClusterCounts, Sightings, brokers_of
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.members import BrokerRecord
from tailrace.protocol.messages import BrokerDescription, DescribeClusterResponse
from tailrace.protocol.texts import shown

NEVER_SEEN = 0  # as ``last_seen``


@dataclass(frozen=True, slots=True)
class Roll:
    """Every broker, and what is wrong with them."""

    brokers: tuple[BrokerDescription, ...]
    gone: Mapping[str, int | None]  # not registered; for how many ms, None: never seen here
    silent: Sequence[str]  # registered, and did not answer
    problems: Sequence[str]  # of their own

    @property
    def silence(self) -> list[str]:
        """Sentences about those that did not answer."""
        return [
            f"broker {shown(one)} is registered, but does not answer: look at its log"
            for one in self.silent
        ]


def call_the_roll(
    view: ClusterView,
    counts: ClusterCounts,
    answers: Mapping[str, DescribeClusterResponse],
    sightings: Sightings,
    *,
    listener: str,
    now_ms: int,
) -> Roll:
    """``answers``: by broker, this one's own among them. ``listener``: whose addresses are told."""
    brokers: list[BrokerDescription] = []
    gone: dict[str, int | None] = {}
    silent: list[str] = []
    problems: list[str] = []
    for broker_id in brokers_of(view, counts):
        record, answer = view.brokers.get(broker_id), answers.get(broker_id)
        seen = sightings.last_seen(broker_id, now_ms)
        if answer is not None and answer.brokers:
            found = answer.brokers[0]
            problems += answer.problems
        elif record is not None:
            silent.append(broker_id)
            found = _registered(record)
        else:
            gone[broker_id] = None if seen is None else max(0, now_ms - seen)
            found = _unknown(broker_id)
        found = replace(
            found,
            leaders=counts.leaders[broker_id],
            replicas=counts.replicas[broker_id],
            last_seen=NEVER_SEEN if seen is None else seen,
        )
        if record is not None:
            found = replace(found, address=_address(record, listener))
        if found.state == "running" and broker_id in view.draining | view.drains:
            found = replace(found, state="draining")
        brokers.append(found)
    return Roll(tuple(brokers), gone, silent, problems)


def _address(record: BrokerRecord, listener: str) -> str:
    """Where it is for whoever asks; where that listener is not, another one."""
    where = record.listeners.get(listener) or next(iter(record.listeners.values()), None)
    if where is None:
        return ""
    return f"[{where.host}]:{where.port}" if ":" in where.host else f"{where.host}:{where.port}"


def _registered(record: BrokerRecord) -> BrokerDescription:
    """One that does not answer: what it said when it registered."""
    return BrokerDescription(
        broker_id=record.broker_id,
        address="",
        http=record.http,
        rack=record.rack,
        version=record.version,
        broker_epoch=record.epoch,
        state="offline",
        leaders=0,
        replicas=0,
        disk_free_bytes=0,
        disk_total_bytes=0,
        uptime_ms=0,
        last_seen=NEVER_SEEN,
    )


def _unknown(broker_id: str) -> BrokerDescription:
    """One of which only is known that it should hold something."""
    return BrokerDescription(
        *(broker_id, "", None, None, "", -1, "offline"), *(0, 0, 0, 0, 0, NEVER_SEEN)
    )
