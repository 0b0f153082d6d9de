"""Reaching a cluster for the first time, by the addresses that were given.

Any broker of them will do. It says which brokers there are and where they are reached; from then on
those addresses count.
"""

import difflib
from collections.abc import Callable

import anyio

from tailrace.client.brokers import Brokers
from tailrace.client.channel import Channel, open_channel
from tailrace.client.net import reason_of
from tailrace.client.options import Address
from tailrace.client.runtime import Runtime
from tailrace.protocol import texts_client
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import MetadataRequest, MetadataResponse

_CONTINUES_WHICH = {
    "connection refused": "refuses connections",
    "timed out": "does not answer",
    "does not resolve": "does not resolve",
}


async def reach(
    runtime: Runtime, brokers: Brokers, learn: Callable[[MetadataResponse], None]
) -> Channel:
    """A connection to a broker at its advertised address; it is ``brokers.home``.

    Raises ConnectError T001-T004, T120 after ``connect_timeout``, or what the last broker that was
    reached had to say instead of an answer. Cancelled: nothing stays open.
    """
    options, clock = runtime.options, runtime.clock
    began = clock.now()
    attempts: list[tuple[Address, str]] = []
    wrong: TailraceError | None = None
    for number, address in enumerate(options.addresses):
        left_s = options.connect_timeout - (clock.now() - began)
        share_s = max(0.0, left_s) / (len(options.addresses) - number)
        try:
            with anyio.fail_after(share_s):
                channel = await open_channel(runtime, address, None, share_s)
                return await _settle(runtime, brokers, learn, channel, began)
        except OSError as error:
            attempts.append((address, reason_of(error)))
        except TailraceError as error:
            if error.code == "T003":
                raise
            wrong = wrong or error
            attempts.append((address, error.message))
    if wrong is not None:
        raise wrong
    raise _unreachable(attempts, clock.now() - began)


async def look_up(runtime: Runtime, address: Address, cluster_id: str) -> MetadataResponse:
    """Which brokers there are, by a connection that is closed again.

    Raises OSError or TailraceError. Cancelled: it is closed.
    """
    timeout = runtime.options.connect_timeout
    channel = await open_channel(runtime, address, cluster_id, timeout)
    try:
        return await _brokers_by(channel, timeout)
    finally:
        channel.close()


async def _brokers_by(channel: Channel, timeout: float) -> MetadataResponse:
    question = MetadataRequest(topics=(), auto_create=False)
    response, _ = await channel.request(question, timeout=timeout)
    assert isinstance(response, MetadataResponse)
    return response


async def _settle(
    runtime: Runtime,
    brokers: Brokers,
    learn: Callable[[MetadataResponse], None],
    channel: Channel,
    began: float,
) -> Channel:
    """Learn the brokers over the bootstrap connection, and go where this one says it is."""
    try:
        learn(await _brokers_by(channel, runtime.options.connect_timeout))
    except BaseException:
        channel.close()
        raise
    broker_id = channel.hello.broker_id
    home = brokers.by_id.get(broker_id) or brokers.add(broker_id, channel.address)
    brokers.home = home
    if home.address == channel.address:
        return channel
    channel.close()
    left_s = runtime.options.connect_timeout - (runtime.clock.now() - began)
    try:
        return await open_channel(
            runtime, home.address, channel.hello.cluster_id, max(0.01, left_s * 0.9)
        )
    except OSError as error:
        reason = _CONTINUES_WHICH.get(reason_of(error), f"fails ({reason_of(error)})")
    except ConnectError as error:
        reason = f"fails ({error.message})"
    raise texts_client.advertised_unreachable(
        str(channel.address),
        broker=home.broker_id,
        advertised=str(home.address),
        reason=reason,
        elapsed_s=runtime.clock.now() - began,
    )


def _unreachable(attempts: list[tuple[Address, str]], elapsed_s: float) -> ConnectError:
    """T002 if only names are the problem, else T001."""
    told = [(str(address), reason) for address, reason in attempts]
    if all(reason == "does not resolve" for _, reason in attempts):
        host = attempts[0][0].host
        similar = difflib.get_close_matches(host, ["localhost"], 1)
        return texts_client.host_unresolved(
            host, elapsed_s=elapsed_s, similar=similar[0] if similar else None, attempts=told
        )
    return texts_client.no_broker(told, elapsed_s=elapsed_s)
