"""The texts of connections and frames, raised by the protocol itself; rules as in ``texts.py``."""

from typing import Literal

from tailrace.protocol import errors
from tailrace.protocol.texts import shown
from tailrace.protocol.texts_client import no_broker
from tailrace.protocol.units import format_count as count


def other_protocol(
    address: str, *, found: str, expected: str = "tailrace/1", hint: str = ""
) -> errors.ConnectError:
    """T004. ``found`` as ``foreign.identify`` names it, or "plain tailrace/1" where TLS is due.

    ``hint``: another one than clients get.
    """
    hints = {"TLS": "Use tailraces://.", "HTTP": "That is the HTTP port; clients use 7400."}
    return errors.ConnectError(
        "T004",
        f"{shown(address)} speaks {shown(found)}, not {expected}",
        hint or hints.get(found, "This listener speaks tailrace/1."),
        attempts=[(address, f"speaks {found}")],
        found=found,
        expected=expected,
    )


def peer_unreachable(
    address: str, broker: str, *, reason: str, listener: str, elapsed_s: float
) -> errors.ConnectError:
    """T001: of another broker. ``listener``: the name of the one at which it is asked."""
    return no_broker(
        [(address, reason)],
        elapsed_s=elapsed_s,
        hint=f"Start broker {shown(broker)}, or set its listeners.{shown(listener)}.advertise to "
        "an address that brokers reach.",
    )


Wrong = Literal["signer", "name", "time", "other"]  # with a certificate


def peer_untrusted(
    address: str,
    broker: str,
    *,
    reason: str,
    wrong: Wrong,
    listener: str,
    elapsed_s: float,
) -> errors.ConnectError:
    """T001: another broker is there, and its certificate is not believed."""
    host = shown(address.rpartition(":")[0])
    hints = {
        "signer": f"Set cluster.peer_ca to the certificate of who signed that of broker "
        f"{shown(broker)}.",
        "name": f"Give broker {shown(broker)} a certificate that names {host}, or set its "
        f"listeners.{shown(listener)}.advertise to what its certificate names.",
        "time": f"Renew security.tls_cert of broker {shown(broker)} and send it SIGHUP; look at "
        "the clocks.",
        "other": f"Give broker {shown(broker)} another certificate, or set cluster.peer_ca: see the"
        " reason.",
    }
    refused = [(address, f"certificate refused: {reason}")]
    return no_broker(refused, elapsed_s=elapsed_s, hint=hints[wrong])


def version_mismatch(
    *,
    client: str,
    client_range: tuple[int, int],
    broker: str,
    broker_range: tuple[int, int],
) -> errors.VersionMismatch:
    """T120. ``client`` and ``broker``: their software versions; ranges of protocols, inclusive."""
    (a, b), (c, d) = client_range, broker_range
    client, broker = (
        shown(client.removeprefix("tailrace/")),
        shown(broker.removeprefix("tailrace/")),
    )
    return errors.VersionMismatch(
        "T120",
        f"client {client} speaks protocol {a}-{b}, broker {broker} speaks {c}-{d}",
        f"pip install 'tailrace~={broker}', or upgrade the broker.",
        client_range=client_range,
        broker_range=broker_range,
    )


def malformed_frame(reason: str) -> errors.ConnectError:
    """T121: the bytes are not what the grammar of docs/wire_format.md allows."""
    return errors.ConnectError(
        "T121",
        f"malformed frame: {reason}",
        "The connection is closed. The peer has a bug, or the bytes were damaged on the way.",
        reason=reason,
    )


def unsupported_api(api: int, version: int) -> errors.ConnectError:
    """T122."""
    return errors.ConnectError(
        "T122",
        f"api {api} version {version} is not served here",
        "Use the versions that the answer to Hello lists, or upgrade the broker.",
        api=api,
        version=version,
    )


def connection_limit(setting: str, *, limit: int) -> errors.ConnectError:
    """T123. ``setting``: the key under ``[limits]`` that was reached."""
    return errors.ConnectError(
        "T123",
        f"connection refused: limits.{setting} of {count(limit)} is reached",
        f"Close idle clients, or raise limits.{setting}.",
        setting=setting,
        limit=limit,
    )


def frame_too_large(what: str, *, size: int, limit: int) -> errors.ConnectError:
    """T124. ``what``: "produce request"; sizes in bytes."""
    return errors.ConnectError(
        "T124",
        f"{what} of {count(size)} bytes exceeds the limit of {count(limit)} bytes",
        "The connection is closed. Send less at once, or raise limits.request_size.",
        size=size,
        limit=limit,
    )
