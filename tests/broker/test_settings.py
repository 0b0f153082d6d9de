"""The table of settings: canonical texts, kinds and bounds."""

from pathlib import Path

import pytest

from tailrace.broker.kinds import Address
from tailrace.broker.settings import LATER_SECTIONS, SETTINGS, Setting, setting_of
from tests.broker.configuration_page import page

EVERY = pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda one: one.key)


@EVERY
def test_default_is_canonical(setting: Setting) -> None:
    kind = setting.kind
    assert kind.text(kind.parse(setting.default)) == setting.default


@EVERY
def test_every_setting_says_what_it_means(setting: Setting) -> None:
    assert setting.doc.endswith(".")
    assert setting.doc[0] != " "


@EVERY
def test_keys_stand_in_a_section_that_exists_now(setting: Setting) -> None:
    assert setting.key.split(".")[0] not in LATER_SECTIONS


@pytest.mark.parametrize(
    ("key", "text", "canonical"),
    [
        ("topic.retention", "168h", "7d"),
        ("topic.retention", "1w", "7d"),
        ("topic.retention", "1.5h", "90m"),
        ("topic.retention", "forever", "forever"),
        ("topic.max_record", "1024KiB", "1MiB"),
        ("topic.max_record", "1MB", "1000000B"),
        ("topic.retention_size", "unlimited", "unlimited"),
        ("storage.min_free", "5.0%", "5%"),
        ("storage.min_free", "2048MiB", "2GiB"),
        ("topic.replicas", "auto", "auto"),
        ("topic.compaction_dirty_ratio", "0.50", "0.5"),
        ("topic.compaction_dirty_ratio", "1.0", "1"),
        ("topic.compaction_dirty_ratio", "0.0001", "0.0001"),
        ("limits.connections", "0010", "10"),
        ("http.bind", "", ""),
        ("http.bind", "[::1]:0", "[::1]:0"),
    ],
)
def test_values_have_one_canonical_text(key: str, text: str, canonical: str) -> None:
    kind = SETTINGS[key].kind
    assert kind.text(kind.parse(text)) == canonical


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("topic.retention", "7"),
        ("topic.retention", "7 d"),
        ("topic.retention", "0s"),
        ("topic.retention", "-1d"),
        ("topic.segment_age", "forever"),
        ("topic.max_record", "1"),
        ("topic.max_record", "unlimited"),
        ("topic.max_record", "0B"),
        ("topic.segment_size", "1KiB"),
        ("topic.segment_size", "3GiB"),
        ("topic.replicas", "0"),
        ("topic.compaction_dirty_ratio", "1.1"),
        ("topic.compaction_dirty_ratio", "-0.5"),
        ("topic.compaction_dirty_ratio", "."),
        ("topic.compaction_dirty_ratio", "1e-3"),
        ("topic.replicas", "all"),
        ("limits.connections", "-5"),
        ("limits.connections", "1_000"),
        ("limits.connections", "9" * 5000),
        ("limits.connections", "٣"),
        ("storage.min_free", "100%"),
        ("storage.min_free", "nan%"),
        ("storage.min_free", "unlimited"),
        ("broker.auto_create", "yes"),
        ("broker.id", "a/b"),
        ("broker.id", ""),
        ("log.level", "trace"),
        ("http.bind", "localhost"),
        ("http.bind", ":7480"),
        ("http.bind", "127.0.0.1:65536"),
        ("http.bind", "::1:7480"),
        ("http.bind", "[host]:1"),
        ("http.bind", "a b:1"),
        ("listeners.*.bind", ""),
    ],
)
def test_values_out_of_bounds_are_refused(key: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"^an? |one of|true or false|1-64"):
        SETTINGS[key].kind.parse(text)


@pytest.mark.parametrize(
    ("host", "loopback", "wildcard"),
    [
        ("127.0.0.1", True, False),
        ("127.8.8.8", True, False),
        ("::1", True, False),
        ("localhost", True, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("10.0.0.1", False, False),
        ("localhost.example.com", False, False),
    ],
)
def test_addresses_know_who_reaches_them(host: str, loopback: bool, wildcard: bool) -> None:
    address = Address(host, 7400)
    assert (address.is_loopback, address.is_wildcard) == (loopback, wildcard)


def test_free_room_is_a_share_or_a_size() -> None:
    kind = SETTINGS["storage.min_free"].kind
    assert kind.parse("5%").bytes_of(1000) == 50
    assert kind.parse("10KiB").bytes_of(1000) == 10240


def test_listeners_have_any_name_that_survives_an_environment_variable() -> None:
    assert setting_of("listeners.peer-2.bind") is SETTINGS["listeners.*.bind"]
    for key in ("listeners.Peer.bind", "listeners.*.bind", "listeners.a.b.bind", "listeners..bind"):
        assert setting_of(key) is None


def test_page_of_the_documentation_is_made_from_the_table() -> None:
    written = (Path(__file__).parent.parent.parent / "docs/configuration.md").read_text()
    assert written == page(), "python -m tests.broker.configuration_page > docs/configuration.md"
