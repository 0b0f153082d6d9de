"""The texts of the catalogue, word for word, and what an error carries from place to place."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tailrace.protocol import (
    errors,
    texts,
    texts_cli,
    texts_client,
    texts_config,
    texts_group,
    texts_storage,
)
from tailrace.protocol.errors import CLASSES, Notice, TailraceError, from_wire, to_wire
from tailrace.protocol.messages import Scalar, WireError

Found = TailraceError | Notice

TEXTS: list[tuple[Found, str]] = [
    (
        texts_client.no_broker(
            [("a:7400", "connection refused"), ("b:7400", "timed out")], elapsed_s=5.0
        ),
        "T001: no broker reachable in 5 s: a:7400 (connection refused), b:7400 (timed out). "
        "Nothing listens there. Start one: tailrace dev",
    ),
    (
        texts_client.no_broker([("a:7400", "timed out")], elapsed_s=5.0),
        "T001: no broker reachable in 5 s: a:7400 (timed out). Check the address, and whether a "
        "firewall or the network drops what is sent there.",
    ),
    (
        texts_client.host_unresolved("brokre", elapsed_s=0.31, similar="broker"),
        "T002: no broker reachable in 0.3 s: brokre does not resolve. Did you mean broker?",
    ),
    (
        texts_client.host_unresolved("brokre", elapsed_s=5),
        "T002: no broker reachable in 5 s: brokre does not resolve. Check the host name.",
    ),
    (
        texts_client.advertised_unreachable(
            "10.0.0.5:7400",
            broker="n1",
            advertised="n1:7400",
            reason="does not resolve",
            listener="public",
        ),
        "T003: bootstrap 10.0.0.5:7400 works, but broker n1 advertises n1:7400, which does not "
        "resolve from here. Set listeners.public.advertise on n1, or connect from inside its "
        "network.",
    ),
    (
        texts.topic_not_found("ordrs"),
        "T010: topic 'ordrs' does not exist. Create it: tailrace topic create ordrs",
    ),
    (
        texts.topic_not_found("ordrs", similar=["orders", "order"], auto_create_off=True),
        "T010: topic 'ordrs' does not exist (auto-create is off). Similar: orders, order. "
        "Create it: tailrace topic create ordrs",
    ),
    (
        texts_client.send_timeout(
            *("orders", 2),
            elapsed_s=30.0,
            attempts=1_204,
            last_error=texts.not_leader("orders", 2, broker="n1", leader="n2"),
            maybe_written=True,
        ),
        "T020: orders[2] not acknowledged in 30 s after 1,204 attempts; last: T032: broker n1 does "
        "not lead orders[2], broker n2 does; the record may have been written. "
        "Look: tailrace explain orders:2",
    ),
    (
        texts_client.send_timeout(
            "orders", 0, elapsed_s=0.5, attempts=1, last_error=None, maybe_written=False
        ),
        "T020: orders[0] not acknowledged in 0.5 s after 1 attempts; last: no answer; nothing was "
        "written. Look: tailrace explain orders:0",
    ),
    (
        texts.record_too_large("images", size=3_565_158, limit=1 << 20),
        "T021: record of 3.4 MiB exceeds max_record 1 MiB of topic 'images'. Store the blob "
        "elsewhere, or: tailrace topic alter images --set max_record=4MiB",
    ),
    (
        texts.not_enough_replicas(
            *("orders", 2),
            have=1,
            need=2,
            missing=[("n2", "is offline"), ("n3", "lags 12,000 records")],
            waited_s=30,
        ),
        "T030: orders[2] has 1 in-sync of min_isr 2 (n2 is offline, n3 lags 12,000 records); "
        "nothing was written in 30 s. Bring n2 back: tailrace cluster health",
    ),
    (
        texts.storage_full(
            *("orders", 2),
            broker="n1",
            has="3.4 MiB free",
            limit="min_free 5%",
            retry_after_s=10,
        ),
        "T031: broker n1 is read-only: 3.4 MiB free, min_free 5%. Free space or shorten "
        "retention; retry after 10 s.",
    ),
    (
        texts.committed_out_of_range(
            *("orders", 2),
            group="billing",
            retention="7d",
            requested=3_000,
            start=120_020,
            end=1_493_112,
        ),
        "T041: committed 3,000, but orders[2] starts at 120,020: 117,020 records expired "
        "(retention 7d). Set on_out_of_range='earliest', or: tailrace group reset billing "
        "--to start",
    ),
    (
        texts.offset_out_of_range("orders", 2, requested=3, start=120_000, end=1_493_112),
        "T041: asked for 3, but orders[2] starts at 120,000. Set on_out_of_range='earliest'",
    ),
    (
        texts.offset_out_of_range("orders", 2, requested=2_000_000, start=0, end=1_493_112),
        "T041: asked for 2,000,000, but orders[2] ends at 1,493,112. "
        "Set on_out_of_range='earliest'",
    ),
    (
        texts_client.loop_blocked(blocked_s=3.44, file="app.py", line=41, function="resize"),
        "T050: handler blocked the event loop 3.4 s in app.py:41 resize(). "
        "Use await or anyio.to_thread.run_sync(...).",
    ),
    (
        texts_client.never_closed(file="app.py", line=12, undelivered=1_200),
        "T051: Producer created at app.py:12 was never closed; 1,200 records not delivered. "
        "Use: async with client.producer() as p",
    ),
    (
        texts_client.sync_inside_loop("trio"),
        "T052: tailrace.sync used inside a running trio loop. Use tailrace.connect().",
    ),
    (
        texts_client.forked(created_pid=811, pid=81_200),
        "T053: created in pid 811, used in pid 81200. Create it after the fork (gunicorn "
        "post_fork, celery worker_process_init).",
    ),
    (
        texts_client.not_decodable(
            "orders", 2, 881, codec="json", raw=b"\x82\xa1a", guess="msgpack"
        ),
        "T060: orders[2]@881 is not json (starts 82a161, looks like msgpack). Raw: tailrace cat "
        "orders:2:881 --decode hex. Set value='msgpack' or on_decode_error='dead_letter'.",
    ),
    (
        texts_client.not_decodable("orders", 2, 881, codec="json", raw=b"plain text", guess="str"),
        "T060: orders[2]@881 is not json (starts 706c61696e207465, looks like str). Raw: tailrace "
        "cat orders:2:881 --decode hex. Set value='str' or on_decode_error='dead_letter'.",
    ),
    (
        texts_group.subscription_mismatch(
            group="billing", member="billing-a", yours=["orders"], theirs=["orders", "refunds"]
        ),
        "T070: member 'billing-a' of group 'billing' subscribes orders, refunds, you orders. "
        "One group, one subscription: use another group name.",
    ),
    (
        texts_group.member_idle(group="billing", member="billing-c", partitions=2, members=3),
        "T071: member 'billing-c' of group 'billing' is idle: 2 partitions for 3 members. "
        "Stop a member.",
    ),
    (
        texts_group.at_the_end([("orders", 0, 1200), ("orders", 1, 7)]),
        "T072: at the end of orders[0]@1200, orders[1]@7.",
    ),
    (
        texts_group.at_the_end([("orders", 0, 1200)], group="billing"),
        "T072: at the end of orders[0]@1200; group 'billing' is caught up.",
    ),
    (
        texts_group.at_the_end([("orders", 0, 1200)], group="billing", skipped=1_200),
        "T072: at the end of orders[0]@1200; group 'billing' is caught up; start='latest' skipped "
        "1,200 older records. Read them: tailrace group reset billing --to start",
    ),
    (
        texts_group.at_the_end([("orders", 0, 1200)], skipped=1_200),
        "T072: at the end of orders[0]@1200; start='latest' skipped 1,200 older records. "
        "Set start='earliest'",
    ),
    (
        texts_group.starting_at([("orders", 0, 0)], group="billing"),
        "T073: group 'billing' has no commits; starting at orders[0]@0.",
    ),
    (
        texts_config.setting_unknown(
            "tailrace.toml:3", "storage.datadir", similar="storage.data_dir"
        ),
        "T080: tailrace.toml:3: storage.datadir unknown. Did you mean storage.data_dir?",
    ),
    (
        texts_config.min_isr_above_replicas(source="tailrace.toml:20", min_isr=3, replicas=2),
        "T081: tailrace.toml:20: min_isr 3 > replicas 2: no write with acks=all could ever "
        "succeed. Lower min_isr or raise replicas.",
    ),
    (
        texts_cli.needs_server("dev"),
        "T084: 'dev' needs the server. Install it: pip install 'tailrace[server]'",
    ),
    (
        texts_config.insecure_bind(
            "listeners.client", "0.0.0.0:7400", without="TLS", key="listeners.client.tls"
        ),
        "T085: listeners.client binds 0.0.0.0:7400 without TLS. Set listeners.client.tls, bind "
        "127.0.0.1, or security.allow_insecure = true.",
    ),
    (
        texts_config.insecure_bind("http", "[::]:7480", without="a token", key="http.token_file"),
        "T085: http binds [::]:7480 without a token. Set http.token_file, bind 127.0.0.1, or "
        "security.allow_insecure = true.",
    ),
    (
        texts_storage.directory_locked("/data", pid=812, role="serve", broker="n1"),
        "T090: /data is locked by pid 812 (serve, broker n1). Stop it, or use another "
        "storage.data_dir.",
    ),
    (
        texts_storage.directory_foreign(
            "/data",
            broker="n2",
            cluster="c1",
            configured_broker="n1",
            configured_cluster="c2",
        ),
        "T091: /data belongs to broker n2 of cluster c1, the configuration says n1 of c2. "
        "Refusing to start. Fix broker.id or storage.data_dir.",
    ),
    (
        texts.metadata_unreachable("http://etcd:2379", down_s=4, lease_remaining_s=2),
        "T100: metadata store http://etcd:2379 unreachable for 4 s; the lease ends in 2 s, then "
        "writes stop. Check etcd.",
    ),
    (
        texts.clock_skew(skew_s=3.2, other="n2"),
        "T110: broker clock is 3.2 s ahead of n2. Check NTP: retention and windows will be wrong.",
    ),
    (
        texts.clock_skew(skew_s=-41, other="n2"),
        "T110: broker clock is 41 s behind n2. Check NTP: retention and windows will be wrong.",
    ),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=[text[:4] for _, text in TEXTS])
def test_text_word_for_word(error: Found, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("name", "code"), [("topic", "T010"), ("partition", "T011"), ("group", "T043")]
)
def test_not_found_names_what_was_asked(name: str, code: str) -> None:
    make: dict[str, Callable[[], errors.NotFound]] = {
        "topic": lambda: texts.topic_not_found("x"),
        "partition": lambda: texts.partition_not_found("x", 2, partitions=1),
        "group": lambda: texts_group.group_not_found("x"),
    }
    error = make[name]()
    assert (error.code, error.name[0], error.similar) == (code, "x", [])


def test_control_characters_of_user_data_are_escaped() -> None:
    error = texts.topic_not_found("a\nb\x1b[31m\u202e")
    assert error.message == r"topic 'a\nb\x1b[31m\u202e' does not exist"
    assert texts.topic_not_found("b\u00fcro").message == "topic 'b\u00fcro' does not exist"
    assert len(texts.topic_not_found("x" * 100_000).message) < 1_100


def test_texts_are_ascii_but_for_user_data() -> None:
    assert all(text.isascii() for _, text in TEXTS)


# ── classes and attributes ───────────────────────────────────────────────────────────────────


def test_the_codes_that_are_retriable() -> None:
    retriable = {code for code in CLASSES if CLASSES[code](code, "").retriable}
    internal = {"T032", "T036", "T037", "T038", "T039", "T045"}
    contract = {"T001", "T002", "T003", "T005", "T020", "T030", "T031", "T033", "T034", "T040"}
    assert retriable == contract | {"T042", "T100", "T123"} | internal


def test_attributes_come_from_details_or_are_empty() -> None:
    error = errors.SendTimeout("T020", "m", topic="orders", attempts=3, extra=1)
    assert (error.topic, error.partition, error.attempts, error.elapsed) == ("orders", None, 3, 0.0)
    assert (error.maybe_written, error.last_error) == (False, None)
    assert error.details == {"topic": "orders", "attempts": 3, "extra": 1}
    assert error.docs == "errors.md#t020"
    first, second = errors.GroupNotEmpty("T044", ""), errors.GroupNotEmpty("T044", "")
    first.members.append("x")
    assert second.members == []


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (errors.SendTimeout, TimeoutError),
        (errors.CloseTimeout, TimeoutError),
        (errors.RequestTimeout, TimeoutError),
        (errors.ConfigError, ValueError),
        (errors.InputError, ValueError),
        (errors.UsageError, RuntimeError),
        (errors.VersionMismatch, errors.ConnectError),
        (errors.ForkedClientError, errors.UsageError),
        (errors.BatchRefused, errors.ProduceError),
        (errors.CorruptBatch, errors.ConsumeError),
    ],
)
def test_classes_stand_where_the_tree_says(cls: type, base: type) -> None:
    assert issubclass(cls, base)
    assert issubclass(cls, TailraceError)


@pytest.mark.parametrize("copied", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("code", CLASSES)
def test_errors_are_copied_whole(
    code: str, copied: Callable[[TailraceError], TailraceError]
) -> None:
    cause = texts.not_leader("orders", 2, broker="n1")
    error = CLASSES[code](code, "m", "h", topic="orders", last_error=cause)
    twin = copied(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error) == f"{code}: m. h"
    assert twin.details["topic"] == "orders"
    assert str(twin.details["last_error"]) == str(cause)


# ── the wire ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error", [e for e, _ in TEXTS if isinstance(e, TailraceError)], ids=lambda e: e.code
)
def test_an_error_survives_the_wire(error: TailraceError) -> None:
    arrived = from_wire(to_wire(error))
    assert (type(arrived), str(arrived)) == (type(error), str(error))
    assert arrived.retriable is error.retriable


def test_only_what_every_client_can_read_travels() -> None:
    details: dict[str, Any] = {
        **{"text": "x", "number": 7, "yes": True, "none": None, "many": ("a", 1)},
        **{"far": float("inf"), "wide": 1 << 64, "broken": "\ud800", "odd": object()},
        **{"mixed": [1, object()], "nested": [[1]]},
    }
    error = TailraceError("T030", "m", "h", **details)
    wire = to_wire(error)
    assert wire.code == 30
    assert wire.details == {"text": "x", "number": 7, "yes": True, "none": None, "many": ["a", 1]}


def test_an_unknown_code_is_still_an_error() -> None:
    arrived = from_wire(WireError(999, "m", "h", {"topic": "orders"}))
    assert type(arrived) is TailraceError
    assert str(arrived) == "T999: m. h"


def test_attributes_from_the_wire_have_their_types() -> None:
    details: dict[str, Scalar | list[Scalar]] = {
        **{"requested": "many", "start": True, "end": 9, "partition": "x", "topic": None},
        **{"code": "T666", "message": "other", "self": 1, "unheard_of": [1]},
    }
    error = from_wire(WireError(41, "m", "", details))
    assert isinstance(error, errors.OffsetOutOfRange)
    assert (error.code, error.message) == ("T041", "m")
    assert (error.requested, error.start, error.end) == (0, 0, 9)
    assert (error.partition, error.topic) == (None, None)
    assert error.details["unheard_of"] == [1]
    late = from_wire(WireError(31, "m", "", {"retry_after": 10}))
    assert isinstance(late, errors.StorageFull)
    assert (late.retry_after, type(late.retry_after)) == (10.0, float)
    mismatch = from_wire(WireError(120, "m", "", {"client_range": [1, 2]}))
    assert isinstance(mismatch, errors.VersionMismatch)
    assert mismatch.client_range == (1, 2)
