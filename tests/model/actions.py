"""What can happen next in a state: every action of brokers, store, network and bad luck.

What a fetch does by rules R1 and R2 is written here as the partition and its follower do it; bugs
of theirs (``Rules.bug``) are planted here, bugs of the pure rules in ``planted.py``.
"""

from collections.abc import Iterator
from dataclasses import replace

from tailrace.broker import election, reassignment
from tailrace.broker.catalog import Leadership
from tailrace.storage.epochs import EpochStart
from tests.model import invariants
from tests.model.state import BROKERS, INDEX, Change, Fetch, Node, Record, Rules, State

Step = tuple[str, State]
TARGETS = (("a", "b"), ("b", "c"), ("a", "b", "c"))
EARLY, LATE, LAG_MAX = 0.0, 100.0, 50.0  # of a leader's looks at its followers


def steps(state: State, rules: Rules) -> Iterator[Step]:
    """Everything that can happen next, each with the state after it."""
    for action in (leading, following, changing, storing, controlling, losing, failing):
        for label, after in action(state, rules):
            try:
                for node, before in zip(after.nodes, state.nodes, strict=True):
                    if node is not before:
                        invariants.after_change_of(after, node, rules.durability)
                invariants.everywhere(after, rules.durability)
            except invariants.Violation as error:
                raise invariants.Violation(f"{label}: {error}") from None
            yield label, after


def spend(state: State, **what: int) -> None:
    state.budget = state.budget._replace(
        **{name: getattr(state.budget, name) - amount for name, amount in what.items()}
    )


# ── leaders ──────────────────────────────────────────────────────────────────────────────────


def leading(state: State, rules: Rules) -> Iterator[Step]:
    """Append, flush, and look at the store."""
    for node in state.nodes:
        if node.leads and state.budget.records:
            yield f"{node.name} appends", append(state, node.name)
        if node.up and node.flushed < len(node.log):
            after = state.fork()
            own = after.own(node.name)
            own.flushed = len(own.log)
            if own.leads:
                own.replica.observe_own(len(own.log), own.flushed)
            yield f"{node.name} flushes", after
        named = node.name == state.meta.leader or node.replica.leading
        if node.up and named and (seen := look(state, node, rules)) is not None:
            yield f"{node.name} looks", seen


def append(state: State, name: str) -> State:
    after = state.fork()
    node = after.own(name)
    epoch = node.replica.leader_epoch
    others = [one for one in state.writers if one[0] == epoch]
    invariants.check(all(one[1:] == (name, node.life) for one in others), "S5: two wrote one epoch")
    after.writers = state.writers | {(epoch, name, node.life)}
    if node.history.latest < epoch:  # only with bug "late epoch"
        node.epochs = begun(node, epoch)
    invariants.check(not node.log or node.log[-1].epoch <= epoch, "S9: epochs fall along a log")
    node.log = (*node.log, Record(epoch, state.budget.records))
    node.replica.observe_own(len(node.log), node.flushed)
    spend(after, records=1)
    return after


def look(state: State, node: Node, rules: Rules) -> State | None:
    """Read the store, and do as it says."""
    meta = state.meta
    replica = node.replica
    if node.known == (meta.leader, meta.leader_epoch) and not (
        replica.leading
        and (replica.leadership.revision < meta.revision or replica.min_isr != state.need)
    ):
        return None
    after = state.fork()
    node = after.own(node.name)
    node.known = (meta.leader, meta.leader_epoch)
    if meta.leader != node.name:
        node.replica.follow(meta)
    elif node.replica.leading and node.replica.leader_epoch == meta.leader_epoch:
        node.replica.reconfigure(rules.durability, state.need)
        node.replica.commit_change(meta)
    else:
        if rules.bug != "late epoch":
            node.epochs = begun(node, meta.leader_epoch)
        node.replica.lead(meta, epoch_start=len(node.log), min_isr=state.need)
        node.replica.isr_change(EARLY, LAG_MAX)
        node.replica.observe_own(len(node.log), node.flushed)
    return after


def begun(node: Node, epoch: int) -> tuple[EpochStart, ...]:
    history = node.history
    history.begin(epoch, len(node.log))
    return tuple(history.entries)


# ── followers ────────────────────────────────────────────────────────────────────────────────


