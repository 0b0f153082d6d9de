"""Configuration: precedence, sources, every refusal with its code and place."""

import errno
import os
from pathlib import Path

import pytest

from tailrace.broker.config import (
    Config,
    Sources,
    changed_keys,
    examine,
    find_file,
    from_mapping,
    load,
)
from tailrace.broker.config_values import Plain, read_options
from tailrace.protocol.errors import ConfigError


def write(path: Path, text: str) -> Path:
    file = path / "tailrace.toml"
    file.write_text(text)
    return file


def refusal(
    text: str = "", *, path: Path | None = None, environ: dict[str, str] | None = None
) -> str:
    """The one error of a configuration, as text without the file's folder."""
    file = write(path, text) if path else None
    config, errors = examine(Sources(file, environ))
    assert config is None
    assert len(errors) == 1, errors
    return str(errors[0]).replace(f"{path}/", "")


def test_defaults_are_those_of_the_contract() -> None:
    config = load(Sources())
    assert config.broker.id == "n1"
    assert config.broker.shutdown_timeout_s == 20
    assert str(config.listeners[0].bind) == "127.0.0.1:7400"
    assert config.topic.retention_ms == 7 * 86_400_000
    assert config.topic.segment_age_ms == 7 * 86_400_000 // 8  # less than a day
    assert config.limits.request_size_bytes == 16 << 20
    assert {value.source for value in config.values.values()} == {"default"}


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, '[broker]\nid = "file"\nrack = "file"\n\n[log]\nlevel = "error"\n')
    environ = {"TAILRACE_BROKER__ID": "env", "TAILRACE_BROKER__RACK": "env", "HOME": "/"}
    options = read_options(["broker.id=cli"])
    config = load(Sources(file, environ, tuple(options)))
    assert (config.broker.id, config.broker.rack, config.log.level) == ("cli", "env", "error")
    places = {key: (value.source, value.origin) for key, value in config.values.items()}
    assert places["broker.id"] == ("cli", "--set broker.id")
    assert places["broker.rack"] == ("env", "TAILRACE_BROKER__RACK")
    assert places["log.level"] == ("file", f"{file}:6")
    assert places["log.format"] == ("default", "default")


