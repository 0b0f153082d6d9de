import pytest

from tailrace.bench.results import Measured
from tailrace.bench.rows import ROWS, Peers, Pick, Row, by_round, judge

PRODUCE = Row("P1", "produce", Pick("produce", 100), "at least", 10, Peers())
QUICK = Row("P6", "ack", Pick("ack", 100, "500/s"), "at most", 0.6, Peers(durable=True))


def figure(
    system: str,
    value: float,
    number: int = 0,
    path: str = "produce",
    durable: bool | None = None,
    note: str = "",
) -> Measured:
    return Measured(system, path, 100, durable, value, "records/s", number, note)


def test_a_figure_told_twice_in_a_round_counts_by_its_median() -> None:
    assert by_round([figure("tailrace", v) for v in (1, 9, 2)]) == {0: 2}


def test_a_ratio_is_made_within_each_round() -> None:
    figures = [figure("tailrace", 100), figure("redis", 10), figure("tailrace", 50, 1)]
    judged = judge(PRODUCE, [*figures, figure("redis", 2, 1)])
    assert (judged.ratios, judged.beside) == ({0: 10, 1: 25}, "redis")
    assert (judged.reached, judged.rounds_reached) == (True, 2)


def test_a_round_without_the_peer_has_no_ratio() -> None:
    figures = [figure("tailrace", 100), figure("redis", 20), figure("tailrace", 50, 1)]
    judged = judge(PRODUCE, figures)
    assert judged.ratios == {0: 5}
    assert judged.reached is False


def test_the_fastest_peer_counts_and_a_mock_is_none() -> None:
    figures = [figure("tailrace", 100), figure("redis", 5), figure("nats", 10)]
    judged = judge(PRODUCE, [*figures, figure("librdkafka-mock", 50)])
    assert (judged.beside, judged.ratios) == ("nats", {0: 10})


def test_of_latencies_the_lowest_peer_that_syncs_counts() -> None:
    figures = [
        figure("tailrace", 1, path="ack", note="500/s"),
        figure("redis", 0.5, path="ack", durable=False, note="500/s"),
        figure("redis", 2, path="ack", durable=True, note="500/s"),
        figure("nats", 4, path="ack", durable=True, note="500/s"),
        figure("nats", 1, path="ack", durable=True, note="1000/s"),
    ]
    judged = judge(QUICK, figures)
    assert (judged.beside, judged.ratios, judged.reached) == ("redis", {0: 0.5}, True)


def test_each_round_has_the_peer_that_was_best_in_it() -> None:
    ours = [figure("tailrace", 100, number) for number in range(3)]
    redis = [figure("redis", value, number) for number, value in enumerate((10, 20, 25))]
    kafka = [figure("kafka", value, number) for number, value in enumerate((50, 10, 20))]
    judged = judge(PRODUCE, [*ours, *redis, *kafka])
    assert judged.ratios == {0: 2, 1: 5, 2: 4}
    assert judged.best == {0: "kafka", 1: "redis", 2: "redis"}
    assert judged.beside == "redis, kafka"


def test_a_round_in_which_one_of_the_peers_failed_has_no_ratio() -> None:
    ours = [figure("tailrace", 100, number) for number in range(2)]
    peers = [figure("redis", 10), figure("redis", 10, 1), figure("kafka", 50)]
    assert judge(PRODUCE, [*ours, *peers]).ratios == {0: 2}


def test_a_peer_counts_by_its_fastest_way_and_setting() -> None:
    row = Row("P3", "consume", Pick("consume-batches", 100), "at least", 10, Peers())
    figures = [
        figure("tailrace", 100, path="consume-batches"),
        figure("nats", 2, path="consume-batches"),
        figure("nats", 10, path="consume-each"),
        figure("redis", 5, path="consume-batches"),
        figure("nats", 50, path="produce"),
    ]
    judged = judge(row, figures)
    assert (judged.ratios, judged.beside) == ({0: 10}, "nats")


def test_a_peer_that_is_asked_for_by_one_way_counts_by_no_other() -> None:
    batches = Peers("consume-batches", ("kafka",))
    row = Row("P4", "each", Pick("consume-each", 100), "at least", 2, batches)
    figures = [
        figure("tailrace", 100, path="consume-each"),
        figure("kafka", 80, path="consume-each"),
        figure("kafka", 50, path="consume-batches"),
    ]
    assert judge(row, figures).ratios == {0: 2}


def test_every_other_peer_is_the_best_of_them_in_each_round() -> None:
    others = Peers(without=("redis",), durable=True)
    row = Row("P6", "ack", Pick("ack", 100, "500/s"), "at most", 0.6, others)
    figures = [
        figure(system, value, number, path="ack", durable=True, note="500/s")
        for system, values in {"tailrace": (1, 1), "redis": (0.1, 0.1), "nats": (2, 4)}.items()
        for number, value in enumerate(values)
    ]
    figures += [
        figure("kafka", value, number, path="ack", durable=True, note="500/s")
        for number, value in enumerate((2.2, 2.5))
    ]
    judged = judge(row, figures)
    assert (judged.ratios, judged.beside) == ({0: 0.5, 1: 0.4}, "kafka, nats")
    assert row.target == "≤ 0.6 times every other peer that syncs"


def test_a_row_of_which_nothing_is_asked_has_ratios_and_no_verdict() -> None:
    row = Row("", "produce", Pick("produce"), "at least", None, Pick("pack", system="machine"))
    judged = judge(row, [figure("tailrace", 1), figure("machine", 4, path="pack")])
    assert (judged.ratios, judged.reached, judged.rounds_reached) == ({0: 0.25}, None, 0)
    assert row.target == ""


def test_without_figures_nothing_is_said() -> None:
    judged = judge(PRODUCE, [])
    assert (judged.values, judged.reached) == ({}, None)
    assert judge(PRODUCE, [figure("tailrace", 1)]).reached is None


@pytest.mark.parametrize(("value", "reached"), [(2e9, True), (1.99e9, False)])
def test_a_number_alone_is_a_target_too(value: float, reached: bool) -> None:
    row = Row("P8", "in", Pick("raw-in"), "at least", 2e9)
    assert judge(row, [figure("tailrace", value, path="raw-in")]).reached is reached


def test_every_target_has_its_row() -> None:
    assert {row.name for row in ROWS} == {f"P{number}" for number in range(1, 16)}
