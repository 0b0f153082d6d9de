"""Opening connections to other brokers, and telling who cannot be reached.

Whoever dials gets each failure as an error. The log gets it at DEBUG, and at WARNING once per cause
where it has lasted for ``LASTS_S``: a broker that stops is refused for a moment, and that is no
news. INFO says when such a broker is reached again.

With TLS where the other broker has registered it: its certificate must be signed by whom
``cluster.peer_ca`` trusts, and name the host that is dialled. Which broker may be there is not
asked: who can reach a listener may speak as a broker.
"""

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from tailrace.broker.members import Peer
from tailrace.broker.peer import Channel
from tailrace.broker.security import Credentials
from tailrace.broker.world import BrokerTransport, World
from tailrace.protocol import foreign, texts_wire
from tailrace.protocol.connection import ClientConnection
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.texts_wire import Wrong
from tailrace.protocol.version import SOFTWARE

log = logging.getLogger("tailrace.broker.dialling")

CONNECT_S = 2.0  # to an open connection whose peer has said hello
LASTS_S = 1.0  # a failure that is over sooner is not told
CAUSES_MAX = 8  # told of one broker until it is reached; a cause has no numbers of its own
_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
QUIET_S = 60.0  # whoever was not dialled for so long is in no trouble
# What is wrong with a certificate, by OpenSSL's code (X509_V_ERR_...): not yet valid, expired;
# another host, another address; an unknown issuer, or a certificate that signed itself.
_WRONG: Mapping[int, Wrong] = {
    **dict.fromkeys((9, 10), "time"),
    **dict.fromkeys((62, 64), "name"),
    **dict.fromkeys((2, 18, 19, 20, 21), "signer"),
}


@dataclass(slots=True)
class Trouble:
    """A broker that is not reached."""

    since: float
    at: float  # of the last attempt
    told: set[str] = field(default_factory=set[str])


class Troubles:
    """Which brokers are not reached, and what of that was told. Pure."""

    def __init__(self) -> None:
        self._by_broker: dict[str, Trouble] = {}

    def failed(self, broker_id: str, cause: str, now: float) -> bool:
        """Another attempt failed; whether to tell of it."""
        trouble = self._by_broker.setdefault(broker_id, Trouble(now, now))
        if now - trouble.at > QUIET_S:
            trouble.since = now
        trouble.at = now
        lasts = now - trouble.since >= LASTS_S
        if not lasts or cause in trouble.told or len(trouble.told) >= CAUSES_MAX:
            return False
        trouble.told.add(cause)
        return True

    def reached(self, broker_id: str) -> bool:
        """An attempt went well; whether to tell of it."""
        trouble = self._by_broker.pop(broker_id, None)
        return trouble is not None and bool(trouble.told)


class Dialler:
    """``listener``: the name that other brokers' peer listeners have, for texts."""

    def __init__(
        self,
        world: World,
        broker_id: str,
        cluster_id: str,
        credentials: Credentials,
        *,
        listener: str,
    ) -> None:
        self._world = world
        self._broker_id = broker_id
        self._cluster_id = cluster_id
        self._credentials = credentials
        self._listener = listener
        self._troubles = Troubles()

    async def dial(self, peer: Peer) -> Channel:
        """A connection on which both have said hello; the caller runs its ``read`` and closes it.

        Raises ConnectError: T001 if the peer cannot be reached or its certificate is refused, T004
        if somebody else is there; and whatever it refuses us with. Cancelled: nothing stays open.
        """
        try:
            channel = await self._dial(peer)
        except TailraceError as error:
            self._tell(peer, error)
            raise
        if self._troubles.reached(peer.broker_id):
            log.info(
                "broker %s is reached again, at %s",
                *(peer.broker_id, channel.address),
                extra=_extra("peer.reachable", peer, None, ""),
            )
        return channel

    async def _dial(self, peer: Peer) -> Channel:
        address = _address(peer)
        began = trio.current_time()
        reason: OSError | None = None
        with trio.move_on_after(CONNECT_S):
            try:
                transport = await self._connect(peer)
                connection = ClientConnection(self._broker_id, SOFTWARE, self._cluster_id, address)
                channel = Channel(transport, connection, address)
                try:
                    await channel.greet()
                except BaseException:
                    channel.close()
                    raise
                return channel
            except OSError as error:
                reason = error
            except ConnectError as error:
                raise self._as_peer(peer, error) from error
        raise self._failure(peer, reason, trio.current_time() - began) from reason

    async def _connect(self, peer: Peer) -> BrokerTransport:
        where, tls = peer.where, None
        if where.tls:
            tls = self._credentials.trust
            if tls is None:
                tls = await self._world.offload.run(self._credentials.load_trust)
        return await self._world.net.connect(where.host, where.port, tls=tls)

    # ── errors ───────────────────────────────────────────────────────────────────────────────

    def _failure(self, peer: Peer, error: OSError | None, elapsed_s: float) -> ConnectError:
        """``error`` None: it took too long."""
        address, broker_id = _address(peer), peer.broker_id
        if isinstance(error, ssl.SSLCertVerificationError):
            return texts_wire.peer_untrusted(
                *(address, broker_id),
                reason=error.verify_message,
                wrong=_WRONG.get(error.verify_code, "other"),
                listener=self._listener,
                elapsed_s=elapsed_s,
            )
        reason = "timed out"
        if isinstance(error, ssl.SSLError):
            reason = error.reason or str(error)
            found = foreign.instead_of_tls(reason)
            if found is not None:
                return self._mismatch(peer, found)
            if isinstance(error, _ENDED):  # in other words with each release of Python and OpenSSL
                reason = "closed before it was agreed on"
            reason = f"TLS failed: {reason.replace('_', ' ').lower()}"
        elif error is not None:
            reason = (error.strerror or str(error)).lower()
        return texts_wire.peer_unreachable(
            *(address, broker_id), reason=reason, listener=self._listener, elapsed_s=elapsed_s
        )

    def _as_peer(self, peer: Peer, error: ConnectError) -> ConnectError:
        """What was raised for any client, as it is to be told of a broker."""
        found = error.details.get("found")
        return self._mismatch(peer, found) if isinstance(found, str) else error

    def _mismatch(self, peer: Peer, found: str) -> ConnectError:
        said = "TLS" if peer.where.tls else "no TLS"
        return texts_wire.other_protocol(
            _address(peer),
            found=found,
            expected="TLS" if peer.where.tls else "tailrace/1",
            hint=f"Broker {peer.broker_id} tells others that there is {said}: correct"
            f" listeners.{self._listener}.advertise or tls of that broker, and restart it.",
        )

    # ── telling ──────────────────────────────────────────────────────────────────────────────

    def _tell(self, peer: Peer, error: TailraceError) -> None:
        why = error.attempts[0][1] if isinstance(error, ConnectError) and error.attempts else ""
        cause = f"{error.code} {why or error.message}"
        told = self._troubles.failed(peer.broker_id, cause, trio.current_time())
        log.log(
            logging.WARNING if told else logging.DEBUG,
            "broker %s is not reached: %s",
            *(peer.broker_id, error),
            extra=_extra("peer.unreachable", peer, error.code, cause),
        )


def _address(peer: Peer) -> str:
    return f"{peer.where.host}:{peer.where.port}"


def _extra(event: str, peer: Peer, code: str | None, cause: str) -> dict[str, str | None]:
    alike = f"{peer.broker_id} {cause}"
    return {"event": event, "code": code, "alike": alike, "peer": peer.broker_id}
