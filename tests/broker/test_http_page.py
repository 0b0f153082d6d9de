"""Every curl of docs/http.md is typed, and answers as it stands there."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tailrace import TopicPartition
from tailrace.testing import Broker

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
ADDRESS = "127.0.0.1:7480"


def examples() -> list[tuple[str, str]]:
    """Each command of the page, and what stands below it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.S):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def matches(expected: str, found: str) -> bool:
    """``…`` is anything."""
    pattern = ".*".join(map(re.escape, expected.split("…")))
    return re.fullmatch(pattern, found, re.S) is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_page_says_what_happens() -> None:
    commands = examples()
    assert len(commands) >= 8
    with Broker(http=True) as broker:
        assert broker.http_url is not None
        for command, expected in commands:
            if "/groups/" in command and not broker.client().admin.list_groups():
                start_group(broker)
            words = shlex.split(command.replace(ADDRESS, broker.http_url.removeprefix("http://")))
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
            assert matches(expected, done.stdout), f"{command}\n{done.stdout}"


def start_group(broker: Broker) -> None:
    """billing has read one of three records."""
    with broker.client().producer() as producer:
        for value in (b"a", b"b", b"c"):
            producer.send("orders", value, partition=0)
    with broker.client().consumer("orders", group="billing") as consumer:
        consumer.commit({TopicPartition("orders", 0): 1})
