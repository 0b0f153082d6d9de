"""T080-T086: settings and arguments that are unknown, wrong, or contradict each other.

T084 is provoked by ``tests/cli/test_roof.py``.
"""

import os
from pathlib import Path

import pytest

from tailrace.protocol.errors import ConfigError
from tailrace.testing import Broker
from tests.errors.provoking import refused, told, told_by

TOPIC_CONFIGS = [
    ("retentoin", "1h", "T080", ".*: retentoin unknown", "Did you mean retention?"),
    (
        "min_isr",
        "2",
        "T081",
        ".*: min_isr 2 > replicas 1: no write with acks=all could ever .+",
        "",
    ),
    ("retention", "soon", "T082", ".*: retention = 'soon' is not a duration such as .+", ""),
    (
        *("durability", "replicated", "T083"),
        ".*: durability 'replicated' with 1 replica: a crash would lose what was acknowledged",
        "Set durability = 'fsync', or raise replicas.",
    ),
]


@pytest.mark.provokes("T080", "T081", "T082", "T083")
@pytest.mark.parametrize(("key", "value", "code", "message", "hint"), TOPIC_CONFIGS)
def test_settings_of_a_topic_that_cannot_be(
    broker: Broker, key: str, value: str, code: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        broker.client().admin.create_topic("wrong", config={key: value})
    told(caught.value, code, message, key=key)
    assert caught.value.source
    assert caught.value.hint.startswith(hint)


SERVE = [
    ("[storage]\ndatadir = '/x'\n", "T080", r".*:2: storage\.datadir unknown"),
    ("[topic]\nmin_isr = 2\n", "T081", r".*:2: min_isr 2 > replicas 1: .+"),
    ("[topic]\nretention = '7 days'\n", "T082", r".*:2: topic\.retention = '7 days' is not .+"),
    ("[topic]\ndurability = 'replicated'\n", "T083", ".*:2: durability 'replicated' with 1 .+"),
    ("[http]\nbind = '0.0.0.0:0'\n", "T085", r"http binds 0\.0\.0\.0:0 without a token"),
    (
        "[listeners.client]\nbind = '10.0.0.1:7400'\n",
        *("T085", r"listeners\.client binds 10\.0\.0\.1:7400 without TLS"),
    ),
    (
        "[broker]\nid = 'n1'\n[cluster]\nmetadata = 'etcd'\n",
        *("T082", r".*:4: metadata etcd needs cluster\.etcd"),
    ),
]


@pytest.mark.provokes("T080", "T081", "T082", "T083", "T085")
@pytest.mark.parametrize(("text", "code", "message"), SERVE)
def test_a_file_that_the_broker_does_not_start_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: str, message: str
) -> None:
    file = tmp_path / "tailrace.toml"
    file.write_text(text)
    exit_code, error = refused(capsys, "serve", "-c", str(file))
    assert exit_code == 2
    told_by(error, code, message)


@pytest.mark.provokes("T082")
@pytest.mark.parametrize("how", ["missing", "directory", "undecodable", "forbidden"])
def test_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    file = tmp_path / "tailrace.toml"
    says = {
        "missing": "cannot be read: No such file or directory",
        "directory": "cannot be read: Is a directory",
        "undecodable": "is not valid TOML: not UTF-8 at byte 5",
        "forbidden": "cannot be read: Permission denied",
    }
    if how == "directory":
        file.mkdir()
    elif how != "missing":
        file.write_bytes(b"a = '\xff'")
    if how == "forbidden":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        file.chmod(0)
    exit_code, error = refused(capsys, "serve", "-c", str(file))
    assert exit_code == 2
    told_by(error, "T082", rf"{file} {says[how]}")


@pytest.mark.provokes("T086")
def test_what_comes_with_a_later_release(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["queue", "list"], ["topic", "purge", "orders"], ["dev", "--seed", "1"]):
        exit_code, error = refused(capsys, *words)
        assert exit_code == 2
        told_by(error, "T086", "'.+' comes with a later release")
