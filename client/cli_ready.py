"""What the broker of this machine says of itself: GET /readyz."""

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from tailrace.protocol import texts_cli, texts_client

HTTP_BIND = "127.0.0.1:7480"
BODY_BYTES_MAX = 1 << 20
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """What ``/readyz`` of one broker said."""

    ready: bool
    checks: dict[str, bool]
    problems: list[str]  # of the checks that failed; a broker may be ready all the same


def local_http(bind: str | None = None) -> tuple[str, int]:
    """Where the broker of this machine answers HTTP: ``bind``, else the environment, else 7480."""
    text = bind or os.environ.get("TAILRACE_HTTP__BIND") or HTTP_BIND
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not port.isascii() or not port.isdigit():
        raise texts_cli.bad_value("TAILRACE_HTTP__BIND", key=text, reason="is not HOST:PORT")
    return _ANYWHERE.get(host, host), int(port)


def ask_ready(host: str, port: int, timeout_seconds: float) -> Readiness:
    """GET /readyz; ConnectError T001 if nobody answers, T004 if it is no broker."""
    address = f"{host}:{port}"
    began = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body: Any = json.loads(response.read(BODY_BYTES_MAX))
        checks: dict[str, bool] = {check["name"]: check["ok"] for check in body["checks"]}
        problems = [f"{c['name']}: {c['detail']}" for c in body["checks"] if not c["ok"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        reason = "what answers there is no broker's HTTP"
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
        took_s = time.monotonic() - began
        raise texts_client.no_broker([(address, reason)], elapsed_s=took_s) from error
    finally:
        connection.close()
    return Readiness(response.status == 200, checks, problems)
