"""What lies in deploy/ agrees with itself and with what brokers show."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tailrace.broker.config import from_mapping
from tailrace.broker.metric_table import TABLE
from tailrace.client.metrics import FAMILIES
from tests.deploy.dashboards import DASHBOARDS, DEPLOY, queries

SUFFIXES = ("_bucket", "_sum", "_count")


@pytest.mark.skipif(
    not shutil.which("promtool") and not os.environ.get("CI"),
    reason="needs promtool: apt-get install prometheus",
)
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text())
    tests = re.findall(r"- name: (\w+)", (DEPLOY / "alerts_test.yml").read_text())
    assert alerts == tests


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_series_that_brokers_have(dashboard: Path) -> None:
    names = {f"tailrace_{spec.name}" for spec in TABLE} | {one.name for one in FAMILIES}
    asked = set(re.findall(r"tailrace_\w+", " ".join(queries(dashboard))))
    assert asked
    for name in asked:
        stem = next((name.removesuffix(one) for one in SUFFIXES if name.endswith(one)), name)
        assert name in names or stem in names, name


def test_dashboards_have_titles_of_their_own() -> None:
    documents: list[Any] = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({one["uid"] for one in documents}) == len(documents) == 3
    for document in documents:
        titles = [panel["title"] for panel in document["panels"]]
        assert len(set(titles)) == len(titles)
        assert len({panel["id"] for panel in document["panels"]}) == len(titles)


@pytest.mark.parametrize("broker", ["n1", "n2", "n3"])
def test_brokers_of_the_compose_file_have_valid_settings(broker: str) -> None:
    text = (DEPLOY / "compose.yml").read_text()
    shared = text[text.index("x-settings:") : text.index("services:")]
    own = text[text.index(f"  {broker}:\n") :].split("ports:")[0]
    found = dict(re.findall(r"^ +TAILRACE_(\w+): (.+)$", shared + own, re.MULTILINE))
    settings = {name.lower().replace("__", "."): value.strip('"') for name, value in found.items()}
    config = from_mapping({**settings, "storage.data_dir": "/var/lib/tailrace"})
    assert config.broker.id == broker
    assert {one.name for one in config.listeners} == {"client", "host", "peer"}


def test_one_service_builds_the_image_and_the_others_wait_for_it() -> None:
    text = (DEPLOY / "compose.yml").read_text()
    assert text.count("build:") == text.count("image: tailrace\n") == 1
    assert "pull_policy: never" in text


def test_the_file_says_what_the_page_does() -> None:
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    _, _, section = page.partition("## A cluster with Docker Compose\n")
    first, _, _ = section.partition("\n```\n")
    head, _, _ = (DEPLOY / "compose.yml").read_text().partition("x-broker")
    said = re.findall(r"^#   (docker compose .*)$", head, re.MULTILINE)
    assert said == re.findall(r"^\$ (docker compose .*)$", first, re.MULTILINE)
    assert len(said) == 2
    addresses = re.findall(r"tailrace://\S+", head)
    assert len(addresses) == 2
    assert all(address in section for address in addresses)


def test_prometheus_has_a_token_of_its_own_where_the_page_puts_it() -> None:
    """The broker's is in a directory that only its own group may enter."""
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    (named,) = re.findall(r"credentials_file: (\S+)", (DEPLOY / "prometheus.yml").read_text())
    assert f"install -m 0640 -g prometheus /etc/tailrace/token {named}\n" in page
    assert not named.startswith("/etc/tailrace/")
    assert 'token_file = "/etc/tailrace/token"' in page


def test_the_page_says_that_prometheus_has_a_list_of_the_brokers() -> None:
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    assert '["n1:7480", "n2:7480", "n3:7480"]' in (DEPLOY / "prometheus-compose.yml").read_text()
    _, _, rest = page.partition("**Add a broker**")
    added, _, rest = rest.partition("**Take one out**")
    taken, _, _ = rest.partition("\n\n")
    assert "deploy/prometheus-compose.yml" in added
    assert "deploy/prometheus-compose.yml" in taken
    assert "`TailraceDown`" in taken
