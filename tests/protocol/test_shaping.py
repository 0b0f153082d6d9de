"""Answers as shapes: what travels is what is shown."""

from tailrace.protocol.messages import ExplainResponse
from tailrace.protocol.shapes import to_json
from tailrace.protocol.shaping import explanation


def test_an_explanation_keeps_its_facts_in_order() -> None:
    facts: dict[str, str | int | float | bool | list[str | int | float | bool | None] | None]
    facts = {"log_start": 900, "closed": True, "erasures": ["a", "b"], "last_error": None}
    response = ExplainResponse("orders[2]@7", "record", "expired", "It is gone.", facts, None)
    assert to_json(explanation(response)) == {
        "target": "orders[2]@7",
        "kind": "record",
        "verdict": "expired",
        "summary": "It is gone.",
        "facts": [
            {"name": "log_start", "value": 900},
            {"name": "closed", "value": True},
            {"name": "erasures", "value": ["a", "b"]},
            {"name": "last_error", "value": None},
        ],
        "next": None,
    }
