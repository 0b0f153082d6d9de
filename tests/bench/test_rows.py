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
