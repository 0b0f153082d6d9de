"""All peers. What their clients can do is the same whether their servers are here or not."""

from collections.abc import Mapping

from tailrace.bench import peer_kafka, peer_nats, peer_rabbitmq, peer_redis
from tailrace.bench.peer_job import Action, Peer


def peers(kafka_address: str | None = None) -> dict[str, Peer]:
    """By their names, in the order in which they are measured."""
    found = (
        peer_redis.PEER,
        peer_nats.PEER,
        peer_rabbitmq.PEER,
        peer_kafka.kafka(kafka_address),
        peer_kafka.LIBRDKAFKA,
    )
    return {peer.system: peer for peer in found}


ACTIONS: Mapping[str, Mapping[str, Action]] = {name: peer.actions for name, peer in peers().items()}
