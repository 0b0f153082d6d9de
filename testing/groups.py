"""How far consumer groups are, for asserting what came of a test. Needs nothing but a URL."""

import time

from tailrace.protocol.errors import GroupNotFound
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing.blocking import outside_loops
from tailrace.testing.records import POLL_S, Records


class Groups(Records):
    """The groups of the broker at ``url``, with its topics and records."""

    @outside_loops
    def lag(self, group: str) -> int:
        """Records that are not committed yet, of all that the group reads. GroupNotFound T043."""
        return self._admin.group_lag(group).lag_records

    @outside_loops
    def committed(self, group: str) -> dict[TopicPartition, int]:
        """The next offsets to read, where there are any. GroupNotFound T043."""
        return {
            TopicPartition(one.topic, one.partition): one.committed
            for one in self._admin.group_lag(group).partition_list
            if one.committed is not None
        }

    @outside_loops
    def wait_caught_up(self, group: str, *, timeout: float = 2.0) -> None:
        """Return once the group has committed all there is; AssertionError after ``timeout`` s.

        A group that does not exist yet, or reads nothing yet, is waited for, too. A consumer
        commits every ``commit_interval``, 1 s if nothing else was said.
        """
        deadline = time.monotonic() + timeout
        while not self._caught_up(group):
            if time.monotonic() >= deadline:
                raise AssertionError(self._behind(group, timeout))
            time.sleep(POLL_S)

    def _caught_up(self, group: str) -> bool:
        try:
            behind = self._admin.group_lag(group)
        except GroupNotFound:
            return False
        return behind.lag_records == 0 and bool(behind.partition_list)

    def _behind(self, group: str, timeout: float) -> str:
        from tailrace.client.cli_group import lag_table  # with the command line's own imports

        try:
            table = lag_table(self._admin.describe_group(group), self._admin.group_lag(group))
        except GroupNotFound as error:
            table = str(error)
        first = f"group {group!r} has not caught up after {timeout:g} s"
        return "\n".join([first, *table.splitlines(), *self._last_events()])
