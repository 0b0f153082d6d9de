"""Certificates of a running broker are renewed by SIGHUP."""

import shutil
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tests.broker.brokers import Broker, Start
from tests.broker.harness import Client, run

pytestmark = pytest.mark.slow


def write(authority: trustme.CA, folder: Path, name: str) -> None:
    """A certificate for localhost, in the place where the broker reads it."""
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())


async def connect(url: str, trust: trustme.CA, *, named: bool = True) -> Client:
    """``named``: the hello of TLS tells which server is wanted."""
    port = int(url.rpartition(":")[2])
    context = trusting(trust)
    context.check_hostname = named
    stream = await trio.open_tcp_stream("::1", port)
    secured = trio.SSLStream(stream, context, server_hostname="localhost" if named else None)
    client = Client(secured)
    try:
        await client.hello()
    except trio.BrokenResourceError:
        await stream.aclose()
        raise
    return client


async def reload(broker: Broker, count: int) -> dict[str, Any]:
    broker.process.send_signal(signal.SIGHUP)
    return await trio.to_thread.run_sync(broker.wait_logged, "config.reread", count)


def test_new_connections_see_the_new_certificate_and_old_ones_go_on(
    start: Start, tmp_path: Path
) -> None:
    old, new, other = trustme.CA(), trustme.CA(), trustme.CA()
    write(old, tmp_path, "server")
    (tmp_path / "tailrace.toml").write_text(
        '[listeners.client]\ntls = true\n[security]\ntls_cert = "server.pem"\n'
        'tls_key = "server.key"\n'
    )
    broker = start()

    async def renew(url: str) -> None:
        assert url.startswith("tailraces://")
        before = await connect(url, old)
        write(new, tmp_path, "server")  # under the names the configuration has
        assert (await reload(broker, 1))["applied"] == ""
        for named in (True, False):
            await trio.aclose_forcefully((await connect(url, new, named=named)).stream)
        with pytest.raises(trio.BrokenResourceError):
            await connect(url, old)

        write(other, tmp_path, "other")
        text = (tmp_path / "tailrace.toml").read_text()
        (tmp_path / "tailrace.toml").write_text(text.replace("server.", "other."))
        assert (await reload(broker, 2))["applied"] == "security.tls_cert, security.tls_key"
        await trio.aclose_forcefully((await connect(url, other)).stream)

        shutil.copy(tmp_path / "server.key", tmp_path / "other.key")  # of another certificate
        await reload(broker, 3)
        refused = broker.lines("config.refused")
        assert [line["code"] for line in refused] == ["T082"]
        assert "no certificate chain that goes with other.key" in refused[0]["message"]
        await trio.aclose_forcefully((await connect(url, other)).stream)

        await before.metadata()
        await trio.aclose_forcefully(before.stream)

    url = broker.ready()["url"]
    run(lambda: renew(url))
    assert broker.lines("config.needs_restart") == []
    assert broker.stop() == 0
