"""What the first ten minutes are played with: terminals, commands, the README's examples."""

import time
from pathlib import Path

import pytest

from tests.proofs.newcomer import Newcomer, Stumble, Terminal, from_readme

SECONDS_MAX = 20.0


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


def test_readme_has_an_app_and_a_test() -> None:
    assert "asyncio.run(main())" in from_readme("import asyncio")
    assert "tailrace_broker" in from_readme("def test_orders_are_counted")
    assert "kill_leader" in from_readme("def test_no_order_is_lost")


def test_lines_are_stamped_in_their_order_and_ctrl_c_is_typed(newcomer: Newcomer) -> None:
    # Not `read`: a shell that is told between two of them waits on in the second.
    code = "trap 'echo bye; exit 7' INT; echo began; while :; do sleep 0.2; done"
    with Terminal(newcomer, "sh", "-c", code) as terminal:
        match, at = terminal.wait("^be(.*)$", seconds=SECONDS_MAX)
        assert match[1] == "gan"
        assert terminal.began <= at <= time.monotonic()
        assert terminal.ctrl_c() == 7
        _, ended = terminal.wait("^.*bye$", seconds=SECONDS_MAX)
        assert at <= ended


def test_text_on_a_terminal_nobody_waits_for_has_its_own_time(newcomer: Newcomer) -> None:
    with Terminal(newcomer, "sh", "-c", "echo early") as one:
        with Terminal(newcomer, "sh", "-c", "echo there; read line") as other:
            one.end()
            between = time.monotonic()
            assert one.wait("early", seconds=SECONDS_MAX)[1] <= between
            other.wait("^there$", seconds=SECONDS_MAX)  # and the terminal is its own
            assert other.ctrl_c() != 0


def test_what_did_not_come_is_told_with_what_came(newcomer: Newcomer) -> None:
    with Terminal(newcomer, "sh", "-c", "echo something else") as terminal:
        with pytest.raises(Stumble, match="something else"):
            terminal.wait("^promised$", seconds=SECONDS_MAX)


def test_stdout_can_go_to_a_file(newcomer: Newcomer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Terminal(newcomer, "sh", "-c", "echo data; echo told >&2", stdout=out) as terminal:
        terminal.wait("^told$", seconds=SECONDS_MAX)
        assert terminal.end() == 0
    assert out.read_text() == "data\n"
    assert "data" not in terminal.text


def test_streams_are_compared_word_for_word(newcomer: Newcomer) -> None:
    done = newcomer.type("echo out; echo err >&2; exit 3")
    assert done.expect("out\n", "err\n", codes=(3,)) is done
    for out, err, codes in (("ou\n", "err\n", (3,)), ("out\n", "", (3,)), ("out\n", "err\n", (0,))):
        with pytest.raises(Stumble):
            done.expect(out, err, codes)
