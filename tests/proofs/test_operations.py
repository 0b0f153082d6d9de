"""docs/operations.md, followed word for word on a machine of its own, as systemd would have it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_docs import pattern
from tests.proofs.machine import PROJECT, Machine, reason_to_skip

PAGE = PROJECT / "docs/operations.md"
UNIT = PROJECT / "deploy/tailrace.service"
PIP = "/opt/tailrace/bin/pip install 'tailrace[server]'\n"

pytestmark = pytest.mark.slow


@pytest.fixture
def machine() -> Iterator[Machine]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def steps() -> list[tuple[str, str | None]]:
    """(script, what it must print or None), in the order of the page."""
    found = re.findall(
        r"^```sh\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", PAGE.read_text(), re.M | re.S
    )
    return [(script, said or None) for script, said in found]


def test_the_page_is_all_it_takes(machine: Machine) -> None:
    found = steps()
    assert len(found) >= 14
    for script, expected in found:
        before, pip, after = script.partition(PIP)
        said = machine.sh(before)
        if pip:
            machine.install()
            said += machine.sh(after)
        if expected is not None:
            assert re.fullmatch(pattern(expected), said), f"{script}\n{said}"
    assert machine.service.state == "inactive"
    assert machine.service.result == "exit 0"
    journal = machine.journal.read_text()
    assert '"event":"config.reread"' in journal
    assert "config.refused" not in journal
    assert not [line for line in journal.splitlines() if '"level":"error"' in line]


def test_what_is_written_on_the_machine_stays_on_it(machine: Machine) -> None:
    for folder in (Path("/usr/local/bin"), Path(sys.base_prefix), Path(sys.prefix), PROJECT):
        name = folder / "written-on-the-machine"
        machine.write(str(name), "x")
        assert machine.sh(f"cat {name}") == "x"
        assert not name.exists()


def test_the_unit_of_the_page_is_that_of_the_repository() -> None:
    assert UNIT.read_text() in PAGE.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "tailrace.service"
    unit.write_text(UNIT.read_text().replace("/opt/tailrace/bin/tailrace", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