def following(state: State, rules: Rules) -> Iterator[Step]:
    """Fetch from whom one believes to be the leader; or send a fetch that arrives later.

    A follower looks at the store when it means to fetch, or not: looking alone changes nothing.
    """
    meta = state.meta
    for node in state.nodes:
        if not node.up or node.replica.leading:
            continue
        for leader, epoch in {node.known, (meta.leader, meta.leader_epoch)}:
            if leader is None or leader == node.name or epoch < node.known[1]:
                continue
            fetch = Fetch(
                *(node.name, node.broker_epoch, epoch, node.history.before(len(node.log))),
                *(len(node.log), node.flushed),
            )
            if not answers(state.node(leader), fetch, rules):
                continue
            after = exchange(state, leader, fetch, rules)
            if after is not None:
                yield f"{node.name} fetches {fetch.offset} from {leader}", after
            if state.budget.late and fetch not in state.fetches:
                after = state.fork()
                after.fetches = (*state.fetches, fetch)
                after.own(node.name).known = (leader, epoch)
                spend(after, late=1)
                yield f"{node.name} sends a fetch of {fetch.offset} that is late", after
    for fetch in state.fetches:
        for node in state.nodes:
            if answers(node, fetch, rules):
                after = state.fork()
                after.fetches = tuple(one for one in state.fetches if one != fetch)
                own = after.own(node.name)
                if diverging(own, fetch) is None:
                    observe(own, fetch)
                yield (
                    f"{node.name} gets the late fetch of {fetch.offset} by {fetch.follower}",
                    after,
                )


def answers(leader: Node, fetch: Fetch, rules: Rules) -> bool:
    """R2: only the leader of that very epoch."""
    if leader.name == fetch.follower or not leader.leads:
        return False
    return leader.replica.leader_epoch == fetch.leader_epoch or rules.bug == "any epoch"


def diverging(leader: Node, fetch: Fetch) -> tuple[int, int] | None:
    """Where the follower's history leaves the leader's: (epoch, end); None: nowhere."""
    found = leader.history.end_of(fetch.last_epoch, len(leader.log))
    if found.epoch == fetch.last_epoch and found.start_offset >= fetch.offset:
        return None
    return found.epoch, found.start_offset


def observe(leader: Node, fetch: Fetch) -> None:
    leader.replica.observe_fetch(
        *(fetch.follower, fetch.offset, fetch.flushed, fetch.broker_epoch, EARLY)
    )


def exchange(state: State, leader: str, fetch: Fetch, rules: Rules) -> State | None:
    """A fetch and its answer; None if nobody learns anything."""
    after = state.fork()
    own = after.own(leader)
    split = diverging(own, fetch)
    if rules.bug == "late epoch" and fetch.last_epoch > own.history.latest:
        split = None  # KAFKA-7415: nothing was known of it, so nothing was said
    follower = after.own(fetch.follower)
    if rules.bug == "truncate to watermark" and follower.known[1] < fetch.leader_epoch:
        truncate(after, follower, follower.replica.high_watermark)
        follower.known = (leader, fetch.leader_epoch)
        return after
    follower.known = (leader, fetch.leader_epoch)
    if split is not None:
        epoch, end = split
        length = min(end, follower.history.end_of(epoch, len(follower.log)).start_offset)
        truncate(after, follower, length)
        return after
    observe(own, fetch)
    fresh = own.log[fetch.offset :]
    follower.log += fresh
    for offset, record in enumerate(fresh, fetch.offset):
        history = follower.history
        history.found(record.epoch, offset)
        follower.epochs = tuple(history.entries)
    if not rules.slow_flush:
        follower.flushed = len(follower.log)
    follower.replica.observe_leader(own.replica.high_watermark, len(follower.log), follower.flushed)
    if own.key() == state.node(leader).key() and follower.key() == state.node(follower.name).key():
        return None
    return after


def truncate(state: State, node: Node, length: int) -> None:
    invariants.truncating(state, node, length)
    history = node.history
    history.truncate_to(length)
    node.log, node.epochs = node.log[:length], tuple(history.entries)
    node.flushed = min(node.flushed, length)


# ── the in-sync set ──────────────────────────────────────────────────────────────────────────


def changing(state: State, rules: Rules) -> Iterator[Step]:
    """Leaders propose changes, hear of their outcome, or do not."""
    for node in state.nodes:
        if node.leads and state.budget.changes and not node.replica.change_pending:
            yield from proposals(state, node)
    for number, one in enumerate(state.changes):
        if not one.awaited:
            continue
        if one.stored or one.refused:
            after = state.fork()
            after.changes = without(state.changes, number)
            answered(after.own(one.leader), one, state.meta)
            yield f"{one.leader} hears: {'stored' if one.stored else 'refused'}", after
        if state.budget.doubts:
            after = state.fork()
            spend(after, doubts=1)
            node = after.own(one.leader)
            if rules.bug == "lost is aborted":
                node.replica.abort_change(one.change)
            else:
                node.replica.doubt_change(one.change)
            left = () if one.stored or one.refused else (one._replace(awaited=False),)
            after.changes = (*without(state.changes, number), *left)
            yield f"{one.leader} does not hear of its change", after


