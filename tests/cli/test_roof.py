"""The root of the command line: global options, errors and their exit codes, names to come."""

import importlib.util
import json
import re
from importlib.machinery import ModuleSpec

import pytest

from tailrace.cli import COMMANDS, EXTRAS, LATER, run
from tailrace.protocol.catalogue import CATALOGUE
from tailrace.testing import Broker
from tests.cli.conftest import Cli


def test_version(offline: Cli) -> None:
    assert offline("--version").out == b"tailrace 0.1.0 (protocol 1)\n"


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_every_command(offline: Cli, command: tuple[str, ...], flag: str) -> None:
    result = offline(*command, flag)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(b"Usage: tailrace")


def test_help_names_every_command_with_its_purpose(offline: Cli) -> None:
    text = offline("--help").out.decode()
    for name, place in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(place.help)}$", text, re.MULTILINE)


@pytest.mark.parametrize("command", [(), ("topic",), ("segment",), ("cluster",), ("config",)])
def test_nothing_asked_for_shows_the_help_as_an_error(
    offline: Cli, command: tuple[str, ...]
) -> None:
    result = offline(*command)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("Usage: tailrace")


@pytest.mark.parametrize(
    "command",
    [
        *((name, "x") for name in LATER),
        ("topic", "purge", "t"),
        ("consume", "t", "--filter", "x"),
        ("dev", "--seed", "1"),
    ],
)
def test_names_of_later_releases(offline: Cli, command: tuple[str, ...]) -> None:
    result = offline(*command)
    assert (result.code, result.out) == (2, b"")
    assert re.match(r"error: T086: '.*' comes with a later release\. See ", result.err)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nope",), "tailrace: No such command 'nope'"),
        (("produc",), "tailrace: No such command 'produc'. Similar: produce. See: "),
        (("topic", "nope"), "tailrace topic: No such command 'nope'"),
        (("produce",), "tailrace produce: Missing argument 'TOPIC'"),
        (("topic", "list", "--nope"), "tailrace topic list: No such option '--nope'"),
        (("-O", "xml", "topic", "list"), "tailrace: Invalid value for '-O' / '--output'"),
        (
            ("topic", "list", "--timeout", "10"),
            "tailrace topic list: Invalid value for '--timeout'",
        ),
        (("--timeout", "0s", "topic", "list"), "tailrace: Invalid value for '--timeout'"),
    ],
)
def test_usage_errors(offline: Cli, arguments: tuple[str, ...], text: str) -> None:
    result = offline(*arguments)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith(f"error: T082: {text}")
    assert re.search(r" See: tailrace.* --help\n$", result.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-O", "json", "consume", "nosuch", "-e"),
        ("consume", "nosuch", "-e", "-O", "ndjson"),
        ("consume", "--output=json", "nosuch", "-e"),
    ],
)
def test_an_error_is_one_line_of_json_where_json_was_asked_for(
    cli: Cli, arguments: tuple[str, ...]
) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (4, b"")
    assert len(result.err.splitlines()) == 1
    assert result.error() == {
        **{"code": "T010", "class": "TopicNotFound", "message": "topic 'nosuch' does not exist"},
        **{"hint": "Create it: tailrace topic create nosuch", "retriable": False},
        **{"details": {"name": "nosuch", "similar": []}},
    }


def test_a_typo_is_answered_with_what_there_is(cli: Cli, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.create_topic(topic)
    result = cli("topic", "describe", topic[:-1])
    assert result.code == 4
    assert f"Similar: {topic}. Create it: tailrace topic create {topic[:-1]}" in result.err


def test_nobody_there_is_exit_3(offline: Cli) -> None:
    result = offline("topic", "list")
    assert result.code == 3
    assert re.fullmatch(
        r"error: T001: no broker reachable in [\d.]+ s: 127\.0\.0\.1:1 \(connection refused\)\. "
        r"Nothing listens there\. Start one: tailrace dev\n",
        result.err,
    )


@pytest.mark.parametrize(
    ("url", "code"),
    [("http://x", 2), ("tailrace://h?colour=1", 2), ("no-such-host.invalid", 3), ("a b", 2)],
)
def test_urls_that_lead_nowhere(offline: Cli, url: str, code: int) -> None:
    assert offline("-b", url, "topic", "list").code == code


def test_url_may_stand_before_or_after_and_beats_the_environment(
    offline: Cli, broker: Broker
) -> None:
    bare = broker.url.removeprefix("tailrace://")
    assert offline("-b", bare, "topic", "list").code == 0
    assert offline("topic", "list", "-b", broker.url).code == 0
    assert offline("topic", "list", "--url", f"127.0.0.1:1,{bare}").code == 0


def test_output_from_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_OUTPUT", "json")
    assert "topics" in cli("topic", "list").json()
    assert cli("topic", "list", "-O", "table").out.startswith(b"TOPIC")
    monkeypatch.setenv("TAILRACE_OUTPUT", "xml")
    assert cli("topic", "list").code == 2


def test_an_unreadable_file_is_an_error_of_ours(offline: Cli, tmp_path: object) -> None:
    result = offline("--tls-ca", f"{tmp_path}/missing.pem", "topic", "list")
    assert result.code == 2
    assert result.err.startswith("error: T082: --tls-ca ")


@pytest.mark.parametrize("code", CATALOGUE)
def test_explain_every_code(offline: Cli, code: str) -> None:
    entry = CATALOGUE[code]
    text = offline("explain", code.lower()).out.decode()
    for part in (entry.class_name, entry.cause, entry.fix, entry.example):
        assert part in text
    document = offline("explain", code, "-O", "json").json()
    assert set(document) == {"code", "class", "retriable", "cause", "fix", "example"}


def test_explain_of_no_code(offline: Cli) -> None:
    result = offline("explain", "T998")
    assert result.code == 2
    assert "there is no error T998. Similar: T0" in result.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(offline: Cli, shell: str) -> None:
    result = offline("completion", shell)
    assert result.code == 0
    assert b"_TAILRACE_COMPLETE" in result.out


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [
        ("tailrace pro", 1, ["produce"]),
        ("tailrace topic de", 2, ["delete", "delete-records", "describe"]),
        ("tailrace consume --dec", 2, ["--decode"]),
        ("tailrace queue x", 2, []),
    ],
)
def test_completion_answers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    at: int,
    expected: list[str],
) -> None:
    monkeypatch.setenv("_TAILRACE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(at))
    run([])
    out, err = capsys.readouterr()
    assert sorted(line.removeprefix("plain,") for line in out.splitlines()) == expected
    assert err == ""


@pytest.mark.provokes("T084")
@pytest.mark.parametrize("missing", EXTRAS)
def test_missing_server_is_named(
    offline: Cli, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Also where a part of it is there, as trio is for whoever uses the SDK with it."""
    find = importlib.util.find_spec

    def look(name: str) -> ModuleSpec | None:
        return None if name == missing else find(name)

    monkeypatch.setattr("importlib.util.find_spec", look)
    result = offline("serve")
    assert result.code == 2
    assert result.err == (
        "error: T084: 'serve' needs the server. Install it: pip install 'tailrace[server]'\n"
    )


def test_details_of_an_error_are_json(cli: Cli) -> None:
    result = cli("-O", "json", "topic", "list", "-b", "127.0.0.1:1")
    details = json.loads(result.err)["error"]["details"]
    assert details["attempts"] == [["127.0.0.1:1", "connection refused"]]
