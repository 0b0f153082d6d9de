"""The metadata store of a cluster: etcd 3.4 or newer, through its HTTP gateway (R13-R18).

- Keys stand below ``cluster.prefix`` and a slash, which is all that is read or written.
- Reads are linearizable; ``list`` reads its pages as of one revision.
- A change is sent once: if its answer was lost, T100 says that it may have been made (R16).
- A lease may live longer than asked for: whole seconds, at least etcd's minimum (about 1.5 of its
  election timeouts), and anew after a change of leader. So its holder goes by a clock of its own.

``etcd_gateway`` asks, ``etcd_messages`` has the values, ``etcd_watch`` wakes.
"""

import builtins
import logging
import math
import ssl
from collections.abc import Mapping, Sequence

import httpx2
import trio

from tailrace.broker import etcd_messages
from tailrace.broker.config import ClusterConfig
from tailrace.broker.etcd_gateway import (
    CALL_S,
    CONNECT_S,
    CONNECTIONS_MAX,
    IDLE_S,
    Gateway,
    Login,
)
from tailrace.broker.etcd_messages import (
    A,
    LeaseAnswer,
    Page,
    Question,
    RangeAnswer,
    Refused,
    StatusAnswer,
    TxnAnswer,
)
from tailrace.broker.etcd_watch import EtcdWatch, Watches
from tailrace.broker.metadata import TXN_CHANGES_MAX, Entry
from tailrace.broker.security import etcd_context, read_password
from tailrace.broker.world import Offload
from tailrace.protocol import texts_etcd

logger = logging.getLogger("tailrace.broker.etcd")

PAGE_ENTRIES = 500
LISTS_MAX = 3  # of one list, each begun anew because its revision was compacted


async def open_etcd(
    cluster: ClusterConfig, nursery: trio.Nursery, offload: Offload, *, call_s: float = CALL_S
) -> "EtcdStore":
    """The store that ``[cluster]`` names; its watch runs in ``nursery`` until ``aclose``.

    Raises T100 if no member answers or it is too old, T082 for files that are of no use.
    """
    tls: ssl.SSLContext | None = None
    if cluster.etcd[0].startswith("https:"):
        tls = await offload.run(etcd_context, cluster)
    login = None
    if cluster.etcd_user:
        login = Login(cluster.etcd_user, await offload.run(read_password, cluster))
    client = httpx2.AsyncClient(
        verify=tls or False,  # False: no address is https
        timeout=httpx2.Timeout(None, connect=CONNECT_S, pool=CONNECT_S),
        limits=httpx2.Limits(
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=CONNECTIONS_MAX,
            keepalive_expiry=IDLE_S,
        ),
        trust_env=False,  # no proxy, no netrc
    )
    store = EtcdStore(Gateway(cluster.etcd, client, login, call_s=call_s), cluster.prefix)
    try:
        await store.greet()
    except BaseException:
        with trio.CancelScope(shield=True):
            await client.aclose()
        raise
    nursery.start_soon(store.watches.run)
    return store


