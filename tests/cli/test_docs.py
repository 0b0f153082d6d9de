"""The examples of docs/cli.md are true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tailrace.testing import Broker

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
SECONDS_MAX = 30.0


def examples() -> list[tuple[str, str]]:
    """(command, answer) of every example, in order."""
    blocks = re.findall(r"^```\n(\$ .*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = re.split(r"^\$ ", "".join(blocks), flags=re.MULTILINE)[1:]
    return [(command, answer) for command, _, answer in (c.partition("\n") for c in commands)]


def pattern(answer: str) -> str:
    """``...`` stands for anything, blanks around it for any number of blanks."""
    return r"[\s\S]*?".join(map(re.escape, re.split(r" *\.\.\. *", answer)))


@pytest.mark.slow
def test_examples_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "tailrace"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tailrace.cli "$@"\n')
    script.chmod(0o755)
    found = examples()
    assert len(found) > 25
    with Broker(data_dir=tmp_path / "data", http=True) as broker:
        assert broker.http_url is not None
        environment = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "TAILRACE_URL": broker.url,
            "TAILRACE_HTTP__BIND": broker.http_url.removeprefix("http://"),
        }
        for command, answer in found:
            done = subprocess.run(
                ["sh", "-c", command.replace("DATA", str(tmp_path / "data"))],
                env=environment,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS_MAX,
            )
            said = done.stdout.decode()
            assert re.fullmatch(pattern(answer), said), f"$ {command}\n{said}"
