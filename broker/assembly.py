"""The parts of one broker, put together; nothing runs yet. ``server.py`` starts and stops them."""

from collections.abc import Callable
from typing import NamedTuple

from tailrace.broker.appender import Appender
from tailrace.broker.cleaner import Cleaner
from tailrace.broker.clock import Timekeeper
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.config import Config
from tailrace.broker.controller import Controller
from tailrace.broker.coordinator import Coordinator
from tailrace.broker.dialling import Dialler
from tailrace.broker.distant import Distant
from tailrace.broker.eraser import Eraser
from tailrace.broker.erasures import Erasures
from tailrace.broker.flusher import Flusher
from tailrace.broker.health import Health
from tailrace.broker.janitor import Janitor
from tailrace.broker.keeper import Keeper
from tailrace.broker.lag_report import LagReport
from tailrace.broker.latest import Latest
from tailrace.broker.limits import Admission, MemoryBudget
from tailrace.broker.metrics import Metrics
from tailrace.broker.node import Node, Outbox, State
from tailrace.broker.peer import Peers
from tailrace.broker.producer_ids import ProducerIds
from tailrace.broker.registry import Registry
from tailrace.broker.security import Credentials
from tailrace.broker.session import Session
from tailrace.broker.shelf import Shelf
from tailrace.broker.space import Budget, Room, Space
from tailrace.broker.timers import Timers
from tailrace.broker.topics import Topics
from tailrace.broker.views import Views
from tailrace.broker.watcher import Watcher
from tailrace.broker.world import World
from tailrace.protocol.errors import BrokerError
from tailrace.protocol.version import SOFTWARE
from tailrace.storage.ballast import Ballast
from tailrace.storage.directory import DataDirectory


class Parts(NamedTuple):
    """A broker, and those of its tasks that nobody asks anything."""

    node: Node
    janitor: Janitor
    eraser: Eraser
    watcher: Watcher
    controller: Controller


def assemble(
    world: World,
    config: Config,
    metrics: Metrics,
    health: Health,
    directory: DataDirectory,
    registry: Registry,
    session: Session,
    *,
    credentials: Credentials,
    http: str | None,
    began: float,
    state: Callable[[], State],
    storage_failed: Callable[[BrokerError], None],
    look_soon: Callable[[], None],
) -> Parts:
    """``look_soon`` lets the housekeeping look at once: topics have changed."""
    me, limits, outbox, timers = config.broker.id, config.limits, Outbox(), Timers()
    ballast = Ballast(world.disk, directory.path, world.ballast_bytes_max)
    time = Timekeeper(world.clock, world.disk, directory.clock_path)
    shelf = _shelf(world, config, metrics, health, directory, time, ballast)
    flusher, appender = _writers(world, config, directory, metrics, outbox, storage_failed)
    erasures, views = Erasures(registry, me, time.age_ms), Views(registry)
    latest = Latest(views, lambda: shelf.catalog)
    keeper = Keeper(config, registry, shelf, flusher, erasures, metrics)
    topics = Topics(world, config, registry, views, keeper, shelf, flusher)
    groups = Coordinator(
        *(world, config, topics, shelf, appender, timers, metrics),
        syncing=lambda: flusher.busy,
        flush=outbox.flush,
        valid=session.valid,
        refresh=latest.read,
    )
    peers = _peers(world, config, directory, credentials)
    watcher = _watcher(world, config, shelf, time, groups, views, peers)
    node = Node(
        world=world,
        config=config,
        metrics=metrics,
        broker_id=me,
        cluster_id=directory.cluster_id,
        registry=registry,
        session=session,
        views=views,
        keeper=keeper,
        latest=latest,
        peers=peers,
        software=SOFTWARE,
        shelf=shelf,
        topics=topics,
        erasures=erasures,
        groups=groups,
        lag=LagReport(watcher, world.clock, config.broker.id),
        producer_ids=ProducerIds(registry),
        appender=appender,
        flusher=flusher,
        cleaner=Cleaner(world, shelf, flusher, time, metrics, config.storage),
        timers=timers,
        outbox=outbox,
        memory=MemoryBudget(limits.request_memory_bytes),
        admission=Admission(limits.connections, limits.connections_per_ip),
        state=state,
        health=health,
        http=http,
        started_at=began,
        time=time,
    )
    janitor = Janitor(*(world, directory.path, ballast, shelf, flusher, time, health, metrics))
    _connect(node, janitor, look_soon)
    return Parts(node, janitor, _eraser(node), watcher, _controller(node))


