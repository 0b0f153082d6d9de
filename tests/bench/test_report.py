import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tailrace.bench import cpus
from tailrace.bench.cpus import describe, layout
from tailrace.bench.report import document, plots, shown, spread, targets, verdicts, write
from tailrace.bench.results import Measured, read
from tailrace.bench.rows import ROWS, Pick, Row
from tailrace.bench.svg import Bar, bars, lines

FIGURES = [
    Measured("tailrace", "produce", 100, True, 3_000_000, "records/s", 0),
    Measured("tailrace", "produce", 100, True, 2_000_000, "records/s", 1),
    Measured("redis", "produce", 100, False, 150_000, "records/s", 0),
    Measured("redis", "produce", 100, False, 250_000, "records/s", 1),
    Measured("tailrace", "idle-cpu", 0, None, 0.4, "%", 0, "1,000 partitions"),
    Measured("tailrace", "sends@1", 100, True, 500, "records/s", 0),
    Measured("tailrace", "sends@100", 100, True, 9_000, "records/s", 0),
]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2_512_345, "records/s", "2.51 M/s"),
        (98_765, "records/s", "98,765/s"),
        (2.1e9, "bytes/s", "2,100 MB/s"),
        (0.7, "ms", "0.70 ms"),
        (1.25, "us/record", "1.25 us/record"),
    ],
)
def test_values_are_shown_with_their_unit(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_a_spread_is_median_and_range() -> None:
    assert spread([3, 1, 2], "{:g}".format) == "2 (1 to 3)"
    assert spread([3], "{:g}".format) == "3"


def test_the_table_says_what_was_reached_and_what_was_not_measured() -> None:
    rows = {line.split(" | ")[1]: line for line in targets(FIGURES).splitlines()}
    assert rows["produce, `send_many`"] == (
        "| P1 | produce, `send_many` | 2.50 M/s (2.00 M/s to 3.00 M/s) | 14.00 (8.00 to 20.00) |"
        " redis | ≥ 10 times the best peer | yes, 1 of 2 rounds |"
    )
    assert rows["idle, 1,000 waiting consumers"] == (
        "| P13 | idle, 1,000 waiting consumers | 0.4 % |  |  | ≤ 1.0 % | yes |"
    )
    assert "not measured" in rows["RSS idle"]


def test_verdicts_are_the_rows_of_the_table_for_programs() -> None:
    found = json.loads(json.dumps(verdicts(FIGURES, ["2 CPUs"])))
    assert (found["schema"], found["about"]) == ("tailrace.report/1", ["2 CPUs"])
    assert len(found["rows"]) == len(ROWS)
    rows = {row["what"]: row for row in found["rows"]}
    assert rows["produce, `send_many`"] == {
        "name": "P1",
        "what": "produce, `send_many`",
        "unit": "records/s",
        "rounds": [0, 1],
        "values": [3e6, 2e6],
        "ratios": [20, 8],
        "beside": ["redis", "redis"],
        "median": 14,
        "sense": "at least",
        "limit": 10,
        "target": "≥ 10 times the best peer",
        "reached": True,
        "rounds_reached": 1,
    }
    idle = rows["idle, 1,000 waiting consumers"]
    assert (idle["values"], idle["ratios"], idle["target"]) == ([0.4], None, "≤ 1.0 %")
    assert (rows["RSS idle"]["values"], rows["RSS idle"]["reached"]) == ([], None)


def test_rows_without_a_target_name_the_limit_that_they_stand_beside() -> None:
    row = Row("", "produce", Pick("produce"), "at least", None, Pick("pack", system="machine"))
    figures = [*FIGURES[:2], Measured("machine", "pack", 100, None, 6e6, "records/s", 0)]
    assert targets(figures, [row]).splitlines()[-1] == (
        "|  | produce | 2.50 M/s (2.00 M/s to 3.00 M/s) | 0.50 | pack |  |  |"
    )


def test_latencies_are_plotted_at_each_rate() -> None:
    figures = [
        Measured(system, "ack-latency-p99", 100, True, 1.0, "ms", 0, rate)
        for system in ("tailrace", "redis")
        for rate in ("500/s", "1000/s")
    ]
    found = plots(figures)
    assert list(found) == ["ack-latency-p99-500.svg", "ack-latency-p99-1000.svg"]
    assert found["ack-latency-p99-1000.svg"][0] == "ack-latency-p99 at 1000/s, ms"


def test_the_report_is_written_with_its_figures_and_plots(tmp_path: Path) -> None:
    write(tmp_path, FIGURES, ["2 CPUs"])
    assert list(read((tmp_path / "figures.jsonl").read_text().splitlines())) == FIGURES
    text = (tmp_path / "report.md").read_text()
    assert text == document(FIGURES, ["2 CPUs"])
    assert json.loads((tmp_path / "report.json").read_text()) == verdicts(FIGURES, ["2 CPUs"])
    for name in ("produce-100.svg", "connections.svg"):
        assert f"]({name})" in text
        ElementTree.fromstring((tmp_path / name).read_text())


def test_what_each_round_noted_is_told() -> None:
    noted = [
        Measured("tailrace", "sends@1", 100, True, 500, "records/s", number, note)
        for number, note in enumerate(("90 us", "110 us", "90 us"))
    ]
    assert "| 90 us / 110 us |" in document(noted, [])


def test_nothing_is_plotted_of_nothing() -> None:
    assert plots([]) == {}


def test_bars_stand_in_proportion_and_names_are_escaped() -> None:
    found = ElementTree.fromstring(bars("a < b", [Bar("x & y", 10, 5, 20), Bar("z", 5, 5, 5)]))
    widths = [float(one.get("width", 0)) for one in found if one.get("height") == "20"]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert "x & y" in [one.text for one in found]


def test_a_line_of_one_point_can_be_drawn() -> None:
    ElementTree.fromstring(lines("one", {"a": [(1, 0)]}))


def test_with_two_processors_the_kernel_places_everything() -> None:
    assert layout([0, 1]) == {}
    assert "the kernel places them" in describe([0, 1])


def test_with_more_every_role_has_its_own() -> None:
    for count in range(3, 40):
        found = layout(range(count))
        given = [cpu for cpus in found.values() for cpu in cpus]
        assert sorted(given) == list(range(count))
        assert all(found.values())
    assert describe([0, 1, 2, 3]) == "4 CPUs: broker on 0,1, senders on 2, receivers on 3"


def test_who_keeps_to_his_processors_still_knows_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, placed = set(range(4)), dict[int, set[int]]()

    def keep(pid: int, given: tuple[int, ...]) -> None:
        placed[pid] = set(given)
        if pid == 0:
            mine.intersection_update(given)

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(mine))
    monkeypatch.setattr("os.sched_setaffinity", keep)
    cpus.available.cache_clear()
    try:
        cpus.pin(0, cpus.SENDERS)
        cpus.pin(77, cpus.BROKER)
    finally:
        cpus.available.cache_clear()
    assert placed == {0: {2}, 77: {0, 1}}


def test_the_plot_of_connections_has_the_median_of_its_rounds() -> None:
    figures = [
        Measured("tailrace", f"sends@{connections}", 100, True, value, "records/s", number)
        for connections in (1, 100)
        for number, value in enumerate((500.0, 900.0, 100.0))
    ]
    _, all_rounds = plots(figures)["connections.svg"]
    _, middle = plots(figures[::3])["connections.svg"]
    assert all_rounds == middle