class EtcdStore:
    """See ``metadata.MetadataStore`` for the contract of each method."""

    def __init__(self, gateway: Gateway, prefix: str) -> None:
        self._gateway = gateway
        self._root = f"{prefix}/".encode()
        self._revision = 0  # the highest seen in an answer
        self.watches = Watches(gateway, self._root)

    async def greet(self) -> None:
        """Find a member that answers, and say which etcd it is; T100."""
        status = await self._ask("maintenance/status", {}, StatusAnswer)
        url = self._gateway.url
        if etcd_messages.too_old(status.version):
            reason = f"etcd {status.version} is older than 3.4"
            raise texts_etcd.failed([(url, reason)])
        extra = {"event": "metadata.etcd", "url": url, "version": status.version}
        logger.info("metadata store: etcd %s at %s", status.version, url, extra=extra)
        if status.errors:
            extra = {"event": "metadata.alarm", "code": "T100", "url": url}
            logger.warning("etcd has alarms: %s", "; ".join(status.errors), extra=extra)

    async def get(self, key: str) -> Entry | None:
        found = await self._read(etcd_messages.read_one(self._key(key)))
        return self._entry(found.kvs[0]) if found.kvs else None

    async def list(self, prefix: str, since: int = 0) -> Sequence[Entry]:
        reason = ""
        for _ in range(LISTS_MAX):
            try:
                return await self._pages(self._key(prefix), since)
            except Refused as error:
                if error.code != etcd_messages.OUT_OF_RANGE:
                    raise self._failed(error) from error
                reason = error.message
        raise texts_etcd.failed([(self._gateway.url, f"{reason}, {LISTS_MAX} times in one list")])

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        assert len(puts) + len(deletes) <= TXN_CHANGES_MAX, "split the transaction"
        assert not any(key in puts for key in deletes), "one change per key"
        question = etcd_messages.change(
            [(self._key(key), revision) for key, revision in compare],
            {self._key(key): value for key, value in puts.items()},
            [self._key(key) for key in deletes],
            lease,
        )
        seen = self._revision
        try:
            answer = await self._gateway.call("kv/txn", question, TxnAnswer, repeat=False)
        except Refused as error:
            if lease is not None and error.code == etcd_messages.NOT_FOUND:
                raise KeyError(lease) from error
            raise self._failed(error) from error
        self._saw(answer.header.revision, seen)
        return answer.header.revision if answer.succeeded else None

    async def grant(self, ttl: float) -> int:
        # One whose answer was lost holds no key, and ends by itself.
        return (await self._ask("lease/grant", {"TTL": math.ceil(ttl)}, LeaseAnswer)).ID

    async def keepalive(self, lease: int) -> bool:
        return (await self._ask("lease/keepalive", {"ID": lease}, LeaseAnswer)).TTL > 0

    async def revoke(self, lease: int) -> None:
        try:
            await self._gateway.call("lease/revoke", {"ID": lease}, LeaseAnswer, repeat=True)
        except Refused as error:
            if error.code != etcd_messages.NOT_FOUND:
                raise self._failed(error) from error

    def watch(self, prefix: str) -> EtcdWatch:
        return self.watches.add(self._key(prefix))

    async def aclose(self) -> None:
        await self.watches.aclose()
        await self._gateway.aclose()

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    async def _pages(self, first: bytes, since: int) -> Sequence[Entry]:
        """Raises ``Refused`` if the revision was compacted between two pages."""
        entries: builtins.list[Entry] = []
        end, revision, more = etcd_messages.range_end(first), 0, True
        while more:
            page = Page(first, end, PAGE_ENTRIES, revision, since)
            seen = self._revision
            found = await self._gateway.call("kv/range", page.question(), RangeAnswer, repeat=True)
            self._saw(found.header.revision, seen)
            entries += map(self._entry, found.kvs)
            revision = revision or found.header.revision
            more = found.more
            if more:
                first = found.kvs[-1].key + b"\0"
        return entries

    async def _read(self, question: Question) -> RangeAnswer:
        seen = self._revision
        found = await self._ask("kv/range", question, RangeAnswer)
        self._saw(found.header.revision, seen)
        return found

    async def _ask(self, path: str, question: Question, kind: type[A]) -> A:
        """What may be asked twice; T100."""
        try:
            return await self._gateway.call(path, question, kind, repeat=True)
        except Refused as error:
            raise self._failed(error) from error

    def _failed(self, error: Refused) -> Exception:
        if error.no_space:
            return texts_etcd.no_space(self._gateway.url)
        return texts_etcd.failed([(self._gateway.url, error.message)])

    def _saw(self, revision: int, seen: int) -> None:
        """A linearizable answer is never older than what was seen before it was asked for; a
        compare-and-swap on a revision that is given twice could hit what nobody saw. T100."""
        if revision < seen:
            raise texts_etcd.went_back(self._gateway.url, seen=seen, found=revision)
        self._revision = max(self._revision, revision)

    def _key(self, key: str) -> bytes:
        return self._root + key.encode()

    def _entry(self, found: etcd_messages.KeyValue) -> Entry:
        return Entry(found.key[len(self._root) :].decode(), found.value, found.mod_revision)