def proposals(state: State, node: Node) -> Iterator[Step]:
    """Whoever can be late, and nobody."""
    replica = node.replica
    lagging = [
        name
        for name in replica.leadership.isr
        if name != node.name and replica.followers[name].counted < len(node.log)
    ]
    choices = [(), *((one,) for one in lagging)] + ([tuple(lagging)] if len(lagging) > 1 else [])
    for victims in choices:
        after = state.fork()
        own = after.own(node.name)
        times = {name: one.caught_up_at for name, one in own.replica.followers.items()}
        for name, follower in own.replica.followers.items():
            if name in lagging:
                follower.caught_up_at = EARLY if name in victims else LATE
            elif follower.caught_up_at == EARLY:
                follower.caught_up_at = LATE
        change = own.replica.isr_change(LATE, LAG_MAX)
        for name, follower in own.replica.followers.items():
            follower.caught_up_at = times[name]
        if change is None or set(change.removed) != set(victims):
            continue
        own.replica.begin_change(change)
        spend(after, changes=1)
        after.changes = (*state.changes, Change(node.name, node.life, change))
        yield f"{node.name} proposes {change.leadership.isr}", after


def answered(node: Node, one: Change, stored: Leadership) -> None:
    """The leader hears of its change; it reads again where it was refused."""
    if one.stored is not None:
        node.replica.commit_change(one.stored)
    elif stored.revision == node.replica.leadership.revision:
        node.replica.abort_change(one.change)
    # Else it has news to look at; until then what it proposed counts.


def without(changes: tuple[Change, ...], number: int) -> tuple[Change, ...]:
    return (*changes[:number], *changes[number + 1 :])


# ── the store ────────────────────────────────────────────────────────────────────────────────


def storing(state: State, rules: Rules) -> Iterator[Step]:
    """A change reaches the store, in whatever order."""
    for number, one in enumerate(state.changes):
        if one.stored or one.refused:
            continue
        after = state.fork()
        proposed, added = one.change.leadership, one.change.added.items()
        fits = proposed.revision == state.meta.revision or rules.bug == "no compare"
        known = all(state.registered[INDEX[name]] == epoch for name, epoch in added)
        if fits and (known or rules.bug == "no broker epoch"):
            put(after, proposed)
            kept = one._replace(stored=after.meta)
        else:
            kept = one._replace(refused=True)
        after.changes = without(state.changes, number)
        if one.awaited:
            after.changes = (*after.changes, kept)
        outcome = "stored" if kept.stored else "refused"
        yield f"the store has a change of {one.leader}: {outcome}", after


def put(state: State, leadership: Leadership) -> None:
    """Store it, as the next revision."""
    state.meta = replace(leadership, revision=state.meta.revision + 1)


# ── the controller ───────────────────────────────────────────────────────────────────────────


def controlling(state: State, rules: Rules) -> Iterator[Step]:
    """Fail over; or change the leader for no need; or the topic's min_isr."""
    meta = state.meta
    found = election.fail_over(meta, state.need, alive=state.alive, may_lead=state.alive)
    if found is not None and rules.bug == "doubts end by name" and found.leader != meta.leader:
        found = replace(found, doubted=())
    if found is not None and found.leader_epoch <= rules.epochs:
        after = state.fork()
        put(after, found)
        yield f"failover: {found.leader} leads, isr {found.isr}, elr {found.elr}", after
    yield from recovering(state, rules)
    if state.budget.moves and meta.leader_epoch < rules.epochs:
        for name in meta.isr:
            moved = election.prefer(meta, name, may_lead=state.alive)
            if moved is not None:
                after = state.fork()
                put(after, moved)
                spend(after, moves=1)
                yield f"{name} is made the leader", after
    moved = reassignment.step(meta, state.target, alive=state.alive, may_lead=state.alive)
    if moved is not None and moved.leader_epoch <= rules.epochs:
        after = state.fork()
        if rules.bug == "same epoch without it":
            moved = replace(moved, leader_epoch=meta.leader_epoch)
        put(after, moved)
        yield f"replicas are {moved.replicas}, isr {moved.isr}", after
    if state.budget.targets:
        for target in TARGETS:
            if target != state.target:
                after = state.fork()
                after.target = target
                spend(after, targets=1)
                yield f"replicas shall be {target}", after
    if state.budget.lowered:
        after = state.fork()
        after.need -= 1
        spend(after, lowered=1)
        yield "min_isr is lowered", after