def test_names_without_two_underscores_are_no_settings() -> None:
    load(Sources(environ={"TAILRACE_URL": "x", "TAILRACE_OUTPUT": "json", "TAILRACE_CONFIG": ""}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[storage]\ndatadir = 'x'",
            "T080: tailrace.toml:2: storage.datadir unknown. Did you mean storage.data_dir?",
        ),
        (
            "\n[storage]\nqqq = 1",
            "T080: tailrace.toml:3: storage.qqq unknown. List all keys: tailrace config show",
        ),
        (
            "[security]\ntls_client_ca = 'ca.pem'",
            "T080: tailrace.toml:2: security.tls_client_ca unknown. Remove it: it comes with a"
            " later release (client certificates).",
        ),
        (
            "[auth]\nmethod = 'x'",
            "T080: tailrace.toml:1: auth unknown. Remove it: it comes with a later release"
            " (authentication).",
        ),
        (
            "[group]\nsession_timeout_min = '10m'",
            "T082: tailrace.toml:2: session_timeout_min 10m > session_timeout_max 5m."
            " Lower session_timeout_min or raise session_timeout_max.",
        ),
        ("id = 'n2'", "T080: tailrace.toml:1: id unknown. List all keys: tailrace config show"),
        (
            "[listeners.peer]\nbnd = 'x'",
            "T080: tailrace.toml:2: listeners.peer.bnd unknown. Did you mean listeners.peer.bind?",
        ),
        (
            "[cluster]\nmetadata = 'zookeeper'",
            "T082: tailrace.toml:2: cluster.metadata = 'zookeeper' is not one of embedded, etcd."
            " Look: tailrace config explain cluster.metadata",
        ),
        (
            "[topic]\nretention = 604800",
            "T082: tailrace.toml:2: topic.retention = 604800 is not a duration such as"
            ' "30s" or "1.5h", at least 1ms, or "forever".'
            " Look: tailrace config explain topic.retention",
        ),
        (
            "[topic]\nretention = '7 days'",
            "T082: tailrace.toml:2: topic.retention = '7 days' is not a duration such as"
            ' "30s" or "1.5h", at least 1ms, or "forever".'
            " Look: tailrace config explain topic.retention",
        ),
        (
            "[broker]\nauto_create = 1",
            "T082: tailrace.toml:2: broker.auto_create = 1 is not true or false."
            " Look: tailrace config explain broker.auto_create",
        ),
        (
            "[broker]\nid = 5",
            "T082: tailrace.toml:2: broker.id = 5 is not text in quotes."
            " Look: tailrace config explain broker.id",
        ),
        (
            "[topic]\nmin_isr = 2",
            "T081: tailrace.toml:2: min_isr 2 > replicas 1: no write with acks=all could ever"
            " succeed. Lower min_isr or raise replicas.",
        ),
        (
            "[topic]\nreplicas = 3",
            'T082: tailrace.toml:2: replicas 3 > brokers 1. Set replicas = "auto", or 1.',
        ),
        (
            "[topic]\ndurability = 'replicated'",
            "T083: tailrace.toml:2: durability 'replicated' with 1 replica: a crash would lose"
            " what was acknowledged. Set durability = 'fsync', or raise replicas.",
        ),
        (
            "[topic]\ncleanup = 'compact'\non_full = 'drop_oldest'",
            "T083: tailrace.toml:3: on_full 'drop_oldest' with cleanup 'compact': the newest record"
            " of a key would go with the oldest segment. Set on_full = 'reject', or cleanup ="
            " 'compact,delete'.",
        ),
        (
            "[topic]\nmax_record = '16MiB'",
            "T082: tailrace.toml:2: max_record 16 MiB + 64 KiB > limits.request_size 16 MiB."
            " Lower max_record or raise limits.request_size.",
        ),
        (
            "[listeners.client]\nbind = '10.0.0.1:7400'",
            "T085: listeners.client binds 10.0.0.1:7400 without TLS. Set listeners.client.tls,"
            " bind 127.0.0.1, or security.allow_insecure = true.",
        ),
        (
            "[http]\nbind = '0.0.0.0:7480'",
            "T085: http binds 0.0.0.0:7480 without a token. Set http.token_file,"
            " bind 127.0.0.1, or security.allow_insecure = true.",
        ),
        (
            "[security]\nallow_insecure = true\n[listeners.client]\nbind = '0.0.0.0:7400'",
            "T082: tailrace.toml:4: listener 'client' binds 0.0.0.0:7400, which clients cannot be"
            " told. Set listeners.client.advertise to a name or address that clients reach.",
        ),
        (
            "[listeners.peer]\ntls = false",
            "T082: tailrace.toml:2: listener 'peer' has no bind."
            ' Set listeners.peer.bind = "127.0.0.1:7401".',
        ),
        (
            "[listeners.peer]\nbind = '127.0.0.1:7400'",
            "T082: tailrace.toml:2: 'peer' and 'client' both bind 127.0.0.1:7400."
            " Give each a port of its own.",
        ),
        (
            "[listeners.client]\ntls = true",
            "T082: tailrace.toml:2: TLS needs security.tls_cert."
            " Set security.tls_cert and security.tls_key.",
        ),
        (
            "[broker\nid = 1",
            "T082: tailrace.toml:1 is not valid TOML: Expected ']' at the end of a table"
            " declaration. Compare with: tailrace config init",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(text, path=tmp_path) == said


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "TAILRACE_STORAGE__DATADIR",
            "/x",
            "T080: TAILRACE_STORAGE__DATADIR: storage.datadir unknown."
            " Did you mean storage.data_dir?",
        ),
        (
            "TAILRACE_SECURITY__TLS_CLIENT_CA",
            "ca.pem",
            "T080: TAILRACE_SECURITY__TLS_CLIENT_CA: security.tls_client_ca unknown. Remove it:"
            " it comes with a later release (client certificates).",
        ),
        (
            "TAILRACE_LIMITS__CONNECTIONS",
            "many",
            "T082: TAILRACE_LIMITS__CONNECTIONS: limits.connections = 'many' is not a whole number"
            " from 1 to 1,000,000. Look: tailrace config explain limits.connections",
        ),
    ],
)
def test_environment_variables_are_named(variable: str, value: str, said: str) -> None:
    assert refusal(environ={variable: value}) == said


