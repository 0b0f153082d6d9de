"""HTTP over a real socket: probes, metrics, token, and that it cannot take the broker down."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tailrace.broker import http
from tailrace.broker.config import Config, from_mapping
from tailrace.broker.gateway import Gateway
from tailrace.broker.health import Health
from tailrace.broker.http import serve_http
from tailrace.broker.http_app import HttpView
from tailrace.broker.http_server import HttpServer
from tailrace.broker.metrics import Metrics
from tailrace.broker.system import system_world
from tailrace.broker.world import Listener
from tailrace.protocol.errors import ConfigError

ANSWER_SECONDS_MAX = 10
NET = system_world().net


class View:
    """A broker, as HTTP sees it."""

    def __init__(self) -> None:
        self.health = Health()
        self.metrics = Metrics(version="0.1.0", topics_max=10, clock=trio.current_time)
        self.gateway: Gateway | None = None
        self.config = from_mapping({})

    def make_ready(self) -> None:
        self.health.recovered = True
        self.health.listening = ("127.0.0.1:7400",)


class Browser:
    """Requests to one server."""

    def __init__(self, url: str) -> None:
        self.port = int(url.rsplit(":", 1)[1])

    async def get(
        self, path: str, host: str = "anything.example", **headers: str
    ) -> tuple[int, str]:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        answer = await self.raw("\r\n".join([*lines, "", ""]).encode())
        head, _, body = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), body

    async def get_json(self, path: str) -> tuple[int, dict[str, Any]]:
        code, body = await self.get(path)
        return code, json.loads(body)

    async def raw(self, data: bytes) -> bytes:
        with trio.fail_after(ANSWER_SECONDS_MAX):
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
            async with stream:
                await stream.send_all(data)
                await stream.send_eof()
                return b"".join([chunk async for chunk in stream])


def settings(token_file: str = "", bind: str = "127.0.0.1:0") -> Config:
    return from_mapping({"http.bind": bind, "http.token_file": token_file})


def run(
    use: Callable[[Browser, View], Awaitable[None]], token_file: str = "", view: View | None = None
) -> None:
    """Serve while ``use`` runs."""

    async def main() -> None:
        shown = view or View()
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve_http, shown, settings(token_file), NET)
            await use(Browser(url), shown)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_probes_follow_the_broker_through_its_life() -> None:
    async def use(browser: Browser, view: View) -> None:
        health = view.health
        health.partitions_total, health.partitions_done = 50, 21
        assert await browser.get_json("/livez") == (200, {"status": "ok"})
        counts = {"partitions_done": 21, "partitions_total": 50, "bytes_done": 0, "bytes_total": 0}
        recovering = {"status": "recovering", "progress": 0.42, **counts}
        assert await browser.get_json("/startupz") == (503, recovering)
        code, document = await browser.get_json("/readyz")
        assert (code, document["status"]) == (503, "fail")
        names = [check["name"] for check in document["checks"]]
        assert names == ["recovered", "metadata", "listeners", "disk", "shutdown"]

        view.make_ready()
        assert (await browser.get_json("/startupz"))[0] == 200
        assert (await browser.get_json("/startupz"))[1]["status"] == "started"
        code, document = await browser.get_json("/readyz")
        assert (code, document["status"]) == (200, "ok")
        assert all(check["ok"] for check in document["checks"])

        health.disk_low = "3 B free"
        code, document = await browser.get_json("/readyz")
        assert (code, document["status"]) == (200, "degraded")

        health.draining = True
        code, document = await browser.get_json("/readyz")
        assert (code, document["status"]) == (503, "fail")
        assert [c["name"] for c in document["checks"] if not c["ok"]] == ["disk", "shutdown"]

    run(use)


def test_metrics_are_prometheus_text() -> None:
    async def use(browser: Browser, view: View) -> None:
        view.metrics.topic("orders").records_in.inc(2)
        code, body = await browser.get("/metrics")
        assert code == 200
        assert 'tailrace_topic_records_in_total{topic="orders"} 2.0\n' in body
        assert "tailrace_partition_log_end" not in body
        code, body = await browser.get("/metrics/detailed")
        assert code == 200
        assert "tailrace_partition_log_end" in body

    run(use)


def test_root_names_the_paths_and_others_are_not_found() -> None:
    async def use(browser: Browser, view: View) -> None:
        code, body = await browser.get("/")
        assert code == 200
        paths = body.splitlines()
        assert paths[:6] == ["/", "/livez", "/readyz", "/startupz", "/metrics", "/metrics/detailed"]
        assert "/api/v1/topics" in paths
        for path in ("/ui/", "/metrics/", "/api/v2/topics", "/api/v1/queues"):
            code, body = await browser.get(path, host="127.0.0.1")
            assert (code, json.loads(body)["error"]["code"]) == (404, "T062")

    run(use)


def test_token_guards_everything_but_the_probes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")

    async def use(browser: Browser, view: View) -> None:
        view.make_ready()
        for path in ("/livez", "/readyz", "/startupz"):
            assert (await browser.get(path))[0] == 200
        for path in ("/", "/metrics", "/metrics/detailed"):
            code, body = await browser.get(path)
            assert code == 401
            assert json.loads(body)["error"]["code"] == "T006"
            code, body = await browser.get(path, Authorization="Bearer s3cre")
            assert code == 401
            assert "wrong token" in json.loads(body)["error"]["message"]
            assert (await browser.get(path, Authorization="Bearer s3cret"))[0] == 200

    run(use, str(file))


def test_useless_token_file_stops_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        await serve_http(View(), settings(str(tmp_path / "missing")), NET)

    with pytest.raises(ConfigError, match="cannot be read"):
        trio.run(main)


def test_taken_port_is_named() -> None:
    async def use(browser: Browser, view: View) -> None:
        taken = settings(bind=f"127.0.0.1:{browser.port}")
        with pytest.raises(ConfigError, match=r"T082: .* cannot be bound: Address already in use"):
            await serve_http(view, taken, NET)

    run(use)


def test_foreign_bytes_harm_nobody_else() -> None:
    async def use(browser: Browser, view: View) -> None:
        for data in (
            b"\x16\x03\x01\x02\x00" * 20,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"\x00" * 20_000,
        ):
            await browser.raw(data)
        assert (await browser.get("/livez"))[0] == 200

    run(use)


def test_server_that_broke_is_started_again_on_the_same_port(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = http.assemble
    broken = iter([True])

    class Broken(HttpServer):
        async def serve(self, listener: Listener) -> None:
            raise RuntimeError("boom")

    def assemble(view: HttpView, config: Config, token: str | None) -> HttpServer:
        server = real(view, config, token)
        if next(broken, False):
            server.__class__ = Broken
        return server

    monkeypatch.setattr(http, "assemble", assemble)
    monkeypatch.setattr(http, "RESTART_PAUSE_S", 0.0)

    async def use(browser: Browser, view: View) -> None:
        assert (await browser.get("/livez"))[0] == 200

    run(use)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "HTTP server failed, starting it again: RuntimeError('boom')"
    ]


def test_what_http_needs_is_imported_when_somebody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    real, assembled = http.assemble, list[str]()

    def assemble(view: HttpView, config: Config, token: str | None) -> HttpServer:
        assembled.append("now")
        return real(view, config, token)

    monkeypatch.setattr(http, "assemble", assemble)

    async def use(browser: Browser, view: View) -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert assembled == []
        for _ in range(2):
            assert (await browser.get("/livez"))[0] == 200
        assert assembled == ["now"]

    run(use)


def test_what_http_needs_is_imported_only_where_it_is_on() -> None:
    code = "import sys, tailrace.broker.server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"starlette", "h11", "tailrace.broker.http_app"} & set(done.stdout.split())
