"""mypy and pyright infer keys and values in a project that imports tailrace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = Path(__file__).parent / "typing_project"


@pytest.mark.slow
def test_mypy_infers_types_and_finds_mistakes() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(PROJECT)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert (found.stdout, found.stderr) == ("", "")


@pytest.mark.slow
def test_pyright_infers_types_and_finds_mistakes() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", str(PROJECT)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    told = json.loads(found.stdout)
    errors = [one for one in told["generalDiagnostics"] if one["severity"] == "error"]
    assert errors == []
    assert told["summary"]["filesAnalyzed"] == 2
