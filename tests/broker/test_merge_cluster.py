"""The roll of brokers: who is there, who answers, who is gone."""

from tailrace.broker.cluster_status import ClusterCounts, Sightings
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.members import BrokerRecord, PeerAddress
from tailrace.broker.merge_cluster import Roll, call_the_roll
from tailrace.protocol.messages import BrokerDescription, DescribeClusterResponse

NOW_MS = 1_763_690_000_000


def record(broker: str, **listeners: int) -> BrokerRecord:
    return BrokerRecord(
        broker_id=broker,
        listeners={name: PeerAddress(broker, port, False) for name, port in listeners.items()},
        http=None,
        rack="r1",
        version="0.1.0",
        since=NOW_MS,
        directory="d",
        epoch=9,
    )


def answer(broker: str, *problems: str) -> DescribeClusterResponse:
    described = BrokerDescription(
        *(broker, "inside:1", None, None, "0.1.0", 9, "running"), *(0, 0, 5, 10, 77, NOW_MS)
    )
    return DescribeClusterResponse(
        *("c", "0.1.0", None, "etcd", True, (described,)), *(0, 0, 0, 0, 0), problems
    )


def roll(view: ClusterView, **answers: DescribeClusterResponse) -> Roll:
    counts = ClusterCounts()
    counts.replicas.update(["n1", "n2", "n3", "n3"])
    counts.leaders.update(["n1"])
    sightings = Sightings()
    sightings.look([*view.brokers, "n3"], NOW_MS - 20_000)
    sightings.look(view.brokers, NOW_MS - 14_000)
    return call_the_roll(view, counts, answers, sightings, listener="outside", now_ms=NOW_MS)


BOTH = {"n1": record("n1", inside=1, outside=2), "n2": record("n2", inside=3)}


def test_brokers_are_told_by_the_listener_that_was_asked_at() -> None:
    found = roll(ClusterView(brokers=BOTH), n1=answer("n1"), n2=answer("n2", "n2 is read-only"))
    assert [one.address for one in found.brokers] == ["n1:2", "n2:3", ""]
    assert [one.state for one in found.brokers] == ["running", "running", "offline"]
    assert [(one.leaders, one.replicas) for one in found.brokers] == [(1, 1), (0, 1), (0, 2)]
    assert found.brokers[0].uptime_ms == 77
    assert list(found.problems) == ["n2 is read-only"]


def test_one_that_is_gone_was_last_seen_some_time_ago() -> None:
    found = roll(ClusterView(brokers=BOTH), n1=answer("n1"), n2=answer("n2"))
    assert found.gone == {"n3": 14_000}
    assert found.brokers[2].last_seen == NOW_MS - 14_000


def test_one_that_does_not_answer_is_shown_as_it_registered() -> None:
    found = roll(ClusterView(brokers=BOTH), n1=answer("n1"))
    silent = found.brokers[1]
    assert (silent.state, silent.rack, silent.broker_epoch) == ("offline", "r1", 9)
    assert found.silence == ["broker n2 is registered, but does not answer: look at its log"]


def test_one_that_is_to_go_drains() -> None:
    view = ClusterView(brokers=BOTH, drains=frozenset(["n2"]))
    found = roll(view, n1=answer("n1"), n2=answer("n2"))
    assert [one.state for one in found.brokers] == ["running", "draining", "offline"]
