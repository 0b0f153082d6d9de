"""Which member of a group reads which partition (pure).

- **Even**: as even as the subscriptions allow. Where all subscribe the same, the numbers differ by
  one at most; partitions that only some may read are dealt out first, so that those who may read
  them get less of the others.
- **Sticky**: a partition moves only where evenness asks for it, and what moved once stays.
- **Deterministic**: by ids, never by the order of a dict.

Not here: when a partition may move. See ``group_ownership.py``.
"""

import heapq
from collections import deque
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
        quotas = _quotas(loads, held, len(partitions), loose)
        missing: dict[str, int] = {}
        for member, mine in held.items():
            kept = _kept(mine, quotas[member], loose)
            result.update(dict.fromkeys(kept, member))
            missing[member] = quotas[member] - len(kept)
            loads[member] += quotas[member]
        _deal((one for one in partitions if one not in result), missing, result)
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
    loads: Mapping[str, int],
    held: Mapping[str, Sequence[Partition]],
    number: int,
    loose: Container[Partition],
) -> dict[str, int]:
    """How many of ``number`` partitions each member gets, so that the loads come out even.

    What does not divide goes where the fewest partitions move: to those who hold more already, and
    of these to the one with fewer that are on their way anyhow.
    """
    high = (sum(loads[one] for one in held) + number) // len(held)
    low = high if max(loads[one] for one in held) <= high else min(loads[one] for one in held)
    while low < high:  # the highest level to which all can be filled up
        level = (low + high + 1) // 2
        if sum(max(0, level - loads[one]) for one in held) <= number:
            low = level
        else:
            high = level - 1
    quotas = {one: max(0, low - loads[one]) for one in held}
    rest = number - sum(quotas.values())
    if rest:
        moving = {one: sum(key in loose for key in mine) for one, mine in held.items()}
        level_ones = [one for one in held if loads[one] <= low]
        level_ones.sort(key=lambda one: (quotas[one] - len(held[one]), moving[one], one))
        for one in level_ones[:rest]:
            quotas[one] += 1
    return quotas


def _kept(
    mine: Sequence[Partition], quota: int, loose: Container[Partition]
) -> Sequence[Partition]:
    """What a member keeps: loose ones go first, then the same share of every topic."""
    surplus = len(mine) - quota
    if surplus <= 0:
        return mine
    gone = set([one for one in reversed(mine) if one in loose][:surplus])
    stacks: dict[bytes, list[Partition]] = {}
    for one in mine:
        if one not in gone:
            stacks.setdefault(one[0], []).append(one)
    sizes = {topic: len(stack) for topic, stack in stacks.items()}
    heap = [(-1.0, topic) for topic in sizes]  # by the share that is left
    heapq.heapify(heap)
    while len(gone) < surplus:
        topic = heap[0][1]
        gone.add(stacks[topic].pop())
        heapq.heapreplace(heap, (-len(stacks[topic]) / sizes[topic], topic))
    return [one for one in mine if one not in gone]


def _deal(
    free: Iterable[Partition], missing: Mapping[str, int], result: dict[Partition, str]
) -> None:
    """Give each free partition to one who lacks some: in turn, so that topics are spread."""
    queue = deque((member, number) for member, number in missing.items() if number)
    for partition in free:
        member, number = queue.popleft()
        result[partition] = member
        if number > 1:
            queue.append((member, number - 1))
    assert not queue, "quotas and partitions differ"
