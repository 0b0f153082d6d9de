"""What a client is told while etcd stands still, and whether that is what was promised.

Producers and consumers try again for as long as they may, so that nobody's application sees an
outage of etcd; therefore one record is written and one is read over HTTP, again and again, and the
code of each answer is noted. Writes and reads have to go on while leases hold, to be refused with
T100 when they are over (R14), and to go on by themselves after etcd is back.
"""

import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.proofs.cluster_load import Seen
from tests.proofs.figures import Figure

TOPIC = "probe"  # one partition
EVERY_S = 0.2
ANSWER_S_MAX = 5.0
OK = "ok"
REFUSED = "T100"
KINDS = ("write", "read")


@dataclass(frozen=True)
class Probe:
    """One request. Times are ``time.monotonic``."""

    kind: str
    asked_at: float
    told_at: float
    code: str  # OK, of the catalogue, or what else happened


@dataclass(frozen=True)
class Outage:
    """When etcd stood still, and what is asked for. ``session_s``: of the brokers."""

    began: float
    ended: float
    session_s: float
    resume_s_max: float

    @property
    def goes_on_s_min(self) -> float:
        """A lease was renewed at most a third of a session before, and a tenth is its margin: more
        than half of it is left."""
        return self.session_s / 2

    @property
    def over_at(self) -> float:
        """From when on every lease is over, for whoever holds it and for who asked before."""
        return self.began + self.session_s


@contextmanager
def probing(urls: Sequence[str]) -> Generator[list[Probe]]:
    """Ask these brokers in turn meanwhile; a thread for writes and one for reads."""
    found: list[Probe] = []
    done = threading.Event()
    threads = [
        threading.Thread(target=_probe, args=(kind, urls, found, done), daemon=True)
        for kind in KINDS
    ]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _probe(kind: str, urls: Sequence[str], found: list[Probe], done: threading.Event) -> None:
    asked = 0
    while not done.wait(EVERY_S):
        asked_at = time.monotonic()
        code = _ask(kind, urls[asked % len(urls)])
        found.append(Probe(kind, asked_at, time.monotonic(), code))
        asked += 1


def _ask(kind: str, url: str) -> str:
    where = f"{url}/api/v1/topics/{TOPIC}/records"
    if kind == "write":
        body = json.dumps({"records": [{"value": "probe"}], "acks": "all"}).encode()
        request = urllib.request.Request(where, body, {"Content-Type": "application/json"})
    else:
        request = urllib.request.Request(f"{where}?partition=0&offset=-1&limit=1")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as answer:
            answer.read()
            return OK
    except urllib.error.HTTPError as error:
        code: str = json.load(error)["error"]["code"]
        return code
    except OSError as error:
        return type(error).__name__


def judged(outage: Outage, seen: Seen, probes: Sequence[Probe]) -> list[Figure]:
    """What was promised for an outage of etcd that is longer than a lease."""
    acks: dict[int, list[float]] = {one.partition: [] for one in seen.sent}
    for one in seen.sent:
        if one.offset >= 0:
            acks[one.partition].append(one.settled_at)
    found = _course(outage, "acks of producers", list(acks.values()))
    for kind in KINDS:
        mine = [one for one in probes if one.kind == kind]
        good = [one.told_at for one in mine if one.code == OK]
        found += _course(outage, f"{kind}s over HTTP", [good])
        codes = [
            one.code for one in mine if outage.over_at < one.asked_at and one.told_at < outage.ended
        ]
        refused = f"{kind}s refused with {REFUSED} while leases are over"
        found.append(Figure(refused, codes.count(REFUSED), unit="", least=1))
        others = sorted({*codes} - {REFUSED})
        what = f"{kind}s told otherwise ({', '.join(others) or 'nothing'})"
        found.append(Figure(what, len(codes) - codes.count(REFUSED), unit="", most=0))
    return found


def _course(outage: Outage, what: str, times: Sequence[Sequence[float]]) -> list[Figure]:
    """When it ended, and when it came back, by partition. What never came is infinitely far."""
    before = [max((at for at in one if at <= outage.ended), default=-math.inf) for one in times]
    after = [min((at for at in one if at > outage.ended), default=math.inf) for one in times]
    soonest = min(before, default=-math.inf) - outage.began
    latest = max(before, default=math.inf) - outage.began
    back = max(after, default=math.inf) - outage.ended
    return [
        Figure(f"{what} go on without etcd everywhere", soonest, least=outage.goes_on_s_min),
        Figure(f"{what} go on without etcd anywhere", latest, most=outage.session_s),
        Figure(f"{what} are back everywhere after etcd is", back, most=outage.resume_s_max),
    ]
