"""One broker for all tests of the command line, and commands run in this process."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tailrace.cli import run
from tailrace.testing import Broker


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: bytes
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def error(self) -> dict[str, Any]:
        """The error of ``-O json``: the last line of stderr."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


class Cli(Protocol):
    """Runs one command against the broker."""

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result: ...


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real broker with files and HTTP; topics have names of their own.

    Not of the session: while it lives, caplog of other tests has the lines of brokers twice.
    """
    with Broker(data_dir=tmp_path_factory.mktemp("broker"), http=True) as found:
        yield found


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TAILRACE")]:
        monkeypatch.delenv(name)


@pytest.fixture
def offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Commands without a broker: nothing listens where they look."""

    def call(*arguments: str, stdin: bytes | None = None) -> Result:
        path = tmp_path / "stdin"
        path.write_bytes(stdin or b"")
        with path.open() as file:
            monkeypatch.setattr("sys.stdin", file)
            capsysbinary.readouterr()
            code = run(list(arguments))
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    monkeypatch.setenv("TAILRACE_URL", "127.0.0.1:1")
    return call


@pytest.fixture
def cli(offline: Cli, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands with the broker at the other end."""
    assert broker.http_url is not None
    monkeypatch.setenv("TAILRACE_URL", broker.url)
    monkeypatch.setenv("TAILRACE_HTTP__BIND", broker.http_url.removeprefix("http://"))
    return offline