def recovering(state: State, rules: Rules) -> Iterator[Step]:
    """Nobody holds all for sure: who is doubted tells what it has, and whoever has most leads."""
    meta = state.meta
    for one in meta.doubted:
        node = state.node(one.broker_id)
        if node.up:
            held = (node.epochs[-1].epoch if node.epochs else 0, len(node.log), True)
            told = election.told(meta, node.name, held)
            if told is not None:
                after = state.fork()
                put(after, told)
                yield f"{node.name} tells what it has", after
    least = election.least_lost(meta, alive=state.alive, may_lead=state.alive)
    if least is not None and least.leader_epoch <= rules.epochs:
        after = state.fork()
        put(after, least)
        yield f"{least.leader} has most, and leads", after


# ── bad luck ─────────────────────────────────────────────────────────────────────────────────


def losing(state: State, rules: Rules) -> Iterator[Step]:
    """A broker removes its copy: because it is of no use, or as the store says."""
    for node in state.nodes:
        if not node.up:
            continue
        if node.name not in state.meta.replicas and node.log:
            yield f"{node.name} removes its copy", emptied(state, node.name)
        if state.budget.losses and not node.replica.leading:
            give_up = election.given_up
            if rules.bug == "same epoch with another":
                give_up = election.restarted_unclean
            left = give_up(state.meta, node.name)
            if left is not None and left.leader_epoch <= rules.epochs:
                after = emptied(state, node.name)
                put(after, left)
                spend(after, losses=1)
                yield f"{node.name} gives its copy up", after


def emptied(state: State, name: str) -> State:
    after = state.fork()
    node = after.own(name)
    node.log, node.flushed, node.epochs, node.known = (), 0, (), (None, 0)
    node.replica.follow(Leadership(None, 0, ()))
    node.replica.high_watermark = 0
    return after


def failing(state: State, rules: Rules) -> Iterator[Step]:
    for name in BROKERS:
        node = state.node(name)
        if node.up:
            if state.budget.crashes:
                yield f"{name} crashes", crash(state, name, rules, keep=len(node.log))
                if node.flushed < len(node.log):
                    lossy = crash(state, name, rules, keep=node.flushed)
                    yield f"{name} crashes and loses", lossy
            if state.budget.kills:
                after = crash(state, name, rules, keep=len(node.log))
                spend(after, crashes=-1, kills=1)
                yield f"{name} is killed", after
            if state.budget.wipes:
                after = crash(state, name, rules, keep=0)
                after.own(name).hurt = True
                spend(after, crashes=-1, wipes=1)
                yield f"{name} crashes, its disk is lost", after
        else:
            started = start(state, name, rules)
            if started is not None:
                yield f"{name} starts", started
        if state.alive(name):
            if not node.up or state.budget.expiries:
                after = state.fork()
                after.register(name, 0)
                if node.up:
                    spend(after, expiries=1)
                yield f"the lease of {name} ends", after
        elif node.up:
            after = state.fork()
            own = after.own(name)
            own.broker_epoch += 1
            after.register(name, own.broker_epoch)
            yield f"{name} registers again", after


def crash(state: State, name: str, rules: Rules, *, keep: int) -> State:
    """The process is gone, and of its log what was not kept."""
    after = state.fork()
    node = after.own(name)
    node.up = False
    node.replica.follow(Leadership(None, 0, ()))
    node.replica.high_watermark = 0
    node.known = (None, 0)
    node.hurt = rules.durability != "fsync"  # nobody knows what it lost
    if keep < len(node.log):
        history = node.history
        history.truncate_to(keep)
        node.log, node.epochs = node.log[:keep], tuple(history.entries)
        node.flushed = min(node.flushed, keep)
    after.changes = tuple(
        one._replace(awaited=False) if one.leader == name else one
        for one in state.changes
        if one.leader != name or not (one.stored or one.refused)
    )
    spend(after, crashes=1)
    return after


def start(state: State, name: str, rules: Rules) -> State | None:
    """A new life: out of every set if data is lost (R7), a new epoch if it leads; registered."""
    after = state.fork()
    node = after.own(name)
    changed: Leadership | None = None
    if node.hurt and rules.bug != "wiped stays":
        lost = election.wiped if rules.durability == "fsync" else election.restarted_unclean
        changed = lost(state.meta, name)
    if rules.bug != "same epoch":
        changed = election.restarted(changed or state.meta, name) or changed
    if changed is not None:
        if changed.leader_epoch > rules.epochs:
            return None
        put(after, changed)
    node.up, node.hurt = True, False
    node.life += 1
    node.flushed = len(node.log)  # what recovery found is synced before it serves
    node.broker_epoch += 1
    after.register(name, node.broker_epoch)
    return after
