"""The fixtures, in a user's own test session."""

import os
import subprocess
import sys
from pathlib import Path

from tailrace.testing import Broker

TESTS = """
import anyio
import pytest
import tailrace


def test_sync(tailrace_broker):
    tailrace_broker.seed("orders", [b"a", b"b"])
    assert tailrace_broker.wait_values("orders", count=2) == [b"a", b"b"]


def test_each_test_has_its_own(tailrace_broker):
    tailrace_broker.create_topic("orders")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async(tailrace_broker_session, backend):
    topic = tailrace_broker_session.name("orders")

    async def main():
        async with tailrace.connect(tailrace_broker_session.url) as client:
            async with client.producer() as producer:
                return await producer.send(topic, b"x")

    assert anyio.run(main, backend=backend).offset == 0


def test_crash(tailrace_broker):
    tailrace_broker.seed("crash", [b"a"])
    tailrace_broker.restart(crash=True)
    with tailrace_broker.faults.delay(0.01):
        assert tailrace_broker.wait_values("crash", count=1) == [b"a"]
"""


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_users_tests_run_on_the_fixtures(tmp_path: Path) -> None:
    result = run_pytest(tmp_path)
    assert "5 passed" in result.stdout, result.stdout + result.stderr


def test_the_same_tests_run_on_a_cluster(tmp_path: Path) -> None:
    with Broker() as broker:
        result = run_pytest(tmp_path, "--tailrace-url", broker.url, "--deselect", "test_mine.py::x")
        assert "1 skipped" in result.stdout, result.stdout + result.stderr
        assert "restart() needs a broker of the test's own" in result.stdout


def test_a_session_that_uses_no_fixture_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_lazy() -> None:\n    assert 'trio' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tailrace.testing.plugin", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # others import what they like
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in result.stdout, result.stdout


def test_the_broker_is_imported_as_it_is_installed(tmp_path: Path) -> None:
    """Rewriting the assertions of all its modules would take seconds the first time."""
    (tmp_path / "test_other.py").write_text(
        "from importlib.machinery import SourceFileLoader\n\n"
        "def test_loader(tailrace_broker) -> None:\n"
        "    import tailrace.broker.node as node\n"
        "    assert type(node.__loader__) is SourceFileLoader\n"
    )
    result = run_pytest(tmp_path, "-k", "loader")
    assert "1 passed" in result.stdout, result.stdout + result.stderr
