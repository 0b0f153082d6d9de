"""What is said of a figure beside its limit."""

import math

import pytest

from tests.proofs.figures import Figure, quantile, told


def test_figures_that_break_a_limit_are_told_and_come_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = told(
        [
            Figure("longest silence", 5.6, most=8.0),
            Figure("longest silence", 8.01, most=8.0),
            Figure("acks go on", 2.0, least=3.0),
            Figure("sends that failed", 0, unit="", most=0),
            Figure("p99 alone", 1234.567, "ms"),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "  longest silence: 5.60 s, at most 8 s: ok",
        "  longest silence: 8.01 s, at most 8 s: NOT OK",
        "  acks go on: 2 s, at least 3 s: NOT OK",
        "  sends that failed: 0, at most 0: ok",
        "  p99 alone: 1,234.57 ms",
    ]
    assert broken == [
        "longest silence: 8.01 s, at most 8 s: NOT OK",
        "acks go on: 2 s, at least 3 s: NOT OK",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_was_not_measured_keeps_no_limit(value: float) -> None:
    assert not Figure("back", value, most=8.0).ok


def test_quantiles_are_values_that_were_there() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([3.0, 1.0], 0.99) == 3.0
    assert math.isnan(quantile([], 0.5))
