"""One member in the heartbeat thread: how it finds its coordinator, and keeps to it."""

import socket
from collections.abc import Callable, Iterator

import pytest

from tailrace.client import retry
from tailrace.client.heart_told import Reachable, Unreachable
from tailrace.client.membership import Assigned, Failed, Left, Lost
from tailrace.protocol import texts, texts_group
from tests.client.group_messages import answer, owned
from tests.client.group_server import Server, Stage
from tests.client.test_net import client_context, server_context

Make = Callable[..., Stage]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(retry, "FIRST_MAX_S", 0.002)  # their length has a test of its own
    monkeypatch.setattr(retry, "LIMIT_S", 0.01)
    made: list[Stage] = []

    def stage(*servers: Server, **options: object) -> Stage:
        made.append(Stage(*servers, **options))  # type: ignore[arg-type]
        return made[-1]

    yield stage
    for one in made:
        one.close()


def of(stage: Stage, kind: type) -> list[object]:
    return [told for told in stage.told if isinstance(told, kind)]


def test_first_heartbeat_joins_and_the_next_one_is_held(make: Make) -> None:
    server = Server()
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    assert [beat.member_epoch for beat in server.beats] == [0, 1]
    assert len(of(stage, Assigned)) == 1
    assert server.beats[1].wait_ms == 3_000


def test_tls_is_the_clients(make: Make) -> None:
    server = Server(tls=server_context())
    stage = make(server, tls=client_context())
    stage.until(lambda: len(server.held) == 1)
    assert of(stage, Unreachable) == []


def test_certificate_that_nobody_vouches_for_is_refused(make: Make) -> None:
    server = Server(tls=server_context("elsewhere"))
    stage = make(server, tls=client_context())
    stage.until(lambda: bool(of(stage, Unreachable)))
    (trouble, *_) = of(stage, Unreachable)
    assert isinstance(trouble, Unreachable)
    assert trouble.reason.startswith("certificate refused")
    assert server.beats == []


def test_host_that_does_not_resolve_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    stage = make(Server())
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    stage.turn()
    (trouble,) = of(stage, Unreachable)
    assert isinstance(trouble, Unreachable)
    assert trouble.reason == "does not resolve"


def test_member_follows_its_coordinator_to_another_broker(make: Make) -> None:
    old, new = Server("n1"), Server("n2")
    old.others, new.others = [new], [old]
    stage = make(old, new)
    stage.until(lambda: len(old.held) == 1)
    old.coordinator = new.coordinator = "n2"
    guest, request = old.held.pop()
    error = texts.not_leader("__offsets", 0, broker="n1", leader="n2")
    guest.sock.send(guest.protocol.refuse(request, error))
    stage.until(lambda: len(new.held) == 1)
    assert [(beat.member_epoch, owned(beat)) for beat in new.beats][-1] == (1, [0])
    assert of(stage, Lost) == []


def test_broker_that_is_gone_is_asked_for_elsewhere(make: Make) -> None:
    old, new = Server("n1"), Server("n2")
    new.coordinator = "n2"
    stage = make(old, new)
    stage.until(lambda: len(old.held) == 1)
    old.close()
    stage.until(lambda: len(new.held) == 1)
    assert len(of(stage, Reachable)) == 1
    assert of(stage, Lost) == []


def test_lost_connection_is_made_again_and_told(make: Make) -> None:
    server = Server()
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    server.drop()
    stage.until(lambda: len(server.held) == 1)
    (trouble, *_) = of(stage, Unreachable)
    assert isinstance(trouble, Unreachable)
    assert trouble.broken
    assert (trouble.address, trouble.reason, trouble.attempt) == (
        server.address,
        "closed by the broker",
        1,
    )
    assert len(of(stage, Reachable)) == 1
    assert [owned(beat) for beat in server.beats][-1] == [0]


def test_silent_broker_is_given_up_before_the_session_ends(make: Make) -> None:
    server = Server()
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    server.held.clear()  # it will never answer that
    stage.late_s = 6.1  # of 9
    stage.until(lambda: len(server.held) == 1)
    (trouble, *_) = of(stage, Unreachable)
    assert isinstance(trouble, Unreachable)
    assert trouble.reason == "timed out"


def test_broker_that_never_greets_is_given_up(make: Make) -> None:
    server = Server()
    server.silent = True
    stage = make(server)
    stage.until(lambda: bool(server.guests))
    stage.late_s = 1.1
    stage.until(lambda: bool(of(stage, Unreachable)))
    server.silent = False
    stage.until(lambda: len(server.held) == 1)


def test_loading_coordinator_is_no_trouble_with_the_connection(make: Make) -> None:
    server = Server()
    server.script.append(texts_group.coordinator_loading("g", broker="n1"))
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    (trouble,) = of(stage, Unreachable)
    assert isinstance(trouble, Unreachable)
    assert not trouble.broken
    assert len(server.guests) == 1


def test_coordinator_that_no_broker_lists_is_told(make: Make) -> None:
    server = Server("n1")
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    server.coordinator = "n9"
    guest, request = server.held.pop()
    error = texts.not_leader("__offsets", 0, broker="n1", leader="n9")
    guest.sock.send(guest.protocol.refuse(request, error))
    stage.until(lambda: len(of(stage, Unreachable)) > 2)
    trouble = stage.told[-1]
    assert isinstance(trouble, Unreachable)
    assert trouble.reason == f"coordinator n9 is not listed by {server.address}"
    assert not trouble.broken
    server.coordinator = "n1"
    stage.until(lambda: len(server.held) == 1)
    assert len(of(stage, Reachable)) == 1


def test_fenced_member_comes_back_on_the_same_connection(make: Make) -> None:
    server = Server()
    server.script += [
        answer(3, [0, 1]),
        texts_group.group_fenced("g", "m1", reason="it was silent"),
        answer(7, {0: 7}),
    ]
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    assert [beat.member_epoch for beat in server.beats] == [0, 3, 0, 7]
    assert len(server.guests) == 1
    assert len(of(stage, Lost)) == 1


def test_refusal_for_good_is_told_and_ends_it(make: Make) -> None:
    server = Server()
    error = texts_group.subscription_mismatch(
        group="g", member="m2", yours=("orders",), theirs=("bills",)
    )
    server.script.append(error)
    stage = make(server)
    stage.until(lambda: stage.pulse.over)
    (failed,) = of(stage, Failed)
    assert isinstance(failed, Failed)
    assert failed.error.code == "T070"
    stage.turn()
    assert stage.seat.line is None


def test_goodbye_leaves_beside_the_heartbeat_that_is_held(make: Make) -> None:
    server = Server()
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    server.script.append(answer(-1))
    stage.pulse.leave()
    stage.until(lambda: stage.pulse.over)
    assert stage.told[-1] == Left()
    assert server.beats[-1].member_epoch == -1


def test_seat_never_asks_to_be_woken_for_nothing(make: Make) -> None:
    server = Server()
    stage = make(server)
    stage.until(lambda: len(server.held) == 1)
    assert stage.seat.wake_at() == stage.pulse.overdue_at()
