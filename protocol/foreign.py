"""Who else may be at the other end: named by the first bytes, and told off in its own language.

The preamble makes every other protocol fail at its first byte; this file only finds the name for
the error (T004) and what the other side would understand, so that a mix-up of ports or of TLS is
clear to both. A guess, never a decision: nothing is parsed beyond a prefix.
"""

from tailrace.protocol.frame import PREAMBLE

HTTP = "HTTP"
TLS = "TLS"
KAFKA = "Kafka"

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    *((method, HTTP) for method in (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"HTTP/")),
    *((method, HTTP) for method in (b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI * HT")),
    (b"\x16\x03", TLS),  # a handshake record
    (b"\x15\x03", TLS),  # an alert: what a TLS server answers to our preamble
    (b"SSH-", "SSH"),
    (b"AMQP", "AMQP"),
    (b"*", "Redis"),
    (b"-ERR", "Redis"),
    (b"INFO {", "NATS"),
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")
_KAFKA_API_MAX = 100  # a Kafka request: u32 size, u16 api key, u16 api version
_KAFKA_VERSION_MAX = 20

_SORRY = b"This port speaks tailrace/1. HTTP is served on port 7480.\n"
_REFUSALS = {
    HTTP: (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(_SORRY), _SORRY)
    ),
    TLS: b"\x15\x03\x01\x00\x02\x02\x46",  # fatal alert: protocol_version
    "Redis": b"-ERR this port speaks tailrace/1\r\n",
}


def identify(opening: bytes) -> str | None:
    """The name of the protocol that begins with ``opening`` (1 to 8 bytes), None if unknown.

    A shorter opening is matched as far as it goes, so the name is good from the first byte on.
    """
    if not opening:
        return None
    if len(opening) >= len(PREAMBLE) and opening.startswith(PREAMBLE[:-1]):
        return f"tailrace/{opening[len(PREAMBLE) - 1]}"
    for prefix, name in _PREFIXES:
        if opening.startswith(prefix) or prefix.startswith(opening):
            return name
    if len(opening) >= 8 and opening[0] == 0:
        api, version = int.from_bytes(opening[4:6]), int.from_bytes(opening[6:8])
        if api <= _KAFKA_API_MAX and version <= _KAFKA_VERSION_MAX:
            return KAFKA
    return None


def instead_of_tls(reason: str) -> str | None:
    """Who it is that answers a TLS hello with something else, by the reason that OpenSSL gives;
    None: the peer does speak TLS."""
    if "ALERT_PROTOCOL_VERSION" in reason:  # what a plain listener of ours answers: ``refusal``
        return "plain tailrace/1"
    return "something else" if reason in _NO_TLS else None


def refusal(found: str) -> bytes:
    """What that protocol understands as "wrong port", ``b""`` where there is no such thing."""
    return _REFUSALS.get(found, b"")
