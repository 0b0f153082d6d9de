"""Watching a cluster's health ends when it is told to."""

import signal

import pytest

from tailrace.client import cli_health
from tailrace.client.cli_health import Health, follow
from tailrace.protocol.console import Console


def test_ctrl_c_ends_a_watch_also_where_a_look_swallows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[bool] = []

    def swallow(console: Console, local: bool) -> Health:
        looks.append(local)
        assert len(looks) == 1, "it went on"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return Health({"healthy": True}, "HEALTHY")

    monkeypatch.setattr(cli_health, "look", swallow)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        follow(Console(quiet=True), local=True, wait_s=None, watch=True)
    assert signal.getsignal(signal.SIGINT) is before
