"""``tailrace config``: show, explain, check, init."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tailrace.broker.cli_config import config, default_file
from tailrace.broker.config import Sources, load
from tailrace.protocol.console import Console
from tailrace.protocol.errors import ConfigError


def invoke(*arguments: str, output: Any = "json") -> tuple[int, Any]:
    """(exit code, document or text) of a command."""
    runner = CliRunner(env={"TAILRACE_CONFIG": None})
    result = runner.invoke(
        config, list(arguments), obj=Console(output=output), standalone_mode=False
    )
    if result.exception is not None:
        raise result.exception
    code: int = result.return_value
    return code, json.loads(result.stdout) if output == "json" else result.stdout


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "t.toml"
    path.write_text('[topic]\nretention = "168h"\nsegment_size = "1GiB"\n')
    return str(path)


def test_show_lists_every_setting_with_its_origin(file: str) -> None:
    code, document = invoke("show", "-c", file)
    assert code == 0
    entries = {entry["key"]: entry for entry in document["settings"]}
    assert list(entries) == sorted(entries)
    assert entries["topic.segment_size"] == {
        **{"key": "topic.segment_size", "value": "1GiB", "default": "128MiB", "source": "file"},
        **{"dynamic": False, "origin": f"{file}:3"},
    }
    assert entries["topic.retention"]["value"] == "7d"
    assert entries["log.level"]["dynamic"] is True
    assert "security.tls_client_ca" not in entries


def test_show_reads_as_a_table(file: str) -> None:
    _, text = invoke("show", "-c", file, output="table")
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["KEY", "VALUE", "SOURCE", "ORIGIN"]
    assert ["topic.segment_size", "1GiB", "file", f"{file}:3"] in rows


def test_explain_says_what_a_setting_means(file: str) -> None:
    _, document = invoke("explain", "topic.retention", "-c", file)
    assert document["doc"] == "How long records are kept, by append time, in whole segments."
    _, text = invoke("explain", "topic.retention", "-c", file, output="table")
    assert "per topic: tailrace topic alter NAME --set retention=VALUE" in text


def test_explain_takes_the_name_a_setting_has_at_a_topic(file: str) -> None:
    _, text = invoke("explain", "on_full", "-c", file, output="table")
    assert text.startswith('topic.on_full = "reject"')


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("topic.retenton", "Did you mean topic.retention?"),
        ("security.tls_client_ca", "Remove it: it comes with a later release"),
    ],
)
def test_explain_of_an_unknown_key_is_refused(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="T080") as caught:
        invoke("explain", key)
    assert hint in caught.value.hint


def test_check_finds_every_error(tmp_path: Path, file: str) -> None:
    assert invoke("check", file) == (0, {"ok": True, "errors": []})
    bad = tmp_path / "bad.toml"
    bad.write_text("[topic]\nretention = 7\n[storage]\nx = 1\n")
    code, document = invoke("check", str(bad))
    assert code == 2
    assert not document["ok"]
    assert [error["code"] for error in document["errors"]] == ["T082", "T080"]


def test_check_looks_into_the_files_that_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        "[http]\ntoken_file = '/nowhere/token'\n[listeners.client]\ntls = true\n"
        "[security]\ntls_cert = '/nowhere/c.pem'\ntls_key = '/nowhere/k.pem'\n"
    )
    _, document = invoke("check", str(path))
    messages = [error["message"] for error in document["errors"]]
    assert messages == [
        "/nowhere/c.pem cannot be read: No such file or directory",
        "/nowhere/token cannot be read: No such file or directory",
    ]


def test_default_file_changes_nothing_and_uncommented_neither(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(default_file())
    assert {value.source for value in load(Sources(path)).values.values()} == {"default"}
    lines = default_file().splitlines()
    settings = [line.removeprefix("# ") for line in lines if " = " in line or line[:1] == "["]
    settings = [line for line in settings if line.split(" = ")[0].islower() or line[0] == "["]
    path.write_text("\n".join(line for line in settings if " " not in line.split(" = ")[0]))
    uncommented, plain = load(Sources(path)), load(Sources())
    assert {k: v.text for k, v in uncommented.values.items()} == {
        k: v.text for k, v in plain.values.items()
    }
    written = [key for key, value in uncommented.values.items() if value.source == "file"]
    assert len(written) == len(plain.values)
