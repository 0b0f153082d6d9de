"""The cluster and its configuration over HTTP."""

from pathlib import Path

import pytest

from tailrace.broker import http_cluster
from tailrace.broker.server import Ready, Server
from tests.broker.browsing import Browser, browse
from tests.errors.provoking import told_by


def test_the_cluster_and_its_brokers(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        cluster = (await browser.get("/api/v1/cluster")).json
        assert (cluster["cluster_id"], cluster["healthy"]) == (ready.cluster_id, True)
        assert cluster["brokers"][0]["http"] == ready.http
        health = (await browser.get("/api/v1/cluster/health")).json
        assert health == {
            **{"healthy": True, "problems": [], "brokers_up": 1, "brokers_total": 1},
            **{"under_replicated": 0, "below_min_isr": 0, "offline": 0, "metadata_ok": True},
        }
        brokers = (await browser.get("/api/v1/brokers")).json["brokers"]
        assert [broker["id"] for broker in brokers] == ["n1"]
        assert (await browser.get("/api/v1/brokers/n1")).json["id"] == "n1"
        missing = await browser.get("/api/v1/brokers/n2")
        assert missing.status == 404
        assert missing.error == "T062: the cluster has no broker n2"

    browse(tmp_path, use)


def test_settings_come_with_their_origin(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        settings = (await browser.get("/api/v1/config")).json["settings"]
        by_key = {one["key"]: one for one in settings}
        assert list(by_key) == sorted(by_key)
        assert by_key["storage.min_free"] == {
            **{"key": "storage.min_free", "value": "1B", "default": "5%", "source": "cli"},
            **{"dynamic": False, "origin": "config"},
        }
        shown = (await browser.get("/api/v1/config")).body
        assert b"s3cret" not in shown

    browse(tmp_path, use, token="s3cret")


def test_explain_needs_something_to_explain(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        missing = await browser.get("/api/v1/explain?topic=orders")
        assert (missing.status, missing.json["error"]["code"]) == (404, "T010")
        assert (await browser.get("/api/v1/explain")).status == 400

    browse(tmp_path, use)


@pytest.mark.provokes("T000")
def test_a_bug_ends_one_request_and_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("boom")

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        monkeypatch.setattr(http_cluster, "settings_of", broken)
        answer = await browser.get("/api/v1/config")
        assert answer.status == 500
        told_by(
            answer.json["error"],
            *("T000", "broker n1 failed to answer, which is a fault of its own"),
        )
        assert (await browser.get("/api/v1/cluster")).status == 200

    browse(tmp_path, use)
    assert "GET /api/v1/config failed: RuntimeError('boom')" in caplog.messages
