"""Who owns the partitions of one group, and how they change hands, one by one (pure).

Invariants (S23):
- a partition has one holding or none; it gets a new owner only when its old one released it, went,
  or was given its rebalance timeout to do so;
- ``since`` is the generation in which a partition came to its owner. It stays the same as long as
  the owner does, also when a withdrawal is taken back;
- a withdrawal is confirmed only by a member that knows of it: by an epoch not below ``withdrawn``;
- whatever is held by another than its target is being withdrawn: no withdrawals, and all is stable.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Set as AbstractSet
from dataclasses import dataclass

from tailrace.broker.assignment import Partition
from tailrace.broker.group_members import Member, Members


@dataclass(slots=True)
class Holding:
    """One partition in one member's hands."""

    owner: str
    since: int
    withdrawn: int = 0  # the owner's epoch with which it was told to give it up; 0: it was not
    deadline: float = math.inf  # when it is taken by force, seconds of the caller's clock


class Ownership:
    """All partitions of one group. ``bump`` gives a member a new epoch."""

    def __init__(self, members: Members, bump: Callable[[Member], None]) -> None:
        self._members = members
        self._bump = bump
        self.targets: dict[Partition, str] = {}
        self.holdings: dict[Partition, Holding] = {}
        self._held: dict[str, set[Partition]] = {}  # by owner
        self._leaving: dict[str, set[Partition]] = {}  # by owner, those being withdrawn

    @property
    def stable(self) -> bool:
        """Whether everything is where it shall be."""
        return not self._leaving

    def owners(self) -> dict[Partition, str]:
        return {key: holding.owner for key, holding in self.holdings.items()}

    def held(self, member_id: str) -> frozenset[Partition]:
        """All that a member has, also what is being withdrawn from it."""
        return frozenset(self._held.get(member_id, ()))

    def assigned(self, member_id: str) -> list[tuple[Partition, int]]:
        """What a member shall read, with ``since``; sorted."""
        leaving = self._leaving.get(member_id, ())
        return [
            (key, self.holdings[key].since)
            for key in sorted(self._held.get(member_id, ()))
            if key not in leaving
        ]

    def first_deadline(self) -> float:
        return min(
            (self.holdings[key].deadline for keys in self._leaving.values() for key in keys),
            default=math.inf,
        )

    def leaving(self, member_id: str) -> bool:
        """Whether something is being withdrawn from it."""
        return member_id in self._leaving

    def wish(self) -> tuple[dict[Partition, str], set[Partition]]:
        """Where partitions are best left: at their targets, else at who has them. And those on
        their way, which may just as well go elsewhere.
        """
        wish = self.owners()
        for key, target in self.targets.items():
            if target in self._members:
                wish[key] = target
        loose = {key for keys in self._leaving.values() for key in keys}
        return wish, loose

    # ── what happens ─────────────────────────────────────────────────────────────────────────

    def aim(self, now: float, generation: int, targets: Mapping[Partition, str]) -> None:
        """Bring everything under way to where it shall be."""
        self.targets = dict(targets)
        touched: set[str] = set()
        withdrawn: list[Holding] = []
        for key in [*targets, *(key for key in self.holdings if key not in targets)]:
            target = targets.get(key)
            holding = self.holdings.get(key)
            if holding is not None and holding.owner == target:
                if holding.withdrawn:
                    holding.withdrawn, holding.deadline = 0, math.inf
                    self._settled(key, holding.owner)
                    touched.add(holding.owner)
            elif holding is None or self._members[holding.owner].away:
                self._free(key)
                self._grant(key, generation, touched)
            elif not holding.withdrawn:
                self._leaving.setdefault(holding.owner, set()).add(key)
                touched.add(holding.owner)
                withdrawn.append(holding)
        self._touch(touched)
        for holding in withdrawn:
            owner = self._members[holding.owner]
            holding.withdrawn = owner.epoch
            holding.deadline = now + owner.rebalance_timeout_ms / 1000

    def confirm(
        self, member: Member, epoch: int, owned: AbstractSet[Partition], generation: int
    ) -> bool:
        """A member that has seen ``epoch`` owns ``owned`` now; whether that released anything."""
        released = [
            key
            for key in sorted(self._leaving.get(member.member_id, ()))
            if key not in owned and self.holdings[key].withdrawn <= epoch
        ]
        self._release(released, generation)
        return bool(released)

    def force(self, now: float, generation: int) -> bool:
        """Take what should have been given up by now; whether there was anything."""
        late = sorted(
            key
            for keys in self._leaving.values()
            for key in keys
            if self.holdings[key].deadline <= now
        )
        self._release(late, generation)
        return bool(late)

    def let_go(self, member_id: str, kept: AbstractSet[Partition] = frozenset()) -> bool:
        """Free what a member holds, but for ``kept``; whether there was anything.

        It is given to nobody before the next ``aim``.
        """
        freed = self._held.get(member_id, set()) - kept
        for key in sorted(freed):
            self._free(key)
        return bool(freed)

    def hand_over(self, old: str, new: Member, generation: int) -> None:
        """``new`` takes the place of ``old`` at once; what was being withdrawn is free."""
        for key in sorted(self.held(old)):
            withdrawn = self.holdings[key].withdrawn
            self._free(key)
            if not withdrawn:
                self.holdings[key] = Holding(new.member_id, generation)
                self._held.setdefault(new.member_id, set()).add(key)
        for key, target in self.targets.items():
            if target == old:
                self.targets[key] = new.member_id

    def forget(self, keys: Iterable[Partition]) -> None:
        """They do not exist any more."""
        touched: set[str] = set()
        for key in keys:
            holding = self.holdings.get(key)
            if holding is not None:
                touched.add(holding.owner)
                self._free(key)
            self.targets.pop(key, None)
        self._touch(touched)

    def grace(self, now: float) -> None:
        """Nobody could confirm anything lately: nothing is taken by force for the time in which
        a member is heard of again.
        """
        for owner, keys in self._leaving.items():
            until = now + self._members[owner].interval_ms / 1000
            for key in keys:
                holding = self.holdings[key]
                holding.deadline = max(holding.deadline, until)

    def restore(self, key: Partition, holding: Holding) -> None:
        """As a record has it."""
        self.holdings[key] = holding
        self._held.setdefault(holding.owner, set()).add(key)
        if holding.withdrawn:
            self._leaving.setdefault(holding.owner, set()).add(key)

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _release(self, keys: Iterable[Partition], generation: int) -> None:
        touched: set[str] = set()
        for key in keys:
            self._free(key)
            self._grant(key, generation, touched)
        self._touch(touched)

    def _grant(self, key: Partition, generation: int, touched: set[str]) -> None:
        target = self.targets.get(key)
        if target is None or target not in self._members:
            return
        self.holdings[key] = Holding(target, generation)
        self._held.setdefault(target, set()).add(key)
        touched.add(target)

    def _free(self, key: Partition) -> None:
        holding = self.holdings.pop(key, None)
        if holding is None:
            return
        held = self._held[holding.owner]
        held.discard(key)
        if not held:
            del self._held[holding.owner]
        self._settled(key, holding.owner)

    def _settled(self, key: Partition, owner: str) -> None:
        leaving = self._leaving.get(owner)
        if leaving is not None:
            leaving.discard(key)
            if not leaving:
                del self._leaving[owner]

    def _touch(self, members: Iterable[str]) -> None:
        for member_id in sorted(members):
            member = self._members.get(member_id)
            if member is not None:
                self._bump(member)
