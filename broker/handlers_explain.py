"""Why something is as it is: which explanation was asked for."""

from collections.abc import Awaitable, Callable
from functools import partial

from tailrace.broker import explainer
from tailrace.broker.call import Call, Later
from tailrace.broker.handlers_groups import check_group
from tailrace.broker.node import Node
from tailrace.protocol import texts_explain
from tailrace.protocol.messages import ExplainRequest, ExplainResponse, Response
from tailrace.protocol.shapes import Explanation


def explain(node: Node, call: Call, request: ExplainRequest) -> Later:
    """T010, T011, T013, T043, T062."""
    if request.group is not None:
        check_group(request.group)
    asked = _asked(node, request)

    async def work() -> Response:
        found = await asked()
        return ExplainResponse(
            target=found.target,
            kind=found.kind,
            verdict=found.verdict,
            summary=found.summary,
            facts={fact.name: fact.value for fact in found.facts},
            next=found.next,
        )

    return work


def _asked(node: Node, request: ExplainRequest) -> Callable[[], Awaitable[Explanation]]:
    topic, number, offset, group = request.topic, request.partition, request.offset, request.group
    if topic is None:
        if number is not None or offset is not None:
            raise texts_explain.bad_target("a partition or an offset needs its topic")
        if group is None:
            raise texts_explain.bad_target("neither a topic nor a group is named")
        return partial(explainer.group, node, group)
    if number is None:
        if offset is not None:
            raise texts_explain.bad_target("an offset needs its partition")
        return partial(explainer.topic, node, topic, group)
    if offset is None:
        return partial(explainer.partition, node, topic, number, group)
    if offset < 0:
        raise texts_explain.bad_target(f"offset {offset} is negative")
    return partial(explainer.record, node, topic, number, offset, group)
