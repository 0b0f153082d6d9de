"""Every query of the dashboards, asked of Debian's Prometheus, which scrapes three brokers."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tailrace.testing import Cluster
from tests.deploy.dashboards import DASHBOARDS, DEPLOY, Ask, asked_by, asking, empty

SECONDS_MAX = 60.0
LOOK_EVERY_S = 0.2
# Felt by a broker that is a process of its own: tests/proofs/compose.py asks for it.
OF_A_PROCESS = "tailrace_event_loop_lag_seconds_bucket"
TARGETS = '["n1:7480", "n2:7480", "n3:7480"]'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("prometheus") and not os.environ.get("CI"),
        reason="needs prometheus: apt-get install prometheus",
    ),
]


def use(cluster: Cluster) -> None:
    """All that the panels show, of a cluster that is used and has its troubles."""
    cluster.create_topic("orders", 3)
    cluster.create_topic("users", cleanup="compact", segment_size="4KiB")
    cluster.create_topic("short", retention_size="2KiB", segment_size="4KiB")
    with cluster.client() as client:
        with client.producer() as producer:
            for number in range(40):
                key = b"%d" % (number % 4)
                producer.send("orders", b"x", key=key)
                producer.send("users", b"x" * 200, key=key)
                producer.send("short", b"x" * 200)
        with client.producer(acks=1, idempotent=False) as weak:
            weak.send("orders", b"x")
        with client.consumer("orders", group="app", start="earliest", stop_at_end=True) as reader:
            assert len(list(reader)) == 41


@contextmanager
def prometheus(folder: Path, addresses: list[str]) -> Generator[Ask]:
    """With the configuration of the compose cluster, but for names; what asks it for values."""
    settings = (DEPLOY / "prometheus-compose.yml").read_text()
    assert TARGETS in settings
    settings = settings.replace(TARGETS, json.dumps(addresses)).replace(" 5s", " 1s")
    (folder / "prometheus.yml").write_text(settings)
    shutil.copy(DEPLOY / "alerts.yml", folder)
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
        address = _said(folder / "log", r"address=(127\.0\.0\.1:[1-9]\d*)")
        _said(folder / "log", r"(Server is ready)")

        yield asking(f"http://{address}")
    finally:
        process.kill()
        process.wait(SECONDS_MAX)


def _said(path: Path, pattern: str) -> str:
    """What a line says that the process has written."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        if found := re.search(pattern, path.read_text()):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(path.read_text())


def test_every_query_has_something_to_show(tmp_path: Path) -> None:
    asked = [query for query in asked_by(DASHBOARDS) if OF_A_PROCESS not in query]
    with Cluster(http=True) as cluster:
        targets = [broker.http_url for broker in cluster.brokers.values()]
        addresses = [one.removeprefix("http://") for one in targets if one is not None]
        with prometheus(tmp_path, addresses) as ask:
            deadline = time.monotonic() + SECONDS_MAX
            while ask('sum(up{job="tailrace"})') != [3.0]:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(LOOK_EVERY_S)
            use(cluster)
            with cluster.client() as client, client.producer() as producer:
                while (without := empty(ask, asked)) and time.monotonic() < deadline:
                    producer.send("orders", b"x")  # a rate is of what goes on from scrape to scrape
                    time.sleep(LOOK_EVERY_S)
    assert not without
