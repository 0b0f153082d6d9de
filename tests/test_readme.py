"""The consumer of the README does what stands beside it: two of them share the partitions."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tailrace.testing import Broker
from tests.proofs.newcomer import from_readme

SECONDS_MAX = 20.0


class App:
    """One process of it; its output comes line by line."""

    def __init__(self, broker: Broker, directory: Path) -> None:
        (directory / "app.py").write_text(from_readme("import asyncio"))
        self._process = subprocess.Popen(
            [sys.executable, "-u", "app.py"],
            cwd=directory,
            env={**os.environ, "TAILRACE_URL": broker.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, pattern: str) -> str:
        """Lines up to the first that matches; the test's time limit is the bound."""
        assert self._process.stdout is not None
        text = ""
        for line in self._process.stdout:
            text += line
            if re.search(pattern, line):
                return text
        raise AssertionError(f"no {pattern!r} in:\n{text}")

    def stop(self) -> None:
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGINT)
        self._process.stdout.read()
        self._process.wait(SECONDS_MAX)
        self._process.stdout.close()


@pytest.mark.slow
def test_example_goes_on_where_it_was_and_is_shared_by_two(tmp_path: Path) -> None:
    with Broker() as broker:
        broker.create_topic("hello", partitions=2)
        first = App(broker, tmp_path)
        said = first.read_until("'n': 2")
        assert "T073: group 'app' has no commits; starting at hello[0]@0, hello[1]@0." in said
        assert re.search(
            r"^rebalanced: hello\[0\], hello\[1\] -> app.py-\d+ \(member j", said, re.M
        )
        second = App(broker, tmp_path)
        line = r"^rebalanced: hello\[\d\] -> app.py-\d+ \(member joined\), [\d,]+ ms$"
        assert len(re.findall(line, first.read_until(line), re.M)) == 1
        second.read_until(line)
        second.stop()
        first.stop()
        with broker.client() as client:
            lag = client.admin.group_lag("app").lag_records
        assert lag == 0, "both waited for the next record, and committed as they left"
