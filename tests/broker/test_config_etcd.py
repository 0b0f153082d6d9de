"""What [cluster] must keep to where metadata live in etcd, and the files it names."""

from pathlib import Path

import pytest

from tailrace.broker.cli_config import check_files, toml_value
from tailrace.broker.config import Config, Sources, examine, from_mapping
from tailrace.broker.config_values import read_options
from tailrace.broker.security import (
    etcd_context,
    peer_context,
    read_password,
    trusts_peers,
)
from tailrace.broker.settings import SETTINGS
from tailrace.protocol.errors import ConfigError

GOOD = {
    "broker.id": "n1",
    "cluster.metadata": "etcd",
    "cluster.etcd": "http://127.0.0.1:2379",
}
NO_ETCD = {"cluster.etcd": ""}


def read(tmp_path: Path, text: str) -> tuple[Config | None, list[str]]:
    file = tmp_path / "t.toml"
    file.write_text(text)
    config, errors = examine(Sources(file))
    return config, [str(error) for error in errors]


def test_a_list_and_text_with_commas_are_the_same(tmp_path: Path) -> None:
    head = '[broker]\nid = "n1"\n[cluster]\nmetadata = "etcd"\n'
    urls = ("http://a:2379", "http://[::1]:2380")
    config, errors = read(tmp_path, head + 'etcd = ["http://a:2379/", "http://[::1]:2380"]')
    assert errors == []
    assert config is not None
    assert config.cluster.etcd == urls
    value = config.values["cluster.etcd"]
    assert value.text == ",".join(urls)
    assert toml_value(value.setting, value.text) == '["http://a:2379", "http://[::1]:2380"]'
    assert toml_value(SETTINGS["cluster.etcd"], "") == "[]"
    assert from_mapping({**GOOD, "cluster.etcd": ", ".join(urls)}).cluster == config.cluster


@pytest.mark.parametrize(
    "written",
    [
        '["etcd:2379"]',
        '["ftp://etcd:2379"]',
        '["http://etcd"]',
        '["http://etcd:0"]',
        '["http://user:secret@etcd:2379"]',
        '["http://etcd:2379/v3"]',
        '["http://a:1", "http://a:1/"]',
        "[1]",
        '[["http://a:1"]]',
        "7",
    ],
)
def test_addresses_that_are_none(tmp_path: Path, written: str) -> None:
    _, [error] = read(tmp_path, f"[cluster]\netcd = {written}")
    assert error.startswith("T082: ")
    assert "is not addresses such as" in error


def test_a_list_is_no_value_of_another_kind(tmp_path: Path) -> None:
    _, [error] = read(tmp_path, "[broker]\nrack = ['a']")
    assert "broker.rack = ['a'] is not text in quotes" in error


@pytest.mark.parametrize("written", ["", "/", "tailrace", "/a/", "//a", "/a b", "/" + 300 * "a"])
def test_prefixes_that_are_none(written: str) -> None:
    with pytest.raises(ConfigError, match="is not a path such as"):
        from_mapping({**GOOD, "cluster.prefix": written})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cluster.etcd": ""}, "metadata etcd needs cluster.etcd"),
        ({"cluster.metadata": "embedded"}, "cluster.etcd is given, and metadata is embedded"),
        ({"cluster.etcd": "http://a:1,https://b:1"}, "http://a:1 is without TLS, and others are"),
        ({"cluster.etcd_ca": "ca.pem"}, "http://127.0.0.1:2379 is without TLS, and etcd_ca is"),
        (
            {"cluster.etcd": "https://a:1", "cluster.etcd_cert": "c.pem"},
            "etcd_cert needs etcd_key",
        ),
        ({"cluster.etcd_user": "tailrace"}, "etcd_user needs etcd_password_file"),
        ({"cluster.etcd_password_file": "p"}, "etcd_password_file needs etcd_user"),
        (
            {
                "cluster.etcd": "http://127.0.0.1:1,http://etcd:2379",
                **{"cluster.etcd_user": "u", "cluster.etcd_password_file": "p"},
            },
            "a password would go to http://etcd:2379 in the clear",
        ),
    ],
)
def test_what_does_not_go_together(changed: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        from_mapping({**GOOD, **changed})
    assert raised.value.code == "T082"


def test_a_broker_of_a_cluster_is_given_its_name() -> None:
    options = [f"{key}={value}" for key, value in GOOD.items() if key != "broker.id"]
    _, [error] = examine(Sources(options=tuple(read_options(options))))
    assert "metadata etcd needs broker.id" in str(error)


@pytest.mark.parametrize("tls", ["true", "false"])
def test_the_authority_of_other_brokers_is_looked_at_where_they_have_tls(
    tmp_path: Path, tls: str
) -> None:
    own = {**GOOD, "listeners.client.tls": tls}
    own |= {f"security.tls_{name}": str(tmp_path / name) for name in ("cert", "key")}
    assert trusts_peers(from_mapping(own)) == (tls == "true")
    assert not trusts_peers(from_mapping({**own, "cluster.metadata": "embedded", **NO_ETCD}))
    named = from_mapping({**own, "cluster.peer_ca": str(tmp_path / "ca")})
    assert trusts_peers(named), "others may have TLS before this one has"
    found = [str(one) for one in check_files(named)]
    assert [one for one in found if "/ca cannot be read: No such file or directory" in one]
    (tmp_path / "ca").write_text("nothing")
    with pytest.raises(ConfigError, match="ca: no certificates") as raised:
        peer_context(named.cluster)
    assert (raised.value.code, raised.value.hint) == ("T082", "Give it as PEM.")


def secured(tmp_path: Path, **files: str) -> Config:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    at = {f"cluster.etcd_{name}": str(tmp_path / name) for name in ("ca", "cert", "key")}
    password = str(tmp_path / "password")
    return from_mapping(
        {
            **{**GOOD, "cluster.etcd": "https://a:1", **at},
            **{"cluster.etcd_user": "u", "cluster.etcd_password_file": password},
        }
    )


def test_files_that_are_of_no_use_are_named(tmp_path: Path) -> None:
    config = secured(tmp_path)
    with pytest.raises(ConfigError, match=r"ca cannot be read: No such file or directory"):
        etcd_context(config.cluster)
    with pytest.raises(ConfigError, match=r"password cannot be read: No such file or directory"):
        read_password(config.cluster)
    assert len(check_files(config)) == 2
    secured(tmp_path, ca="nothing", password="")
    with pytest.raises(ConfigError, match="ca: no certificates"):
        etcd_context(config.cluster)
    with pytest.raises(ConfigError, match="holds no password"):
        read_password(config.cluster)
    secured(tmp_path, password="pass word\n")
    assert read_password(config.cluster) == "pass word"
