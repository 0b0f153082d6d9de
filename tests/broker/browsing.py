"""A broker with HTTP, and a plain HTTP/1.1 client for it."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import trio

from tailrace.broker.server import Ready, Server
from tests.broker.harness import Settings, run, serving

ANSWER_SECONDS_MAX = 20


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error's code, and its message."""
        error = self.json["error"]
        return f"{error['code']}: {error['message']}"


class Browser:
    """Each request on a connection of its own."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.host, port = url.removeprefix("http://").rsplit(":", 1)
        self.port = int(port)
        self.token = token

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, **headers)

    async def send(self, method: str, path: str, document: object, **headers: str) -> Answer:
        """With a JSON body."""
        body = json.dumps(document).encode()
        return await self.ask(method, path, body, **{"content-type": "application/json", **headers})

    async def ask(
        self, method: str, path: str, body: bytes | None = None, /, **headers: str
    ) -> Answer:
        given = {"host": f"{self.host}:{self.port}", "connection": "close", **headers}
        if body is not None:
            given.setdefault("content-length", str(len(body)))
        if self.token is not None:
            given["authorization"] = f"Bearer {self.token}"
        request = h11.Request(method=method, target=path, headers=list(given.items()))
        with trio.fail_after(ANSWER_SECONDS_MAX):
            stream = await trio.open_tcp_stream(self.host, self.port)
            async with stream:
                return await exchange(stream, request, body or b"")


async def exchange(stream: trio.SocketStream, request: h11.Request, body: bytes) -> Answer:
    """Send a request, read the whole answer."""
    connection = h11.Connection(h11.CLIENT)
    out = connection.send(request) or b""
    if body:
        out += connection.send(h11.Data(body)) or b""
    await stream.send_all(out + (connection.send(h11.EndOfMessage()) or b""))
    status, headers, data = 0, {}, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65_536))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            data += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, headers, data)


def browse(
    tmp_path: Path,
    use: Callable[[Browser, Server, Ready], Awaitable[None]],
    settings: Settings | None = None,
    token: str | None = None,
) -> None:
    """A real broker with HTTP while ``use`` runs."""

    async def main() -> None:
        given: Settings = {"http.bind": "127.0.0.1:0", **(settings or {})}
        if token is not None:
            (tmp_path / "token").write_text(token)
            given["http.token_file"] = str(tmp_path / "token")
        async with serving(tmp_path, given) as (server, ready):
            assert ready.http is not None
            await use(Browser(ready.http, token), server, ready)

    run(main)
