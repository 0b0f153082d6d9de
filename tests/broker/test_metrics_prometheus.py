"""Debian's Prometheus reads what a broker shows, and its promtool has nothing to say to it."""

import json
import math
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tailrace.broker.metric_table import TABLE
from tailrace.broker.metrics import GroupGauges, LagGauges, Metrics, PartitionGauges
from tailrace.client.metrics import FAMILIES
from tailrace.testing import Broker
from tests.broker.metrics_page import PAGE, page
from tests.broker.scraping import parse, text_of

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
SECONDS_MAX = 30.0
ALERTS = {one.alert for one in TABLE if one.alert} | {one.alert for one in FAMILIES if one.alert}

needs_prometheus = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("promtool") and shutil.which("prometheus")) and not os.environ.get("CI"),
        reason="needs promtool and prometheus: apt-get install prometheus",
    ),
]


def test_page_in_docs_is_the_table() -> None:
    assert PAGE.read_text() == page(), "python -m tests.broker.metrics_page"


def test_every_suggested_alert_is_a_rule() -> None:
    rules = (DEPLOY / "alerts.yml").read_text()
    found = set(re.findall(r"expr: (.*)", rules))
    assert found == ALERTS | {'up{job="tailrace"} == 0'}
    names = {f"tailrace_{spec.name}" for spec in TABLE} | {one.name for one in FAMILIES}
    for name in re.findall(r"tailrace_\w+", "".join(sorted(found))):
        assert name.removesuffix("_bucket") in names


@pytest.fixture(scope="module")
def busy() -> Iterator[Broker]:
    """A broker that has a series of nearly everything."""
    with Broker(http=True) as broker:
        broker.create_topic("orders", 2)
        broker.create_topic("users", cleanup="compact", durability="os")
        with broker.client() as client:
            with client.producer() as producer:
                for number in range(10):
                    producer.send("orders", b"x", key=b"%d" % number)
            with client.consumer("orders", group="g", start="earliest", stop_at_end=True) as reader:
                assert len(list(reader)) == 10
        yield broker


def everything() -> Metrics:
    """A series of every metric, with a label that has to be escaped."""
    metrics = Metrics(version="0.1.0", topics_max=9, clock=time.monotonic)
    metrics.topic("orders")
    metrics.partitions = lambda: [
        PartitionGauges("orders", 0, 10, 9, 1_000, 2, True, "ok", "fsync", (("n2", 3),)),
    ]
    lag = LagGauges("orders", 0, 3, 1.5, math.inf)
    metrics.groups = lambda: [GroupGauges('a "group" \\ of\n', 1, 2, (lag,))]
    for family in metrics.families.values():
        values = ["orders" if label == "topic" else f"a {label}" for label in family.spec.labels]
        if family.spec.kind == "histogram":
            family.histogram(*values).observe(0.2)
        elif not family.series and family.read is None:
            family.of(*values).inc()
    return metrics


def get(url: str) -> bytes:
    answer: bytes = urllib.request.urlopen(url, timeout=SECONDS_MAX).read()
    return answer


def promtool(*arguments: str, text: bytes = b"") -> str:
    told = subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, timeout=SECONDS_MAX, check=False
    )
    said = (told.stdout + told.stderr).decode()
    assert told.returncode == 0, said
    return said


class TestPrometheus:
    pytestmark = needs_prometheus

    @pytest.mark.parametrize("path", ["/metrics", "/metrics/detailed"])
    def test_promtool_has_nothing_to_say_to_what_is_shown(self, busy: Broker, path: str) -> None:
        text = get(f"{busy.http_url}{path}")
        assert len(parse(text.decode())) > 50
        assert promtool("check", "metrics", text=text) == ""

    @pytest.mark.parametrize("detailed", [False, True])
    def test_promtool_has_nothing_to_say_when_every_series_is_there(self, detailed: bool) -> None:
        text = text_of(everything(), detailed=detailed)
        assert [name for name, one in parse(text.decode()).items() if not one.samples] == []
        assert promtool("check", "metrics", text=text) == ""

    def test_promtool_accepts_rules_and_configuration(self) -> None:
        promtool("check", "rules", str(DEPLOY / "alerts.yml"))
        said = promtool("check", "config", str(DEPLOY / "prometheus.yml"))
        assert f"{len(ALERTS) + 1} rules found" in said

    def test_prometheus_scrapes_both_and_answers(self, busy: Broker, tmp_path: Path) -> None:
        assert busy.http_url is not None
        target = busy.http_url.removeprefix("http://")
        with prometheus(tmp_path, target) as ask:
            for path in ("/metrics", "/metrics/detailed"):
                job = f'job="{path}"'
                assert ask(f"up{{{job}}}") == {(): 1.0}
                records = ask(f'tailrace_topic_records_in_total{{{job},topic="orders"}}')
                assert records == {("orders",): 10.0}
            ends = ask('sum(tailrace_partition_log_end{topic="orders"}) by (topic)')
            assert ends == {("orders",): 10.0}
            rate = ask("histogram_quantile(0.5, tailrace_fsync_duration_seconds_bucket)")
            assert all(value >= 0 for value in rate.values())
            for alert in sorted(ALERTS):
                ask(alert)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Any]:
    """A process that has scraped both paths of ``target``; what asks it, by topic."""
    jobs = [
        {"job_name": path, "metrics_path": path, "static_configs": [{"targets": [target]}]}
        for path in ("/metrics", "/metrics/detailed")
    ]
    settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}}
    (folder / "prometheus.yml").write_text(json.dumps(settings | {"scrape_configs": jobs}))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder}/prometheus.yml"),
                *(f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        address = wait_for(folder / "log", r"address=(127\.0\.0\.1:[1-9]\d*)")
        wait_for(folder / "log", r"(Server is ready)")

        def ask(query: str) -> dict[tuple[str, ...], float]:
            url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
            found = json.loads(get(url))["data"]["result"]
            return {topics(one["metric"]): float(one["value"][1]) for one in found}

        deadline = time.monotonic() + SECONDS_MAX
        while ask("sum(up)") != {(): 2.0}:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield ask
    finally:
        process.kill()
        process.wait(SECONDS_MAX)


def topics(labels: dict[str, str]) -> tuple[str, ...]:
    return (labels["topic"],) if "topic" in labels else ()


def wait_for(path: Path, pattern: str) -> str:
    """What a line says that the process has written."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        found = re.search(pattern, path.read_text())
        if found:
            return found[1]
        time.sleep(0.02)
    raise AssertionError(path.read_text())
