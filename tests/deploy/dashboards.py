"""The dashboards of deploy/ as queries, and whether a Prometheus has an answer to them."""

import json
import math
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
SECONDS_MAX = 30.0  # of one answer

Ask = Callable[[str], list[float]]


def queries(dashboard: Path) -> list[str]:
    """Every query of its panels."""
    document: Any = json.loads(dashboard.read_text())
    return [target["expr"] for panel in document["panels"] for target in panel["targets"]]


def variables(dashboard: Path) -> list[str]:
    """What the choices of its variables come from, as queries."""
    document: Any = json.loads(dashboard.read_text())
    asked = [variable["query"] for variable in document["templating"]["list"]]
    return [re.sub(r"label_values\((.*), (\w+)\)", r"group by (\2) (\1)", one) for one in asked]


def as_grafana_asks(query: str) -> str:
    """With all of each variable, and the interval of a short look."""
    return re.sub(r"\$(topic|group)\b", ".+", query.replace("$__rate_interval", "1m"))


def asked_by(dashboards: Iterable[Path]) -> list[str]:
    """All that these ask for."""
    found = [query for path in dashboards for query in (*queries(path), *variables(path))]
    return [as_grafana_asks(query) for query in found]


def asking(prometheus: str) -> Ask:
    """What asks the Prometheus at this address for the values of a query. OSError."""

    def ask(query: str) -> list[float]:
        url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(url, timeout=SECONDS_MAX) as answer:
            found: Any = json.load(answer)["data"]["result"]
        return [float(one["value"][1]) for one in found]

    return ask


def empty(ask: Ask, asked: Iterable[str]) -> list[str]:
    """Queries that have nothing to show."""
    return [query for query in asked if not any(not math.isnan(value) for value in ask(query))]