def _peers(
    world: World, config: Config, directory: DataDirectory, credentials: Credentials
) -> Peers:
    dialler = Dialler(
        *(world, config.broker.id, directory.cluster_id, credentials),
        listener=config.cluster.peer_listener,
    )
    return Peers(dialler.dial)


def _watcher(
    world: World,
    config: Config,
    shelf: Shelf,
    time: Timekeeper,
    groups: Coordinator,
    views: Views,
    peers: Peers,
) -> Watcher:
    distant = Distant(shelf, views, peers, config.broker.id, config.cluster.peer_listener)
    window_s = config.group.verdict_window_s
    return Watcher(world, shelf, time, groups.all, distant, window_s=window_s)


def _eraser(node: Node) -> Eraser:
    return Eraser(
        *(node.world, node.shelf, node.flusher, node.erasures),
        rate_bytes=node.config.storage.cleaner_rate_bytes,
        replicas=node.replicas_of,
    )


def _controller(node: Node) -> Controller:
    return Controller(
        *(node.broker_id, node.registry, node.session, node.views, node.metrics),
        lambda topic: node.topics.config_of(topic).min_isr,
    )


def _shelf(
    world: World,
    config: Config,
    metrics: Metrics,
    health: Health,
    directory: DataDirectory,
    time: Timekeeper,
    ballast: Ballast,
) -> Shelf:
    budget = Budget(
        config.storage.min_free,
        config.values["storage.min_free"].text,
        config.storage.max_size_bytes,
    )
    room = Room(*world.disk.usage(directory.path), 0)
    return Shelf(
        *(world, directory, metrics, health, config.broker.id),
        verify=config.storage.verify_on_start,
        space=Space(budget, room, ballast.size_bytes),
        now_ms=time.now_ms,
    )


def _writers(
    world: World,
    config: Config,
    directory: DataDirectory,
    metrics: Metrics,
    outbox: Outbox,
    failed: Callable[[BrokerError], None],
) -> tuple[Flusher, Appender]:
    flusher = Flusher(
        *(world.disk, directory.path, world.offload.dedicated("sync"), world.clock, metrics),
        answered=outbox.flush,
        failed=failed,
        sync_interval_s=config.storage.sync_interval_s,
    )
    appender = Appender(
        *(world.clock, flusher, metrics),
        maybe=world.maybe,
        answered=outbox.flush,
        failed=failed,
    )
    return flusher, appender


def _connect(node: Node, janitor: Janitor, look_soon: Callable[[], None]) -> None:
    """Who is told of changes, and where scrapes and probes find what they show."""

    def topics_changed() -> None:
        node.groups.topics_changed()
        look_soon()

    def round_over() -> None:
        node.groups.write()
        node.appender.round()

    def session_seen(view: ClusterView) -> None:
        registered = view.brokers.get(node.broker_id)
        node.session.doubt(None if registered is None else registered.epoch)

    def view_seen(view: ClusterView) -> None:
        node.sightings.look(view.brokers, node.world.clock.wall_ms())

    def caught_up() -> None:
        node.groups.leads_changed()  # a lead that is gone is answered for no more
        node.session.stepped_back()

    def view_followed(view: ClusterView) -> None:
        node.groups.leads_changed()
        node.outbox.flush()

    node.views.keeper = node.keeper.follow
    node.views.on_view.append(view_seen)
    node.views.on_followed.append(view_followed)
    node.views.on_view.append(session_seen)
    node.registry.stored = node.views.note
    node.session.on_registered = node.views.catch_up
    node.views.on_caught_up = caught_up
    node.keeper.stepped_back = node.views.stepped_back
    node.keeper.changed = topics_changed
    node.keeper.answered = node.outbox.flush
    node.keeper.again = node.views.follow_again
    node.shelf.view = lambda: node.views.view
    node.shelf.on_failed = node.views.follow_again
    node.flusher.after_round = round_over
    janitor.room.open_wanting = node.topics.open_wanting
    node.metrics.partitions = node.shelf.gauges
    node.metrics.groups = node.lag.gauges
    node.metrics.group_exists = node.groups.has
    node.metrics.prepare = lambda: node.lag.refresh(node.groups.all())
    node.metrics.erasures_pending.read = lambda: {(): node.erasures.pending_count}
    node.metrics.clock_skew.read = lambda: {(node.broker_id,): node.time.skew_s}
    node.metrics.request_memory.read = lambda: {(): node.memory.used_bytes}
    lease = node.metrics.lease_remaining
    lease.read = lambda: {(): node.session.remaining_s}
    node.health.damage = node.shelf.damage
    node.health.lease_held = node.session.valid
