"""The texts of HTTP: what is wrong with a request before anybody looks at what it asks for."""

from collections.abc import Sequence

from tailrace.protocol import errors
from tailrace.protocol.texts import shown
from tailrace.protocol.units import format_count as count, format_seconds

PATHS_HINT = "GET / lists the paths, GET /api/v1/openapi.json describes them."


def bad_request(reason: str, *, hint: str = PATHS_HINT) -> errors.InputError:
    """T062 for a parameter or a body. ``reason``: "limit is '0', not a number from 1 to 1,000"."""
    return errors.InputError("T062", shown(reason), hint)


def unknown_path(path: str) -> errors.InputError:
    """T062, status 404."""
    return errors.InputError("T062", f"there is nothing at {shown(path)}", PATHS_HINT)


def no_broker(broker: str, *, known: Sequence[str]) -> errors.InputError:
    """T062, status 404."""
    hint = f"Its brokers: {', '.join(map(shown, known))}."
    return errors.InputError("T062", f"the cluster has no broker {shown(broker)}", hint)


def parameter_later(name: str) -> errors.InputError:
    """T062, status 404, for a name that a later release uses."""
    return errors.InputError("T062", f"the parameter {name} comes with a later release", PATHS_HINT)


def method_not_allowed(method: str, path: str, *, allowed: Sequence[str]) -> errors.InputError:
    """T062, status 405."""
    return errors.InputError(
        "T062",
        f"{shown(path)} does not take {shown(method)}",
        f"It takes {', '.join(allowed)}.",
    )


def foreign_host(host: str) -> errors.InputError:
    """T062, status 421. ``host``: what the header says, "" if there is none."""
    named = f"is for the host {shown(host)}, which is not this broker" if host else "names no host"
    return errors.InputError(
        "T062",
        f"the request {named}",
        "Use the address in http.bind or an advertised one; with http.token_file any host will do.",
    )


def wrong_content_type(given: str, *, expected: Sequence[str]) -> errors.InputError:
    """T062, status 415. ``given``: "" if there is none."""
    found = f"is {shown(given)}" if given else "has no Content-Type"
    return errors.InputError(
        "T062",
        f"the body {found}, not {' or '.join(expected)}",
        f"Send the header Content-Type: {expected[0]}.",
    )


def wrong_content_encoding(given: str) -> errors.InputError:
    """T062, status 415."""
    return errors.InputError(
        "T062",
        f"the body is encoded as {shown(given)}, which is not supported",
        "Send it as it is, without Content-Encoding.",
    )


def body_too_large(size_bytes: int | None, *, limit_bytes: int) -> errors.InputError:
    """T062, status 413. ``size_bytes``: None if the request does not say."""
    size = "the body" if size_bytes is None else f"a body of {count(size_bytes)} bytes"
    return errors.InputError(
        "T062",
        f"{size} exceeds the limit of {count(limit_bytes)} bytes",
        "Send less at once.",
    )


def out_of_range(error: errors.OffsetOutOfRange) -> errors.OffsetOutOfRange:
    """T041 for a reader over HTTP, who has no policy to set."""
    return errors.OffsetOutOfRange(
        "T041",
        error.message,
        f"Begin at {error.start}, or at end.",
        **error.details,
    )


def too_many_records(limit: int) -> errors.InputError:
    """T062, status 413."""
    return errors.InputError(
        "T062",
        f"the body holds more than {count(limit)} records; nothing was written",
        "Send fewer at once.",
    )


def body_too_slow(waited_s: float) -> errors.RequestTimeout:
    """T034 for a body that does not come."""
    return errors.RequestTimeout(
        "T034",
        f"the body of the request did not arrive in {format_seconds(waited_s)} s",
        "Send it without a pause.",
    )


def not_serving(broker: str, *, what: str) -> errors.PartitionOffline:
    """T033. ``what``: "is recovering: 3 of 5 partitions opened", "is stopping"."""
    return errors.PartitionOffline(
        "T033",
        f"broker {broker} {what}; its partitions are not served",
        "Try again. Look: tailrace cluster health --local",
        broker=broker,
    )


def too_busy(what: str, *, limit: int) -> errors.ConnectError:
    """T123, status 503. ``what``: "HTTP connections", "bytes of HTTP bodies"."""
    return errors.ConnectError(
        "T123",
        f"request refused: the limit of {count(limit)} {what} at once is reached",
        "Try again, with fewer requests at once.",
        limit=limit,
    )


def unexpected(broker: str) -> errors.TailraceError:
    """T000, status 500: a bug of ours, so no text can say more."""
    return errors.TailraceError(
        "T000",
        f"broker {broker} failed to answer, which is a fault of its own",
        "Its log says more; please report it.",
    )
