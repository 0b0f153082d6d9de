"""Connections to other brokers: TLS where they have it, and what is said of those not reached."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tailrace.broker import dialling as module
from tailrace.broker.binding import Ready
from tailrace.broker.config import from_mapping
from tailrace.broker.dialling import CAUSES_MAX, LASTS_S, QUIET_S, Dialler, Troubles
from tailrace.broker.members import Peer, PeerAddress
from tailrace.broker.security import Credentials
from tailrace.broker.server import Server
from tailrace.broker.system import system_world
from tailrace.protocol.connection import ServerConnection
from tailrace.protocol.errors import ConfigError, ConnectError
from tailrace.protocol.messages import MetadataRequest, MetadataResponse
from tailrace.protocol.texts_wire import connection_limit
from tests.broker.certified import certified
from tests.broker.harness import Settings, config, run, serving


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA, folder: Path) -> Settings:
    """Settings of who believes what that authority has signed."""
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {"cluster.peer_ca": str(folder / "ca.pem")}


def dialler(credentials: Credentials, cluster_id: str = "") -> Dialler:
    return Dialler(system_world(), "n1", cluster_id, credentials, listener="peer")


def loaded(settings: Settings) -> Credentials:
    credentials = Credentials(from_mapping(settings))
    credentials.load()
    return credentials


def peer_of(ready: Ready, *, tls: bool) -> Peer:
    return Peer("n2", PeerAddress(*ready.addresses["client"], tls=tls))


@asynccontextmanager
async def other(
    folder: Path, authority: trustme.CA | None, name: str = "127.0.0.1", days: float = 1
) -> AsyncIterator[Ready]:
    """Another broker; ``authority``: who has signed its certificate, None: it has no TLS."""
    settings: Settings = {"broker.id": "n2"}
    if authority is not None:
        until = datetime.now(UTC) + timedelta(days=days)
        settings |= certified(folder, authority, name, until=until)
        settings |= {"listeners.client.tls": True}
    async with serving(folder, settings) as (_, ready):
        yield ready


async def failure(one: Dialler, peer: Peer) -> ConnectError:
    with pytest.raises(ConnectError) as raised:
        await one.dial(peer)
    return raised.value


def test_a_broker_with_tls_is_asked_over_tls(tmp_path: Path, authority: trustme.CA) -> None:
    async def main() -> None:
        credentials = loaded(trusting(authority, tmp_path))
        async with other(tmp_path, authority) as ready, trio.open_nursery() as nursery:
            one = dialler(credentials, ready.cluster_id)
            channel = await one.dial(peer_of(ready, tls=True))
            nursery.start_soon(channel.read)
            answer, _ = await channel.ask(MetadataRequest(None, False), b"")
            assert isinstance(answer, MetadataResponse)
            assert answer.cluster_id == ready.cluster_id
            channel.close()

    run(main)


def test_it_is_enough_to_know_who_signed_whoever_signed_that_one(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async def main() -> None:
        signer = authority.create_child_ca()
        credentials = loaded(trusting(signer, tmp_path))
        async with other(tmp_path, signer) as ready, trio.open_nursery() as nursery:
            channel = await dialler(credentials, ready.cluster_id).dial(peer_of(ready, tls=True))
            nursery.start_soon(channel.read)
            channel.close()

    run(main)


@pytest.mark.parametrize(
    ("wrong", "reason", "hint"),
    [
        (
            "signer",
            "unable to get local issuer certificate",
            "Set cluster.peer_ca to the certificate of who signed that of broker n2.",
        ),
        (
            "name",
            "IP address mismatch, certificate is not valid for '127.0.0.1'",
            "Give broker n2 a certificate that names 127.0.0.1, or set its "
            "listeners.peer.advertise to what its certificate names.",
        ),
        (
            "time",
            "certificate has expired",
            "Renew security.tls_cert of broker n2 and send it SIGHUP; look at the clocks.",
        ),
    ],
)
def test_a_certificate_that_is_not_believed_is_told_with_what_mends_it(
    tmp_path: Path, authority: trustme.CA, wrong: str, reason: str, hint: str
) -> None:
    async def main() -> None:
        name = "elsewhere.example" if wrong == "name" else "127.0.0.1"
        days = -1 if wrong == "time" else 1
        trusted = trustme.CA() if wrong == "signer" else authority
        credentials = loaded(trusting(trusted, tmp_path))
        async with other(tmp_path, authority, name, days) as ready:
            peer = peer_of(ready, tls=True)
            error = await failure(dialler(credentials, ready.cluster_id), peer)
        address = f"127.0.0.1:{peer.where.port}"
        assert error.code == "T001"
        assert error.retriable
        assert error.attempts[0][0] == address
        assert error.attempts[0][1].startswith(f"certificate refused: {reason}")
        assert f": {address} (certificate refused: {reason}" in error.message
        assert error.hint == hint

    run(main)


def test_a_broker_without_tls_where_it_is_due_is_named(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async def main() -> None:
        credentials = loaded(trusting(authority, tmp_path))
        async with other(tmp_path, None) as ready:
            peer = peer_of(ready, tls=True)
            error = await failure(dialler(credentials, ready.cluster_id), peer)
        assert error.code == "T004"
        assert error.message == (f"127.0.0.1:{peer.where.port} speaks plain tailrace/1, not TLS")
        assert error.hint == (
            "Broker n2 tells others that there is TLS: correct listeners.peer.advertise or tls of "
            "that broker, and restart it."
        )

    run(main)


def test_tls_where_none_is_said_to_be_is_told_to_both(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with other(tmp_path, authority) as ready:
            peer = peer_of(ready, tls=False)
            error = await failure(dialler(loaded({}), ready.cluster_id), peer)
        assert error.code == "T004"
        assert error.message == f"127.0.0.1:{peer.where.port} speaks TLS, not tailrace/1"
        assert error.hint.startswith("Broker n2 tells others that there is no TLS: correct ")

    run(main)
    assert "speaks plain tailrace/1, not TLS" in caplog.text


async def http(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def gone(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.aclose()


async def full(stream: trio.SocketStream) -> None:
    error = connection_limit("connections", limit=1)
    await stream.send_all(ServerConnection("tailrace/test").refuse(None, error))


@pytest.mark.parametrize(
    ("answers", "tls", "code", "said"),
    [
        (http, True, "T004", "speaks something else, not TLS"),
        (http, False, "T004", "speaks HTTP, not tailrace/1"),
        (silent, True, "T001", "(timed out)"),
        (silent, False, "T001", "(timed out)"),
        (gone, True, "T001", "(TLS failed: closed before it was agreed on)"),
        (gone, False, "T001", "(closed before it said hello)"),
        (full, False, "T123", "limits.connections of 1 is reached"),
    ],
)
def test_who_does_not_say_hello_is_told(
    monkeypatch: pytest.MonkeyPatch, answers: Any, tls: bool, code: str, said: str
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.1 if answers is silent else 5.0)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, answers, listeners)
            host, port = listeners[0].socket.getsockname()
            error = await failure(dialler(loaded({})), Peer("n2", PeerAddress(host, port, tls)))
            nursery.cancel_scope.cancel()
        assert error.code == code
        assert said in error.message

    run(main)


@pytest.mark.parametrize(
    ("host", "reason"),
    [("127.0.0.1", "connection refused"), ("a..b", "no host has such a name")],
)
@pytest.mark.parametrize("tls", [False, True])
def test_who_cannot_be_reached_at_all_is_told(host: str, reason: str, tls: bool) -> None:
    async def main() -> None:
        error = await failure(dialler(loaded({})), Peer("n2", PeerAddress(host, 1, tls)))
        assert error.code == "T001"
        assert error.attempts == [(f"{host}:1", reason)]
        assert error.hint == (
            "Start broker n2, or set its listeners.peer.advertise to an address that brokers reach."
        )

    run(main)


# ── whom to believe ──────────────────────────────────────────────────────────────────────────


def test_another_authority_is_believed_when_the_files_were_read_again(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async def main() -> None:
        settings = trusting(trustme.CA(), tmp_path)
        credentials = loaded(settings)
        async with other(tmp_path, authority) as ready:
            one, peer = dialler(credentials, ready.cluster_id), peer_of(ready, tls=True)
            await failure(one, peer)
            (tmp_path / "ca.pem").write_text("nothing")
            with pytest.raises(ConfigError, match=r"T082: .*ca\.pem: no certificates"):
                credentials.renew(from_mapping(settings))
            await failure(one, peer)
            credentials.renew(from_mapping(trusting(authority, tmp_path)))
            (await one.dial(peer)).close()

    run(main)


def test_without_a_file_the_authorities_of_the_system_are_believed(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))

    async def main() -> None:
        credentials = loaded({})
        assert credentials.trust is None, "nothing here says that others have TLS"
        async with other(tmp_path, authority) as ready:
            one = dialler(credentials, ready.cluster_id)
            (await one.dial(peer_of(ready, tls=True))).close()
        assert credentials.trust is not None

    run(main)


def test_a_broker_does_not_start_with_an_authority_that_is_none(tmp_path: Path) -> None:
    async def main() -> None:
        settings: Settings = {"cluster.peer_ca": str(tmp_path / "nowhere.pem")}
        with pytest.raises(ConfigError, match=r"T082: .*nowhere\.pem cannot be read: No such"):
            await Server(system_world(), config(tmp_path, settings)).run()

    run(main)


# ── telling ──────────────────────────────────────────────────────────────────────────────────


def test_what_lasts_is_told_once_per_cause_until_it_is_over() -> None:
    troubles = Troubles()
    assert not troubles.failed("n2", "refused", 0.0), "it may be over at once"
    assert not troubles.reached("n2"), "nobody was told"
    assert not troubles.failed("n2", "refused", 10.0)
    assert not troubles.failed("n2", "refused", 10.0 + LASTS_S / 2)
    assert troubles.failed("n2", "refused", 10.0 + LASTS_S)
    assert not troubles.failed("n2", "refused", 12.0)
    assert troubles.failed("n2", "certificate", 12.0)
    assert not troubles.failed("n2", "refused", 13.0)
    assert not troubles.failed("n3", "refused", 13.0), "of each broker by itself"
    assert troubles.reached("n2")
    assert not troubles.reached("n2")
    assert not troubles.failed("n2", "refused", 14.0)


def test_what_failed_long_ago_does_not_make_it_last() -> None:
    troubles = Troubles()
    assert not troubles.failed("n2", "refused", 0.0)
    assert not troubles.failed("n2", "refused", 2 * QUIET_S), "nobody dialled in between"
    assert troubles.failed("n2", "refused", 2 * QUIET_S + LASTS_S)


def test_causes_without_end_are_not_told_without_end() -> None:
    troubles = Troubles()
    troubles.failed("n2", "begins", 0.0)
    told = [troubles.failed("n2", f"cause {number}", LASTS_S) for number in range(100)]
    assert sum(told) == CAUSES_MAX


def test_the_log_warns_once_and_tells_when_it_is_over(
    tmp_path: Path,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LASTS_S", 0.0)
    caplog.set_level(logging.INFO, "tailrace.broker.dialling")

    async def main() -> None:
        credentials = loaded(trusting(trustme.CA(), tmp_path))
        async with other(tmp_path, authority) as ready:
            one, peer = dialler(credentials, ready.cluster_id), peer_of(ready, tls=True)
            for _ in range(3):
                await failure(one, peer)
            credentials.renew(from_mapping(trusting(authority, tmp_path)))
            for _ in range(2):
                (await one.dial(peer)).close()

    run(main)
    lines = [one for one in caplog.records if one.name == "tailrace.broker.dialling"]
    assert [(one.levelname, vars(one)["event"], vars(one)["code"]) for one in lines] == [
        ("WARNING", "peer.unreachable", "T001"),
        ("INFO", "peer.reachable", None),
    ]
    assert lines[0].getMessage().startswith("broker n2 is not reached: T001: no broker reachable")
    assert "(certificate refused: unable to get local issuer certificate)" in lines[0].getMessage()
    assert lines[1].getMessage().startswith("broker n2 is reached again, at 127.0.0.1:")
    assert {vars(one)["peer"] for one in lines} == {"n2"}
