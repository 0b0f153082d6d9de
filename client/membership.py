"""What one member of a group holds, and what its coordinator says about it."""

from dataclasses import dataclass

from tailrace.client.records import TopicPartition


@dataclass(frozen=True, slots=True)
class Assignment:
    """One partition that the member shall read now."""

    topic: str
    topic_id: bytes
    partition: int
    assignment_epoch: int  # the generation in which it came to the member; commits carry it
    added_later: bool  # it did not exist when the group first subscribed: starts at its beginning

    @property
    def at(self) -> TopicPartition:
        """Which one, by names."""
        return TopicPartition(self.topic, self.partition)
