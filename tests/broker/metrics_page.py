"""docs/metrics.md, made of the tables of metrics: ``python -m tests.broker.metrics_page``."""

from collections.abc import Iterable
from pathlib import Path

from tailrace.broker.metric_table import PREFIX, TABLE
from tailrace.broker.metrics import PAIRS_PER_TOPIC
from tailrace.client.metrics import FAMILIES
from tests.broker.metrics_contract import BATCHES, SECONDS

PAGE = Path(__file__).parent.parent.parent / "docs" / "metrics.md"

INTRODUCTION = f"""\
# Metrics

A broker shows them as Prometheus text on `/metrics`; `/metrics/detailed` has all of them, those
marked † too. [deploy/prometheus.yml](../deploy/prometheus.yml) scrapes a broker,
[deploy/alerts.yml](../deploy/alerts.yml) has the alerts of this page as rules. This page is made
from the tables in the code.

All names begin with `{PREFIX}`. Bounds of histograms of seconds:
{SECONDS}; of `fsync_batches`: {BATCHES.replace(" 8 16 32 64 128 256 512 ", " 8 … ")}.

- Series of a deleted topic or group disappear. A counter starts at 0 when the broker does.
- Above `metrics.topics_max` topics the rest is summed under `topic="__other__"`, and
  `metrics_truncated` is 1. The same number bounds consumer groups (`group="__other__"`: lag and
  members summed, the worst verdict, age and margin), and {PAIRS_PER_TOPIC} times it the pairs of
  group and topic (`topic="__other__"` of that group). Who came first has series of its own; what
  `/metrics/detailed` shows per partition is left out for the others.
- Lag of groups is worked out at the scrape ([consumer_groups.md](consumer_groups.md)), at most once
  a second.
- A text is used again for 0.1 s, or for 20 times as long as it took to make (at most 5 s): scrapes
  take no more than about a twentieth of the broker's time, however many come. It is made in slices
  of about 0.3 ms, between which everybody else is served; each series is as of its slice.
- Scrape `/metrics` as often as you like, `/metrics/detailed` when you look for one partition.

"""
LATER = """\
On a single node there are no followers: `replica_lag_records` has no series, and
`isr_changes_total`, `partitions_under_replicated` and `partitions_below_min_isr` stay 0.

"""
CLIENT = """\
## In your own process
The SDK counts in the default registry of prometheus_client, if your process has imported it; it
does not import it by itself. What came before the import is not counted.

"""


def page() -> str:
    """The whole page."""
    broker = (
        (spec.name, spec.kind, spec.labels, spec.doc, spec.alert, spec.detailed) for spec in TABLE
    )
    client = (
        (one.name.removeprefix(PREFIX), one.kind, one.labels, one.doc, one.alert, False)
        for one in FAMILIES
    )
    parts = (INTRODUCTION, "## Of a broker\n", _table(broker), "\n", LATER, CLIENT, _table(client))
    return "".join(parts)


def _table(rows: Iterable[tuple[str, str, tuple[str, ...], str, str, bool]]) -> str:
    lines = ["| metric | type{labels} | meaning | alert |", "|---|---|---|---|"]
    for name, kind, labels, doc, alert, detailed in rows:
        type_ = kind + (f"{{{','.join(labels)}}}" if labels else "")
        told = f"`{alert}`" if alert else ""
        lines.append(f"| `{name}`{'†' if detailed else ''} | {type_} | {doc} | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
