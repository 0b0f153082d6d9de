"""etcd with TLS and client certificates, and with users: who gets in, and what stays secret."""

import logging
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tailrace.broker.etcd_gateway import Login
from tailrace.protocol.errors import ConfigError, MetadataUnavailable
from tests.broker.etcding import opened, woken
from tests.etcd_process import Etcd, Tls, etcd_cluster

pytestmark = pytest.mark.slow
PASSWORD = "pass word, not to be seen"


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────


def files(folder: Path, name: str, authority: trustme.CA) -> dict[str, str]:
    """Certificate and key of ``name``, and who signed it, as settings."""
    issued = authority.issue_cert(name)
    paths = {kind: folder / f"{name}.{kind}" for kind in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    return {f"etcd_{kind}": str(path) for kind, path in paths.items()}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, etcd_binary: str
) -> Iterator[Etcd]:
    folder = tmp_path_factory.mktemp("tls")
    of = files(folder, "127.0.0.1", authority)
    tls = Tls(*(Path(of[f"etcd_{kind}"]) for kind in ("ca", "cert", "key")))
    with etcd_cluster(folder, binary=etcd_binary, tls=tls) as etcd:
        yield etcd


def test_a_client_certificate_opens_the_store(
    secured: Etcd, authority: trustme.CA, tmp_path: Path
) -> None:
    async def main() -> None:
        async with opened(
            secured.urls, settings=files(tmp_path, "broker.example", authority)
        ) as store:
            watch = store.watch("")
            await store.txn([], {"k": b"1"})
            await woken(watch.wait)
            assert await store.get("k") is not None

    trio.run(main)


def test_without_a_client_certificate_nobody_gets_in(
    secured: Etcd, authority: trustme.CA, tmp_path: Path
) -> None:
    only_ca = {"etcd_ca": files(tmp_path, "broker.example", authority)["etcd_ca"]}

    async def main() -> None:
        with pytest.raises(MetadataUnavailable, match="T100"):
            async with opened(secured.urls, settings=only_ca):
                pass

    trio.run(main)


def test_an_etcd_that_somebody_else_signed_is_not_believed(secured: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(MetadataUnavailable, match="its certificate is refused: "):
            async with opened(
                secured.urls, settings=files(tmp_path, "broker.example", trustme.CA())
            ):
                pass

    trio.run(main)


def test_files_that_do_not_fit_are_named(
    secured: Etcd, authority: trustme.CA, tmp_path: Path
) -> None:
    one = files(tmp_path, "one.example", authority)
    other = files(tmp_path, "other.example", authority)

    async def main() -> None:
        with pytest.raises(ConfigError, match="no certificate that goes with") as raised:
            async with opened(secured.urls, settings={**one, "etcd_key": other["etcd_key"]}):
                pass
        assert raised.value.code == "T082"

    trio.run(main)


# ── users ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory, etcd_binary: str) -> Iterator[Etcd]:
    """As docs/operations.md has it: a role that may do everything below /t/, and nothing else."""
    with etcd_cluster(tmp_path_factory.mktemp("users"), binary=etcd_binary) as etcd:
        for user, role in (("root", "root"), ("tailrace", "below-t")):
            etcd.ask("auth/role/add", {"name": role})
            etcd.ask("auth/user/add", {"name": user, "password": PASSWORD})
            etcd.ask("auth/user/grant", {"user": user, "role": role})
        whole = {"key": coded("/t/"), "range_end": coded("/t0"), "permType": "READWRITE"}
        etcd.ask("auth/role/grant", {"name": "below-t", "perm": whole})
        etcd.ask("auth/enable", {})
        yield etcd


def coded(text: str) -> str:
    return b64encode(text.encode()).decode()


@pytest.fixture
def login(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return {"etcd_user": "tailrace", "etcd_password_file": str(file)}


def as_root(etcd: Etcd, path: str, question: dict[str, Any]) -> Any:
    said: Any = etcd.ask("auth/authenticate", {"name": "root", "password": PASSWORD})
    return etcd.ask(path, question, token=said["token"])


def test_a_role_for_the_prefix_is_enough(users: Etcd, login: dict[str, str]) -> None:
    async def main() -> None:
        async with opened(users.urls, settings=login) as store:
            watch = store.watch("a/")
            lease = await store.grant(60)
            revision = await store.txn([("a/1", 0)], {"a/1": b"1"}, lease=lease)
            await woken(watch.wait)
            assert revision is not None
            assert await store.txn([("a/1", revision)], {"a/2": b"2"}, ["a/1"]) is not None
            assert await store.keepalive(lease)
            await store.revoke(lease)
            assert [entry.key for entry in await store.list("")] == ["a/2"]
        async with opened(users.urls, "/other", login) as store:
            with pytest.raises(MetadataUnavailable, match="permission denied"):
                await store.get("k")
            with pytest.raises(MetadataUnavailable, match="permission denied"):
                await store.txn([], {"k": b""})

    trio.run(main)


def test_a_token_that_etcd_does_not_know_any_more_is_replaced(
    users: Etcd, login: dict[str, str]
) -> None:
    async def main() -> None:
        async with opened(users.urls, settings=login) as store:
            revision = await store.txn([], {"b/1": b"1"})
            watch = store.watch("b/")
            users.members[0].kill()  # it keeps tokens in memory
            users.members[0].start()
            await trio.to_thread.run_sync(users.wait_ready)
            revision = await store.txn([("b/1", revision or 0)], {"b/1": b"2"})
            await woken(watch.wait)
            as_root(users, "auth/role/add", {"name": "more"})  # tokens are older than that now
            for _ in range(2):
                assert revision is not None
                revision = await store.txn([("b/1", revision)], {"b/1": b"3"})
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(store.get, "b/1")

    trio.run(main)


@pytest.mark.parametrize("changed", ["etcd_user", "password"])
def test_who_is_not_known_is_refused(
    users: Etcd, login: dict[str, str], tmp_path: Path, changed: str
) -> None:
    if changed == "etcd_user":
        login["etcd_user"] = "nobody"
    else:
        (tmp_path / "password").write_text("another")

    async def main() -> None:
        with pytest.raises(MetadataUnavailable) as raised:
            async with opened(users.urls, settings=login):
                pass
        assert f"refused user '{login['etcd_user']}': " in str(raised.value)
        assert "authentication failed" in str(raised.value)
        assert "cluster.etcd_password_file" in raised.value.hint

    trio.run(main)


def test_without_a_user_nothing_is_read(users: Etcd) -> None:
    async def main() -> None:
        async with opened(users.urls) as store:
            with pytest.raises(MetadataUnavailable, match="user name is empty"):
                await store.get("k")

    trio.run(main)


def test_password_and_token_are_not_told(
    users: Etcd, login: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with opened(users.urls, settings=login) as store:
            watch = store.watch("c/")
            await store.txn([], {"c/1": b"1"})
            await woken(watch.wait)
            with pytest.raises(MetadataUnavailable) as raised:
                await store.txn([], {"c/1": bytes(1_800_000)})
            told.append(f"{raised.value!r} {raised.value} {vars(raised.value)}")

    told: list[str] = [repr(Login("u", PASSWORD)), str(Login("u", PASSWORD))]
    with caplog.at_level(logging.DEBUG):
        trio.run(main)
    assert "auth/authenticate" in caplog.text
    told.append(caplog.text)
    assert not any(PASSWORD in one or "Authorization" in one for one in told)
