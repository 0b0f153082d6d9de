"""What the tests of the broker share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.brokers import Broker, Start
from tests.etcd_process import BINARIES, WANTED, tried


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start brokers on ./data, port 0, without HTTP, with JSON on stdout."""
    made: list[Broker] = []

    def begin(
        *arguments: str,
        http: str = "",
        environ: dict[str, str] | None = None,
        faults: tuple[str, ...] | None = None,
    ) -> Broker:
        base = ["-O", "json", "serve", "--data", "data", "--set", "listeners.client.bind=[::1]:0"]
        base += ["--set", f"http.bind={http}", *arguments]
        made.append(Broker(tmp_path, *base, environ=environ, faults=faults))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Start any command."""
    made: list[Broker] = []

    def begin(*arguments: str, environ: dict[str, str] | None = None) -> Broker:
        made.append(Broker(tmp_path, *arguments, environ=environ))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture(scope="module", params=tried())
def etcd_binary(request: pytest.FixtureRequest) -> str:
    """Every etcd there is, one after the other."""
    version: str = request.param
    assert version in BINARIES, f"there is no etcd {version}: {WANTED[version]}"
    return str(BINARIES[version])
