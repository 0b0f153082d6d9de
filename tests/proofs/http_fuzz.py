"""Requests that schemathesis makes up from the OpenAPI document, against a real broker.

    python -m tests.proofs.http_fuzz --examples 300

Passes only if no answer is a 5xx and none is outside of the document: its status, its headers, its
content type, the shape of its body. The endpoint that answers without end is asked on a broker
without topics, where it has nothing to tell.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tailrace.testing import Broker

TAIL = "tail_records"
PHASES = "examples,coverage,fuzzing"
# A request that fits its schema may still name a topic that is not there.
CHECKS_LEFT_OUT = "positive_data_acceptance"
# What refuses a request that does not fit its schema; 413 is not among schemathesis' own, and with
# 207 one record of it is refused, which keeps no other one out.
SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = [207, 400, 404, 405, 413, 415, 416]
"""
LINE_MAX = 400  # of what is printed: bodies may have megabytes


def fuzz(url: str, folder: Path, examples: int, *options: str) -> subprocess.CompletedProcess[str]:
    """One run of schemathesis; its exit code says whether all went well."""
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings)),
        *("run", f"{url}/api/v1/openapi.json"),
        *("--no-color", "--warnings", "off", "--request-timeout", "30"),
        *("--exclude-checks", CHECKS_LEFT_OUT, "--generation-database", "none"),
        *("--max-examples", str(examples), *options),
    ]
    found = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found.stdout = "\n".join(line[:LINE_MAX] for line in found.stdout.splitlines())
    return found


def seeded() -> Broker:
    """With something to be asked about, by the names that stand in the document as examples."""
    broker = Broker(http=True)
    broker.seed("orders", [b"a", b'{"n":1}', None], keys=[b"k1", None, b"k3"])
    broker.create_topic("customers", partitions=2, cleanup="compact")
    with broker.client() as client:
        with client.consumer("orders", group="billing", stop_at_end=True) as consumer:
            for _ in consumer:
                pass
    return broker


def check(
    broker: Broker, folder: Path, examples: int, *options: str
) -> subprocess.CompletedProcess[str]:
    """``fuzz``, and whether the broker is well afterwards."""
    assert broker.http_url is not None
    found = fuzz(broker.http_url, folder, examples, *options)
    failed = [one for one in broker.events(1_000_000) if one["level"] == "error"]
    assert not failed, failed
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=300, help="of each operation")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        with seeded() as broker:
            phases = ("--phases", f"{PHASES},stateful")
            whole = check(
                broker, Path(name), given.examples, "--exclude-operation-id", TAIL, *phases
            )
        print(whole.stdout)
        with Broker(http=True) as broker:
            tail = check(broker, Path(name), given.examples, "--include-operation-id", TAIL)
        print(tail.stdout)
    return whole.returncode or tail.returncode


if __name__ == "__main__":
    raise SystemExit(main())
