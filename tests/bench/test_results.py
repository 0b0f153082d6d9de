import pytest

from tailrace.bench.results import Measured, dumps, loads, read

FIGURE = Measured("redis", "ack-latency-p50", 100, True, 0.4, "ms", 2, "AOF always")


def test_a_figure_comes_back_from_its_line() -> None:
    assert loads(dumps(FIGURE)) == FIGURE


def test_a_figure_is_one_line_of_plain_json() -> None:
    assert dumps(FIGURE) == (
        '{"system": "redis", "path": "ack-latency-p50", "size_bytes": 100, "durable": true,'
        ' "value": 0.4, "unit": "ms", "round": 2, "note": "AOF always"}'
    )


def test_empty_lines_between_figures_are_left_out() -> None:
    assert list(read(["\n", dumps(FIGURE) + "\n", ""])) == [FIGURE]


@pytest.mark.parametrize(
    "line",
    [
        "produced 3 records",
        "[]",
        "7",
        '{"system": "redis"}',
        dumps(FIGURE).replace("0.4", '"fast"'),
        dumps(FIGURE).replace("note", "remark"),
    ],
)
def test_what_is_no_figure_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(ValueError, match="no figure"):
        loads(line)
