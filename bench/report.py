"""Figures as tables in Markdown and as plots: what a run of the bench leaves behind. Pure but for
``write``.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

from tailrace.bench.results import LATENCIES, Measured, dumps
from tailrace.bench.rows import ROWS, SIGNS, Judged, Pick, Row, judge
from tailrace.bench.svg import Bar, bars, lines

FIGURES = "figures.jsonl"
REPORT = "report.md"
VERDICTS = "report.json"
SCHEMA = "tailrace.report/1"
NOTES_MAX = 3  # different ones of a figure: about one of each round
_SHOWN: dict[str, Callable[[float], str]] = {
    "records/s": lambda value: f"{_short(value)}/s",
    "bytes/s": lambda value: f"{value / 1e6:,.0f} MB/s",
    "/s": lambda value: f"{value:,.0f}/s",
    "ms": lambda value: f"{value:.2f} ms",
    "s": lambda value: f"{value:.2f} s",
    "MB": lambda value: f"{value:.0f} MB",
    "KB": lambda value: f"{value:.1f} KB",
    "%": lambda value: f"{value:.1f} %",
}
_SIZES = {0: "", 100: "100 B", 1_000: "1,000 B", 1_024: "1 KiB", 10_240: "10 KiB"}
_DURABLE = {True: "synced", False: "not synced", None: ""}


def shown(value: float, unit: str) -> str:
    """A value for people."""
    return _SHOWN[unit](value) if unit in _SHOWN else f"{value:.3g} {unit}"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}"


def spread(values: Iterable[float], show: Callable[[float], str]) -> str:
    """The median, and the lowest to the highest where there are several."""
    ordered = sorted(values)
    middle = show(median(ordered))
    return f"{middle} ({show(ordered[0])} to {show(ordered[-1])})" if len(ordered) > 1 else middle


def targets(figures: Sequence[Measured], rows: Sequence[Row] = ROWS) -> str:
    """The table of P1 to P15, or of other rows."""
    head = ("", "what", "measured", "ratio", "beside", "target", "reached")
    return _table(head, [_cells(judge(row, figures)) for row in rows])


def _cells(judged: Judged) -> tuple[str, ...]:
    row, target = judged.row, _target(judged)
    if not judged.values:
        return (row.name, row.what, "not measured", "", "", target, "")
    values = spread(judged.values.values(), partial(shown, unit=judged.unit))
    if not judged.counted:
        return (row.name, row.what, values, "", "nothing to stand beside", target, "")
    ratio = "" if judged.ratios is None else spread(judged.ratios.values(), "{:.2f}".format)
    return (row.name, row.what, values, ratio, _beside(judged), target, _verdict(judged))


def _target(judged: Judged) -> str:
    row = judged.row
    if row.limit is None or row.against is not None:
        return row.target
    return f"{SIGNS[row.sense]} {shown(row.limit, judged.unit)}" if judged.unit else ""


def _beside(judged: Judged) -> str:
    """The best peers; or the limit, where no target names it."""
    against = judged.row.against
    if judged.row.limit is None and isinstance(against, Pick):
        return against.path
    return judged.beside


def _verdict(judged: Judged) -> str:
    if judged.reached is None:
        return ""
    verdict, rounds = "yes" if judged.reached else "**no**", len(judged.counted)
    return f"{verdict}, {judged.rounds_reached} of {rounds} rounds" if rounds > 1 else verdict


def verdicts(
    figures: Sequence[Measured], about: Sequence[str], rows: Sequence[Row] = ROWS
) -> dict[str, object]:
    """The same for programs; a row's values, ratios and peers are in the order of its rounds."""
    return {
        "schema": SCHEMA,
        "about": list(about),
        "rows": [_judged(judge(row, figures)) for row in rows],
    }


def _judged(judged: Judged) -> dict[str, object]:
    row, rounds = judged.row, list(judged.values)
    ratios = judged.ratios
    path = row.against.path if isinstance(row.against, Pick) else None
    return {
        "name": row.name,
        "what": row.what,
        "unit": judged.unit,
        "rounds": rounds,
        "values": list(judged.values.values()),
        "ratios": None if ratios is None else [ratios.get(number) for number in rounds],
        "beside": [judged.best.get(number, path) for number in rounds],
        "median": median(judged.counted.values()) if judged.counted else None,
        "sense": row.sense,
        "limit": row.limit,
        "target": _target(judged),
        "reached": judged.reached,
        "rounds_reached": judged.rounds_reached,
    }


