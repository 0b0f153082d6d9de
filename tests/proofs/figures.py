"""Figures of a proof beside their limits: a line of each, and which of them broke theirs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured. Without a limit it is only told."""

    what: str
    value: float
    unit: str = "s"
    most: float = math.inf
    least: float = -math.inf

    @property
    def ok(self) -> bool:
        return self.least <= self.value <= self.most  # not so if there is no value (NaN)

    def __str__(self) -> str:
        """One line: "longest silence: 5.60 s, at most 8 s: ok"."""
        limits = [
            f", {word} {limit:g}{self._unit}"
            for word, limit in (("at least", self.least), ("at most", self.most))
            if math.isfinite(limit)
        ]
        verdict = (": ok" if self.ok else ": NOT OK") if limits else ""
        value = f"{self.value:,.{0 if float(self.value).is_integer() else 2}f}"
        return f"{self.what}: {value}{self._unit}{''.join(limits)}{verdict}"

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


def told(figures: Iterable[Figure]) -> list[str]:
    """Print all of them; the lines of those that broke a limit."""
    broken: list[str] = []
    for figure in figures:
        print(f"  {figure}", flush=True)
        if not figure.ok:
            broken.append(str(figure))
    return broken


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest that this share of them is not above (nearest rank); NaN if there are none."""
    found = sorted(values)
    return found[max(0, math.ceil(share * len(found)) - 1)] if found else math.nan
