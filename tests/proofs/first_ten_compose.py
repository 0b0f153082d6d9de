"""The newcomer's ninth minute: three brokers in containers, and one of them is killed."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tests.proofs.compose import BROKERS, URL, Cluster, Trouble, compose_command, docker
from tests.proofs.newcomer import ROOT, SECONDS_MAX, Newcomer, Stumble, Terminal

PROJECT = "tailrace-first-ten"
COMMAND = f"tailrace -b {URL}"
HEALTHY = r"HEALTHY  brokers 3/3  .*\n"
PARTITIONS = 3
SENDER = f"""
import time, tailrace.sync
with tailrace.sync.connect("{URL}") as client, client.producer(timeout=60) as producer:
    number = 0
    while True:
        record = producer.send("orders", b"%d" % number, partition=number % {PARTITIONS})
        print(record.partition, time.monotonic(), flush=True)
        number += 1
"""


def reason_to_skip() -> str:
    """Why there can be no containers here, or nothing."""
    if not shutil.which("docker"):
        return "needs Docker"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "Docker does not answer"
    try:
        compose_command()
        for image in images():
            if not docker("images", "-q", image):
                docker("pull", "-q", image)
    except Trouble as error:
        return str(error)
    return ""


def images() -> list[str]:
    """What others have made, and this is built on."""
    base = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    etcd = re.findall(r"image: (\S*etcd\S*)", (ROOT / "deploy/compose.yml").read_text())
    return sorted({*base, *etcd})


class Ninth:
    """The cluster, for as long as the row lasts."""

    def __init__(self, newcomer: Newcomer) -> None:
        self._newcomer = newcomer
        self._cluster = Cluster(PROJECT)
        self.leader = ""  # of partition 0, before it is killed

    @contextmanager
    def up(self) -> Generator[float]:
        """Seconds until all three are there and healthy, with an image that is there. Stumble."""
        try:
            docker("build", "--quiet", "--network", "host", "-t", "tailrace", str(ROOT))
            try:
                began = time.monotonic()
                self._cluster.up(build=False)
                self._wait_healthy()
                yield time.monotonic() - began
            finally:
                self._cluster.down()
        except Trouble as error:
            raise Stumble(str(error)) from error

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            done = self._newcomer.type(f"{COMMAND} cluster health --wait 60s")
            if re.fullmatch(HEALTHY, done.out):
                return
            if time.monotonic() > deadline:
                raise Stumble(f"not healthy, but\n{done.out}{done.err}")

    def kill(self) -> float:
        """Seconds until what the killed broker led is acknowledged again. Stumble."""
        create = f"{COMMAND} topic create orders -p {PARTITIONS}"
        self._newcomer.type(create).expect(".*", ".*")
        self.leader = self._leaders()[0]
        (self._newcomer.home / "sender.py").write_text(SENDER)
        with Terminal(self._newcomer, "python", "sender.py") as sender:
            for partition in range(PARTITIONS):
                sender.wait(rf"^{partition} \S+$")
            self._cluster.kill(self.leader)
            killed_at = time.monotonic()
            acked_at = self._acked_again(sender, killed_at)
        if self._leaders()[0] == self.leader:
            raise Stumble(f"{self.leader} still leads orders[0]")
        return acked_at - killed_at

    def _acked_again(self, sender: Terminal, killed_at: float) -> float:
        """When a record of partition 0 was, and not by the one that is gone."""
        while True:
            match, _ = sender.wait(r"^0 (\S+)$", seconds=SECONDS_MAX)
            if float(match[1]) > killed_at:
                return float(match[1])

    def _leaders(self) -> list[str]:
        said = self._newcomer.type(f"{COMMAND} topic describe orders -O json").expect(".*")
        described: Any = json.loads(said.out)
        found = [one["leader"] for one in described["partition_list"]]
        if not set(found) <= set(BROKERS):
            raise Stumble(f"orders is led by {found}")
        return found
