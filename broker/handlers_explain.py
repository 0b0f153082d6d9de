"""Why something is as it is: not answered by this broker yet."""

from tailrace.broker.call import Call
from tailrace.broker.node import Node
from tailrace.protocol import texts_wire
from tailrace.protocol.messages import Api, ExplainRequest


def explain(node: Node, call: Call, request: ExplainRequest) -> None:
    """Refused like an api that is not served."""
    raise texts_wire.unsupported_api(Api.EXPLAIN, call.incoming.version)
