"""Metrics as Prometheus text, read from the broker's own counters when somebody asks.

Written here and not by prometheus_client, which the tests compare it with: its ``generate_latest``
takes 50 ms for 1,000 topics and 180 ms for their partitions, in one piece. The event loop would
stand still for that long, and a thread would fight it for the interpreter in turns of 5 ms. This is
less work, in slices of ``LINES`` lines at most, and others have their turn after each ``Spell`` of
them; each series is as of its slice, and so is a histogram.

A text is good for ``KEEP_S``, or for ``SHARE`` times as long as it took, up to ``KEEP_MAX_S``:
however many ask, at most about a twentieth of the time goes there. Whoever asks more rarely than
that, as Prometheus does, sees every text new.
"""

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate

import trio

from tailrace.broker.metric_readings import Labelled, Readings, read
from tailrace.broker.metric_table import PREFIX, TABLE, Spec
from tailrace.broker.metrics import Histogram, Metrics
from tailrace.broker.spell import Spell

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINES = 100  # about 0.05 ms
KEEP_S = 0.1
KEEP_MAX_S = 5.0
SHARE = 20
REST_S = 0.25  # after that only the event loop turns between two spells: a scraper waits, too


class Exposition:
    """The Prometheus text of one broker."""

    def __init__(
        self,
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
        *,
        rest: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._metrics = metrics
        self._now = now
        self._rest = rest  # between two spells of writing
        self._endpoints = {detailed: _Endpoint(now) for detailed in (False, True)}

    async def scrape(self, *, detailed: bool) -> bytes:
        """All series; ``detailed`` adds those per partition. At most some seconds old.

        Cancelled: whoever else waits for it goes on from the beginning.
        """
        return await self._endpoints[detailed].get(lambda: self._scrape(detailed=detailed))

    async def _scrape(self, *, detailed: bool) -> bytes:
        await self._metrics.prepare()
        parts: list[bytes] = []
        until = self._now() + REST_S

        async def rest() -> None:
            if self._now() < until:
                await self._rest()
            else:
                await trio.lowlevel.checkpoint()

        spell = Spell(rest)
        for part in pieces(self._metrics, detailed=detailed):
            parts.append(part.encode())
            await spell.pause()
        return b"".join(parts)


class _Endpoint:
    """One text, made once for all who ask at the same time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = trio.Lock()
        self._text = b""
        self._good_until = -math.inf

    async def get(self, make: Callable[[], Awaitable[bytes]]) -> bytes:
        if self._now() < self._good_until:
            return self._text
        async with self._lock:
            began = self._now()
            if began >= self._good_until:
                self._text = await make()
                ended = self._now()
                keep_s = min(KEEP_MAX_S, max(KEEP_S, SHARE * (ended - began)))
                self._good_until = ended + keep_s
            return self._text


def pieces(metrics: Metrics, *, detailed: bool) -> Iterator[str]:
    """The text in slices, some of them empty: where others may have their turn."""
    readings = Readings()
    for _ in read(metrics, readings, detailed=detailed):
        yield ""
    lines: list[str] = []
    for spec, comment in COMMENTS:
        if spec.detailed and not detailed:
            continue
        lines.append(comment)
        for some in _samples(metrics, spec, readings.of.get(spec.name)):
            lines += some
            if len(lines) >= LINES:
                yield "".join(lines)
                lines.clear()
    yield "".join(lines)


def _comment(spec: Spec) -> str:
    name = PREFIX + spec.name
    return f"# HELP {name} {spec.doc}\n# TYPE {name} {spec.kind}\n"


COMMENTS = tuple((spec, _comment(spec)) for spec in TABLE)


def _samples(metrics: Metrics, spec: Spec, worked_out: Labelled | None) -> Iterator[list[str]]:
    family = metrics.families[spec.name]
    if spec.kind == "histogram":
        for values, histogram in list(family.histograms.items()):
            yield _histogram(spec, values, histogram)
        return
    rows = family.values() if worked_out is None else list(worked_out.items())
    heads, name, labels = family.heads, PREFIX + spec.name, spec.labels
    if len(heads) > 2 * len(rows):
        heads.clear()  # most are of topics that are gone
    for at in range(0, len(rows), LINES):
        lines: list[str] = []
        for values, number in rows[at : at + LINES]:
            head = heads.get(values)
            if head is None:
                head = heads[values] = _head(name, labels, values)
            lines.append(f"{head}{_number(number)}\n")
        yield lines


def _head(name: str, labels: Sequence[str], values: Sequence[str]) -> str:
    """A sample up to its number; labels in the order of the alphabet, as the library has them."""
    if not labels:
        return f"{name} "
    pairs = sorted(zip(labels, values, strict=True))
    text = ",".join(f'{label}="{_escaped(value)}"' for label, value in pairs)
    return f"{name}{{{text}}} "


def _histogram(spec: Spec, values: tuple[str, ...], one: Histogram) -> list[str]:
    """Its lines; those of the last time, if nothing was observed since: of most it is so."""
    seen = (sum(one.counts), one.total)
    if one.lines_of != seen:
        one.heads = one.heads or _heads(spec, values, one)
        numbers = (*accumulate(one.counts), *seen)
        pairs = zip(one.heads, numbers, strict=True)
        one.lines = [f"{head}{_number(number)}\n" for head, number in pairs]
        one.lines_of = seen
    return one.lines


def _heads(spec: Spec, values: tuple[str, ...], one: Histogram) -> tuple[str, ...]:
    name, labels = PREFIX + spec.name, spec.labels
    buckets = [
        _head(f"{name}_bucket", (*labels, "le"), (*values, _number(bound)))
        for bound in (*one.bounds, math.inf)
    ]
    ends = [_head(f"{name}_{end}", labels, values) for end in ("count", "sum")]
    return (*buckets, *ends)


def _number(value: float) -> str:
    if type(value) is int:
        return f"{value}.0"
    return "+Inf" if value == math.inf else repr(float(value))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
