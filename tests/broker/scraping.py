"""What a scrape shows, read by the library that Prometheus' own clients are made of."""

from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tailrace.broker.exposition import pieces
from tailrace.broker.metrics import Metrics
from tailrace.broker.server import Server


class Shown(NamedTuple):
    """One metric."""

    kind: str
    doc: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]  # by name and labels

    @property
    def labels(self) -> set[tuple[str, ...]]:
        """The names of the labels, of each series; without that of buckets."""
        return {tuple(name for name, _ in labels if name != "le") for _, labels in self.samples}

    @property
    def total(self) -> float:
        return sum(self.samples.values())


Scrape = dict[str, Shown]


def parse(text: str) -> Scrape:
    """By name, as docs/metrics.md has it; without ``tailrace_``."""
    found: Scrape = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        samples = {
            (one.name, tuple(sorted(one.labels.items()))): one.value for one in family.samples
        }
        assert len(samples) == len(family.samples), f"{name} has a series twice"
        found[name.removeprefix("tailrace_")] = Shown(family.type, family.documentation, samples)
    return found


def text_of(metrics: Metrics, *, detailed: bool) -> bytes:
    """The text at once, as of now; groups as of the last ``prepare``."""
    return "".join(pieces(metrics, detailed=detailed)).encode()


async def scrape(server: Server, *, detailed: bool = True) -> Scrape:
    """As of now."""
    await server.metrics.prepare()
    return parse(text_of(server.metrics, detailed=detailed).decode())


def changed(before: Scrape, after: Scrape) -> set[str]:
    """The metrics of which any sample did."""
    return {
        name
        for name, shown in after.items()
        if name not in before or shown.samples != before[name].samples
    }
