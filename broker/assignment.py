"""Which member of a group reads which partition (pure).

- **Even**: as even as the subscriptions allow. Where all subscribe the same, the numbers differ by
  one at most; partitions that only some may read are dealt out first, so that those who may read
  them get less of the others.
- **Sticky**: a partition moves only where evenness asks for it, and what moved once stays.
- **Deterministic**: by ids, never by the order of a dict.

Not here: when a partition may move. See ``group_ownership.py``.
"""

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TypeAlias

Partition: TypeAlias = tuple[bytes, int]  # (topic id, number)


def assign(
    partitions_of: Mapping[bytes, Sequence[int]],
    subscriptions: Mapping[str, frozenset[bytes]],
    current: Mapping[Partition, str],
    loose: Container[Partition] = (),
) -> dict[Partition, str]:
    """The member of each partition; one that nobody subscribes to is missing.

    ``partitions_of`` and ``subscriptions``: by topic id and by member. ``current``: who has them
    now; may name members and partitions that are gone. ``loose``: partitions that are on their
    way, and so are given up before others.
    """
    result: dict[Partition, str] = {}
    loads = dict.fromkeys(sorted(subscriptions), 0)
    for members, topics in _tiers(partitions_of, subscriptions):
        partitions = [(topic, number) for topic in topics for number in partitions_of[topic]]
        held: dict[str, list[Partition]] = {member: [] for member in members}
        for partition in partitions:
            mine = held.get(current.get(partition, ""))
            if mine is not None:
                mine.append(partition)
        quotas = _quotas(loads, held, len(partitions))
        for member, mine in held.items():
            for partition in _kept(mine, quotas[member], loose):
                result[partition] = member
        _deal((one for one in partitions if one not in result), quotas, result, members)
        for member in members:
            loads[member] += quotas[member]
    return result


def _tiers(
    partitions_of: Mapping[bytes, Sequence[int]], subscriptions: Mapping[str, frozenset[bytes]]
) -> list[tuple[tuple[str, ...], list[bytes]]]:
    """Topics with the same readers, together with these; the fewest readers first."""
    readers: dict[bytes, list[str]] = {topic: [] for topic in sorted(partitions_of)}
    for member in sorted(subscriptions):
        for topic in subscriptions[member]:
            if topic in readers:
                readers[topic].append(member)
    tiers: dict[tuple[str, ...], list[bytes]] = {}
    for topic, members in readers.items():
        if members:
            tiers.setdefault(tuple(members), []).append(topic)
    return sorted(tiers.items(), key=lambda tier: (len(tier[0]), tier[0]))


def _quotas(
    loads: Mapping[str, int], held: Mapping[str, Sequence[Partition]], number: int
) -> dict[str, int]:
    """How many of ``number`` partitions each member gets, so that the loads come out even.

    What does not divide goes where the fewest partitions move: to those who hold more already.
    """
    low, high = min(loads[one] for one in held), max(loads[one] for one in held) + number
    while low < high:  # the highest level to which all can be filled up
        level = (low + high + 1) // 2
        if sum(max(0, level - loads[one]) for one in held) <= number:
            low = level
        else:
            high = level - 1
    quotas = {one: max(0, low - loads[one]) for one in held}
    rest = number - sum(quotas.values())
    level_ones = [one for one in held if loads[one] <= low]
    level_ones.sort(key=lambda one: (quotas[one] - len(held[one]), one))
    for one in level_ones[:rest]:
        quotas[one] += 1
    return quotas


def _kept(
    mine: Sequence[Partition], quota: int, loose: Container[Partition]
) -> Sequence[Partition]:
    """What a member keeps: loose ones go first, then those of the topic it has the most of."""
    surplus = len(mine) - quota
    if surplus <= 0:
        return mine
    given_up = [one for one in reversed(mine) if one in loose][:surplus]
    gone = set(given_up)
    if len(gone) < surplus:
        counts = Counter(topic for topic, number in mine if (topic, number) not in gone)
        stacks: dict[bytes, list[Partition]] = {topic: [] for topic in counts}
        for one in mine:
            if one not in gone:
                stacks[one[0]].append(one)
        heap = [(-len(stack), topic) for topic, stack in stacks.items()]
        heapq.heapify(heap)
        while len(gone) < surplus:
            size, topic = heap[0]
            gone.add(stacks[topic].pop())
            heapq.heapreplace(heap, (size + 1, topic))
    return [one for one in mine if one not in gone]


def _deal(
    free: Iterable[Partition],
    quotas: Mapping[str, int],
    result: dict[Partition, str],
    members: Sequence[str],
) -> None:
    """Give each free partition to one who lacks some: in turn, so that topics are spread."""
    missing = dict(quotas)
    for member in result.values():
        if member in missing:
            missing[member] -= 1
    queue = [(-missing[member], member) for member in members if missing[member] > 0]
    heapq.heapify(queue)
    for partition in free:
        lacking, member = queue[0]
        result[partition] = member
        if lacking == -1:
            heapq.heappop(queue)
        else:
            heapq.heapreplace(queue, (lacking + 1, member))