def test_all_errors_are_found_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "[broker]\nidd = 1\nid = 5\n[acl]\n[topic]\nretention = 'x'")
    codes = [error.code for error in examine(Sources(file))[1]]
    assert codes == ["T080", "T082", "T080", "T082"]


def test_missing_and_undecodable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"T082: .*nowhere\.toml cannot be read: No such file"):
        load(Sources(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigError, match=r"T082: .* cannot be read: Is a directory"):
        load(Sources(tmp_path))
    binary = tmp_path / "tailrace.toml"
    binary.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"T082: .* not UTF-8 at byte 5"):
        load(Sources(binary))


def test_set_needs_an_assignment() -> None:
    with pytest.raises(ConfigError, match=r"T082: --set broker\.id is not KEY=VALUE"):
        read_options(["broker.id"])


def test_environment_sets_nested_keys_and_empty_turns_http_off() -> None:
    environ = {"TAILRACE_LISTENERS__PEER__BIND": "[::1]:7401", "TAILRACE_HTTP__BIND": ""}
    config = load(Sources(environ=environ))
    assert [(one.name, str(one.bind)) for one in config.listeners] == [
        ("client", "127.0.0.1:7400"),
        ("peer", "[::1]:7401"),
    ]
    assert config.http.bind is None


def test_insecure_is_allowed_when_said_out_loud() -> None:
    settings: dict[str, Plain] = {
        "security.allow_insecure": True,
        "listeners.client.bind": "0.0.0.0:7400",
        "listeners.client.advertise": "broker.example.com:7400",
        "http.bind": "0.0.0.0:7480",
    }
    assert from_mapping(settings).listeners[0].bind.is_wildcard


def test_tls_listener_may_leave_loopback() -> None:
    config = from_mapping(
        {
            "listeners.client.bind": "10.0.0.1:7400",
            "listeners.client.tls": True,
            "security.tls_cert": "c.pem",
            "security.tls_key": "k.pem",
        }
    )
    assert config.listeners[0].tls


def test_python_gives_seconds_and_bytes() -> None:
    config = from_mapping({"topic.retention": 60, "topic.max_record": 1000, "topic.partitions": 3})
    assert (config.topic.retention_ms, config.topic.max_record_bytes) == (60_000, 1000)
    assert config.topic.partitions == 3
    assert config.values["topic.retention"].text == "1m"


def test_segment_age_follows_a_short_retention_unless_it_was_set() -> None:
    assert from_mapping({"topic.retention": "8m"}).topic.segment_age_ms == 60_000
    both = from_mapping({"topic.retention": "8m", "topic.segment_age": "1h"})
    assert both.topic.segment_age_ms == 3_600_000
    assert from_mapping({"topic.retention": "forever"}).topic.segment_age_ms == 86_400_000


def test_own_defaults_stand_in_for_those_of_the_table() -> None:
    config = from_mapping({}, defaults={"broker.auto_create": "true"})
    assert config.broker.auto_create
    assert config.values["broker.auto_create"].source == "default"


def test_changed_keys_are_found() -> None:
    def with_(settings: dict[str, Plain]) -> Config:
        return from_mapping(settings)

    old = with_({"log.level": "info", "topic.retention": "60m"})
    new = with_({"log.level": "debug", "topic.retention": "1h", "listeners.x.bind": "[::1]:1"})
    assert list(changed_keys(old, new)) == [
        *("listeners.x.advertise", "listeners.x.bind", "listeners.x.tls", "log.level")
    ]


def test_file_is_named_by_option_then_variable_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"TAILRACE_CONFIG": "env.toml"}
    assert find_file("option.toml", environ) == Path("option.toml")
    assert find_file(None, environ) == Path("env.toml")
    write(tmp_path, "")
    assert find_file(None, {}) == Path("tailrace.toml")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_looked_at_is_named_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def stat(self: Path, **_: object) -> os.stat_result:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "stat", stat)
    assert find_file(None, {}) == Path("tailrace.toml")


def test_dotted_and_quoted_keys_are_settings_too(tmp_path: Path) -> None:
    file = write(tmp_path, 'storage.data_dir = "/a"\n["log"]\nlevel = "debug"\n')
    config = load(Sources(file))
    assert (config.storage.data_dir, config.log.level) == ("/a", "debug")
    assert config.values["storage.data_dir"].origin == f"{file}:1"
