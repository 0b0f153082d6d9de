"""What etcd's gateway says is read as it is meant, in the words of 3.4 and of 3.5."""

import json
from typing import Any

import pytest

from tailrace.broker import etcd_messages
from tailrace.broker.etcd_messages import (
    Answer,
    LeaseAnswer,
    NotEtcd,
    Page,
    RangeAnswer,
    Refused,
    WatchAnswer,
)


def test_numbers_may_be_text_and_bytes_are_base64() -> None:
    said = {
        "header": {"cluster_id": "10144879847569953045", "revision": "32", "raft_term": "2"},
        "kvs": [{"key": "L3QvMA==", "mod_revision": "9223372036854775807", "value": "AAE="}],
        "count": "1",
    }
    answer = etcd_messages.decode(200, json.dumps(said).encode(), RangeAnswer)
    assert answer.header.cluster_id == 10144879847569953045
    [entry] = answer.kvs
    assert (entry.key, entry.value) == (b"/t/0", b"\0\1")
    assert entry.mod_revision == 2**63 - 1
    assert not answer.more


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": "gone", "message": "gone", "code": 5}),
        (404, {"error": "gone", "code": 5}),
        (404, {"error": {"grpc_code": 5, "http_code": 404, "message": "gone"}}),
        (404, {"error": {"code": 5, "message": "gone"}}),
    ],
)
def test_an_error_is_told_apart_by_its_code(status: int, body: dict[str, Any]) -> None:
    with pytest.raises(Refused) as raised:
        etcd_messages.decode(status, json.dumps(body).encode(), Answer)
    assert (raised.value.message, raised.value.code) == ("gone", etcd_messages.NOT_FOUND)
    if isinstance(body["error"], dict):
        with pytest.raises(Refused) as raised:
            etcd_messages.decode_line(json.dumps(body).encode(), LeaseAnswer)
        assert raised.value.code == etcd_messages.NOT_FOUND


@pytest.mark.parametrize("body", [b"", b"Not Found\n", b"[]", b"{}", b'{"error": 7}', b"\xff"])
@pytest.mark.parametrize("status", [200, 404, 500])
def test_what_is_not_etcd_is_said_to_be(status: int, body: bytes) -> None:
    if (status, body) == (200, b"{}"):
        assert etcd_messages.decode(status, body, Answer).header.revision == 0
        return
    if (status, body) == (200, b'{"error": 7}'):
        return  # fields that are not known are passed over
    with pytest.raises(NotEtcd):
        etcd_messages.decode(status, body, Answer)


@pytest.mark.parametrize(
    ("message", "code", "passing", "login_again", "no_space"),
    [
        ("etcdserver: no leader", 14, True, False, False),
        ("etcdserver: request timed out", 14, True, False, False),
        ("context deadline exceeded", 4, True, False, False),
        ("etcdserver: invalid auth token", 16, False, True, False),
        ("etcdserver: user name is empty", 3, False, True, False),
        ("etcdserver: revision of auth store is old", 3, False, True, False),
        ("etcdserver: permission denied", 7, False, False, False),
        ("etcdserver: mvcc: database space exceeded", 8, False, False, True),
        ("etcdserver: too many requests", 8, False, False, False),
    ],
)
def test_what_an_error_means(
    message: str, code: int, passing: bool, login_again: bool, no_space: bool
) -> None:
    error = Refused(message, code)
    assert error.passing is passing
    assert error.login_again is login_again
    assert error.no_space is no_space


def test_a_watch_that_was_cancelled_says_why() -> None:
    line = b'{"result":{"header":{"revision":"5"},"canceled":true,"compact_revision":"4"}}'
    answer = etcd_messages.decode_line(line, WatchAnswer)
    assert answer.canceled
    assert answer.compact_revision == 4
    assert answer.events == []


@pytest.mark.parametrize(
    ("version", "is_too_old"),
    [("3.3.27", True), ("2.3.8", True), ("3.4.0", False), ("3.5.1", False), ("4.0.0-rc", False)],
)
def test_old_versions(version: str, is_too_old: bool) -> None:
    assert etcd_messages.too_old(version) is is_too_old
    assert not etcd_messages.too_old("unknown")


def test_a_page_asks_for_what_is_newer_only_if_it_shall() -> None:
    plain = Page(b"a", b"b", 10).question()
    assert plain == {"key": b"a", "range_end": b"b", "limit": 10}
    newer = Page(b"a", b"b", 10, revision=7, since=5).question()
    assert newer == {**plain, "revision": 7, "min_mod_revision": 6}


def test_the_end_of_a_prefix() -> None:
    assert etcd_messages.range_end(b"/t/") == b"/t0"
    assert "é".encode() < etcd_messages.range_end("é".encode()) < "ê".encode() + b"\0"