def everything(figures: Sequence[Measured]) -> str:
    """All figures: the median of each, and its spread over all that was measured."""
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for one in figures:
        groups.setdefault(_group(one), []).append(one)
    rows: list[tuple[str, ...]] = []
    for group in groups.values():
        one = group[0]
        values = spread([each.value for each in group], partial(shown, unit=one.unit))
        size = _SIZES.get(one.size_bytes, f"{one.size_bytes} B")
        rows.append((one.system, one.path, size, _DURABLE[one.durable], values, _note(group)))
    return _table(("system", "path", "records", "", "median (lowest to highest)", "note"), rows)


def _group(one: Measured) -> tuple[object, ...]:
    rate = one.note if one.note.endswith("/s") else ""
    return one.system, one.path, one.size_bytes, one.durable, one.unit, rate


def _note(group: Sequence[Measured]) -> str:
    notes = list(dict.fromkeys(one.note for one in group if one.note))
    return " / ".join(notes) if len(notes) <= NOTES_MAX else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(figures: Sequence[Measured], about: Sequence[str], rows: Sequence[Row] = ROWS) -> str:
    """The whole report. ``about``: sentences on the machine and the run."""
    parts = (
        "# tailrace: benchmark",
        "\n".join(f"- {sentence}" for sentence in about),
        "## Targets\nMedians of the rounds, lowest to highest in brackets. A ratio is made within "
        "each round, of peers with the one that was best in it; the verdict is that of the median.",
        targets(figures, rows),
        "## All figures",
        everything(figures),
        "\n".join(f"![{title}]({name})" for name, (title, _) in plots(figures).items()),
    )
    return "\n\n".join(parts) + "\n"


def plots(figures: Sequence[Measured]) -> Mapping[str, tuple[str, str]]:
    """Title and SVG by file name, of what was measured."""
    made: dict[str, tuple[str, str]] = {}
    for path in ("produce", "consume-batches", "consume-each"):
        for size in (100, 1_024):
            chosen = [one for one in figures if one.path == path and one.size_bytes == size]
            if len(chosen) > 1:
                title = f"{path}, {_SIZES[size]}, records per second"
                made[f"{path}-{size}.svg"] = (title, bars(title, _bars(chosen)))
    for path, rate in product(LATENCIES, ("500/s", "1000/s")):
        chosen = [one for one in figures if one.path == path and one.note.startswith(rate)]
        if len(chosen) > 1:
            title = f"{path} at {rate}, ms"
            made[f"{path}-{rate.removesuffix('/s')}.svg"] = (title, bars(title, _bars(chosen)))
    sends: dict[int, list[float]] = {}
    for one in figures:
        if one.path.startswith("sends@"):
            sends.setdefault(int(one.path.partition("@")[2]), []).append(one.value)
    points = {connections: median(rates) for connections, rates in sends.items()}
    if len(points) > 1:
        title = "durable sends per second, by connections that send one at a time"
        made["connections.svg"] = (title, lines(title, {"tailrace": sorted(points.items())}))
    return made


def _bars(figures: Sequence[Measured]) -> list[Bar]:
    """One for each system and durability, the best first."""
    groups: dict[str, list[float]] = {}
    for one in figures:
        name = one.system + (f", {_DURABLE[one.durable]}" if one.durable is not None else "")
        groups.setdefault(name, []).append(one.value)
    made = [Bar(name, median(values), min(values), max(values)) for name, values in groups.items()]
    return sorted(made, key=lambda bar: -bar.value)


def write(
    folder: Path, figures: Sequence[Measured], about: Sequence[str], rows: Sequence[Row] = ROWS
) -> None:
    """Figures, report and plots, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES).write_text("".join(f"{dumps(one)}\n" for one in figures))
    for name, (_, text) in plots(figures).items():
        (folder / name).write_text(text)
    (folder / REPORT).write_text(document(figures, about, rows))
    found = json.dumps(verdicts(figures, about, rows), indent=1, ensure_ascii=False)
    (folder / VERDICTS).write_text(f"{found}\n")
