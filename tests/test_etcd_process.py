"""Which etcd the tests take, where there are several."""

from pathlib import Path

import pytest

from tests import etcd_process
from tests.etcd_process import by_version, candidates, version


def say(folder: Path, text: str) -> Path:
    """A command of the name etcd that says this, and nothing else."""
    folder.mkdir()
    command = folder / "etcd"
    command.write_text(f"#!/bin/sh\necho '{text}'\n")
    command.chmod(0o755)
    return command


def test_an_etcd_is_known_by_what_it_says_of_itself(tmp_path: Path) -> None:
    newest = say(tmp_path / "newest", "etcd Version: 3.10.0")
    hiding = say(tmp_path / "hiding", "etcd Version: 3.5.1")
    hidden = say(tmp_path / "hidden", "etcd Version: 3.4.23")
    again = say(tmp_path / "again", "etcd Version: 3.4.30")
    other = say(tmp_path / "other", "etcdctl version: 3.4.23")
    missing = tmp_path / "etcd"
    found = by_version([newest, hiding, missing, other, hidden, again])
    assert list(found.items()) == [("3.4", hidden), ("3.5", hiding), ("3.10", newest)]


def test_one_that_is_named_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = say(tmp_path / "named", "etcd Version: 3.6.0")
    monkeypatch.setenv("TAILRACE_TEST_ETCD", str(named))
    assert candidates() == [named]
    monkeypatch.setenv("TAILRACE_TEST_ETCD", str(tmp_path / "etcd"))
    with pytest.raises(AssertionError, match="is no etcd"):
        candidates()


def test_ci_does_not_skip_an_etcd_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_process, "BINARIES", {})
    monkeypatch.delenv("TAILRACE_TEST_ETCD", raising=False)
    for ci, skipped in (("", True), ("true", False)):
        monkeypatch.setenv("CI", ci)
        assert [one.id for one in etcd_process.tried()] == ["3.4", "3.5"]
        assert {one.marks[0].args for one in etcd_process.tried()} == {(skipped,)}
    assert not version(Path("/nowhere/etcd"))
