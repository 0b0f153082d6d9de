"""Who gets in: one accept loop per listener, and the sweep that ends overdue connections.

The limits are decided by ``limits.Admission``; whoever is over one of them is told
(T123) if that can be done without waiting, and closed.
"""

import logging
from contextlib import suppress
from itertools import count

import trio

from tailrace.broker.connection import Connection, log_mismatch
from tailrace.broker.limits import HANDSHAKE_S
from tailrace.broker.node import Node
from tailrace.broker.world import ForeignProtocol, Listener, ServerTransport
from tailrace.protocol import texts_wire
from tailrace.protocol.connection import ServerConnection

log = logging.getLogger("tailrace.broker.listener")

SWEEP_S = 1.0
CONNECTIONS_EVERY = 2  # sweeps: to look at 1,000 that wait for nothing takes 2 ms
ACCEPT_PAUSE_S = 0.1


async def accept_connections(
    node: Node, listener: Listener, name: str, connections: trio.Nursery
) -> None:
    """Take connections, each in a task of ``connections``, until the listener is closed."""
    node.metrics.listener(name)
    while True:
        try:
            transport = await listener.accept()
        except ConnectionAbortedError:
            return
        except OSError as error:
            node.metrics.connections_refused.of("accept").inc()
            log.error(
                "listener %s cannot accept, trying again: %s",
                *(name, error),
                extra={"event": "listener.failed", "code": None},
            )
            await trio.sleep(ACCEPT_PAUSE_S)
            continue
        ip = transport.peer.rpartition(":")[0].strip("[]")
        refused = node.admission.admit(ip, trio.current_time())
        if refused is not None:
            _refuse(node, transport, *refused)
        else:
            connections.start_soon(_serve, node, transport, name, ip)


async def _serve(node: Node, transport: ServerTransport, name: str, ip: str) -> None:
    open_connections = node.metrics.connections.of(name)
    open_connections.inc()
    connection: Connection | None = None
    try:
        if await _shake_hands(node, transport) and node.state() != "draining":
            connection = Connection(node, transport, name)
            node.connections[connection] = None
            await connection.serve()
    finally:
        transport.close()
        if connection is None:
            node.admission.greeted()  # it will not
        else:
            del node.connections[connection]
        open_connections.dec()
        node.admission.leave(ip)
        node.left.ring()


async def _shake_hands(node: Node, transport: ServerTransport) -> bool:
    """TLS, in bounded time; whether the connection may go on."""
    try:
        with trio.fail_after(HANDSHAKE_S):
            await transport.handshake()
    except ForeignProtocol as error:
        mismatch = texts_wire.other_protocol(transport.peer, found=error.found, expected="TLS")
        node.metrics.connections_refused.of("protocol").inc()
        log_mismatch(transport.peer, mismatch)
    except (OSError, trio.TooSlowError) as error:
        node.metrics.connections_refused.of("tls").inc()
        log.info(
            "no TLS handshake with %s: %s",
            *(transport.peer, error or f"not done in {HANDSHAKE_S:.0f} s"),
            extra={"event": "client.tls_failed", "code": None, "peer": transport.peer},
        )
    else:
        return True
    return False


def _refuse(node: Node, transport: ServerTransport, setting: str, limit: int) -> None:
    error = texts_wire.connection_limit(setting, limit=limit)
    node.metrics.connections_refused.of(setting.partition(" ")[0]).inc()
    log.warning(
        "%s: %s",
        *(transport.peer, error),
        extra={"event": "connection.refused", "code": error.code, "peer": transport.peer},
    )
    with suppress(OSError):  # it may be gone already
        transport.send_nowait(ServerConnection(node.software).refuse(None, error))
    transport.close()


async def sweep(node: Node) -> None:
    """End what is overdue: no hello, half a frame, silence, answers not taken; acks not due. Let go
    of memory that nobody uses."""
    for number in count():
        await trio.sleep(SWEEP_S)
        now = trio.current_time()
        node.appender.expire(now)
        if number % CONNECTIONS_EVERY:
            continue
        node.spares.tidy()
        for connection in list(node.connections):
            reason = connection.overdue(now)
            if reason is not None:
                log.warning(
                    "connection of %s closed: %s",
                    *(connection.who, reason),
                    extra={"event": "connection.overdue", "code": None},
                )
                connection.close()
