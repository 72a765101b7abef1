"""The composition root of the agent: builds every room once, runs the units, and stops them in stages.

Start: the store, then the committed modules (no network needed), then the units. Stop (SIGTERM, SIGINT): no more
updates, drain the workers, write down what they said last, then let go of the hub. Called by `agent.cli`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from agent import __version__, reserve
from agent.asked.room import commands as asked_commands
from agent.clones import CloneWatch
from agent.commands import Commands
from agent.config import AgentConfig, StatePaths
from agent.containers.runtime import Containers
from agent.errors import AgentError, ConfigError
from agent.files import sweep
from agent.identity import Credentials, settle
from agent.installed import AGENT, PROCESS, of_kind
from agent.link import Link, LinkStatus
from agent.logs import keeping
from agent.metrics.page import Facts
from agent.metrics.process import this_process
from agent.metrics.server import MetricsServer
from agent.news import News
from agent.offline.fetcher import FolderFetcher
from agent.offline.install import Installer
from agent.offline.source import FolderSource
from agent.outbox import Outbox
from agent.patching import PATCH_UID, rebuild
from agent.privacy import Accounts
from agent.probe.device import described
from agent.probe.vitals import vitals
from agent.release.environment import Environments
from agent.release.kind import AgentReleases
from agent.renew import Renewal
from agent.report import Reporter, Status, write_status
from agent.runtimes.heat import Heat, Warmth
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.users import first_uid
from agent.sampling.spending import Spending
from agent.sandbox.cage import Cages, Possible
from agent.slots import Slots
from agent.status import LOCK_FILE
from agent.store import SCHEMA_VERSION, AgentStore
from agent.supervise import Supervisor, Unit
from agent.transfer.fetch import Fetcher
from agent.transfer.transports import Transports
from agent.trust import Verifier, build_trust
from agent.update.attacks import Attacks
from agent.update.bell import Bell
from agent.update.engine import Engine
from agent.update.kinds import Kinds
from agent.update.processes import Processes
from agent.update.record import Ledger
from agent.update.steps import Steps
from modules.messages import DeviceReport, Doorbell
from modules.vitals import Vitals

LEAVE_S = 5.0  # for each stage of the stop after the workers' own drain
RESTART = 75  # exit status (EX_TEMPFAIL): another release of the agent shall take over
CRASH_AT = "MOORING_CRASH_AT"  # tests of power cuts only, see agent.update.engine

_logger = logging.getLogger(__name__)


class AlreadyRunning(AgentError):
    """Another agent holds this state directory."""

    key = "already-running"


@dataclass(frozen=True)
class Rooms:
    """Everything the service starts and stops."""

    link: Link
    outbox: Outbox
    keeper: Keeper
    engine: Engine
    reporter: Reporter
    verifier: Verifier
    fetcher: Fetcher
    renewal: Renewal
    clones: CloneWatch
    releases: AgentReleases
    installer: Installer
    transports: Transports
    containers: Containers
    heat: Heat
    accounts: Accounts
    spending: Spending
    commands: Commands
    metrics: MetricsServer


async def run(config: AgentConfig, paths: StatePaths) -> int:
    """Until SIGTERM or SIGINT, or until another release shall take over. Returns the exit status.

    Raises AgentError when it cannot start.
    """
    identity = settle(paths)
    if identity.device != config.device:
        raise ConfigError(
            f"{paths.config}: expected device {identity.device} as in the certificate, got {config.device}"
        )
    _make_folders(paths)
    stop, restart = asyncio.Event(), asyncio.Event()

    def make_way() -> None:
        restart.set()
        stop.set()

    with _only_agent(paths), _signals(stop), keeping(paths.logs, config.commands.log_bytes):
        sweep((paths.root, paths.identity, paths.next, paths.roots, paths.metadata, *paths.metadata.glob("*/")))
        reserve.give_back(paths.root)
        async with AgentStore(paths.database) as store:
            cages = await Cages.find(config.serving, first_uid(config.serving))
            config = with_today(config, cages.possible)
            rooms = await _build(config, paths, Credentials(identity), store, cages, make_way)
            await rooms.keeper.start(of_kind(await rooms.engine.open(), PROCESS))
            rooms.installer.open()
            await _serve(rooms, config, stop)
    return RESTART if restart.is_set() else 0


def with_today(config: AgentConfig, possible: Possible) -> AgentConfig:
    """The profile as it is today: enrolment knew another agent perhaps, and another kernel. What modules may require
    of the hardware stays as it was enrolled.
    """
    _logger.info(
        "confinement",
        extra={"level": possible.level.value, "by": possible.words, "not_higher": possible.why_not_higher},
    )
    profile = msgspec.structs.replace(described(config.profile), confinement=possible.level.value)
    return msgspec.structs.replace(config, profile=profile)


async def _build(
    config: AgentConfig,
    paths: StatePaths,
    credentials: Credentials,
    store: AgentStore,
    cages: Cages,
    make_way: Callable[[], None],
) -> Rooms:
    boot = secrets.token_hex(8)
    link = Link(config.device, config.mqtt_host, config.mqtt_port, credentials.tls, config.link, boot=boot)
    outbox = Outbox(store, link, config.device, config.outbox)
    await outbox.open()
    slots, ledger, attacks = Slots(paths.slots, paths.staging), Ledger(store), Attacks(store)
    verifier = Verifier(build_trust(paths, config.device, config.profile.name, time.time), link)

    def changed() -> None:
        reporter.changed()

    def damaged() -> None:
        bell.ask()

    def compose() -> DeviceReport:
        report = _report(config, ledger, keeper, engine, attacks, outbox)
        modules = (*report.modules, *releases.reports(of_kind(engine.serving, AGENT)))
        warmth = heat.warmth.name.lower() if heat.warmth is not Warmth.COOL else ""
        return msgspec.structs.replace(report, boot=boot, modules=modules, heat=warmth, privacy=accounts.spent())

    news = News(outbox.offer)
    accounts = Accounts(store, outbox.offer, lambda name: keeper.policy(name))
    await accounts.open()
    spending = Spending(store)
    await spending.open()
    containers = Containers(paths.root / "containers", config.containers, accounts.offer)
    runtime = ProcessRuntime(
        paths,
        config.serving,
        store,
        slots,
        accounts.offer,
        cages,
        containers,
        providers=config.profile.providers,
        spending=spending,
    )
    keeper = Keeper(runtime, config.serving, changed, news.tell, damaged)
    heat = Heat(config.heat, keeper.endure, news.tell)
    folder = FolderSource(config.device)
    transports = Transports(config, paths, link, slots.find, news.tell)
    fetcher = FolderFetcher(
        folder,
        link,
        paths.staging,
        config.fetch,
        slots.find,
        library=slots.files,
        sources=transports.sources,
        offering=transports.offering,
        rebuild=partial(rebuild, uid=PATCH_UID if first_uid(config.serving) else 0),
        gate=transports.gate,
    )
    environments = Environments(paths.root, SCHEMA_VERSION)
    releases = AgentReleases(paths.root, environments, slots, link.connected, make_way)
    kinds = Kinds({PROCESS: Processes(keeper, slots, config.update), AGENT: releases})
    steps = Steps(config, paths, verifier, fetcher, slots, kinds, runtime.tidy)
    reachable = asyncio.Event()
    bell = Bell(config.update, reachable)
    engine = Engine(ledger, steps, attacks, bell, config.update, changed, os.environ.get(CRASH_AT, ""), news.tell)
    status = _StatusFile(paths.status, link, outbox, fetcher.traffic.totals)

    def write_status(report: DeviceReport) -> None:
        reserve.keep(paths.root)
        status.write(report)

    def gather() -> Vitals:
        return vitals(paths.root, link.quality.now())

    reporter = Reporter(credentials, store, link, config.report, compose, write_status, gather)

    def on_doorbell(doorbell: Doorbell) -> None:
        bell.ring(doorbell.director_version)

    def on_change(_: LinkStatus) -> None:
        installer.reach()
        reporter.changed()

    async def suspect(key: str, text: str) -> None:
        await attacks.add(key, text)
        changed()

    def held(sha256: str) -> bool:
        return fetcher.path(sha256).exists() or slots.find(sha256) is not None

    installer = Installer(
        config.device, paths.root, folder, verifier, ledger, bell, attacks, link.connected, reachable, held
    )
    clones = CloneWatch(suspect)
    renewal = Renewal(config, paths, credentials, link, changed, crash_at=os.environ.get(CRASH_AT, ""))
    link.on_takeover(clones.taken_over)
    link.on_doorbell(on_doorbell)
    commands = asked_commands(
        config, paths, store, outbox, keeper, engine, slots, fetcher, make_way, os.environ.get(CRASH_AT, "")
    )
    link.on_command(commands.hear)
    link.on_change(on_change)
    metrics = MetricsServer(
        config.metrics,
        lambda: Facts(
            compose(), link.status, link.session, outbox.waiting(), outbox.waiting_bytes(), fetcher.traffic.totals(),
            keeper.stats(), this_process(),
        ),
    )  # fmt: skip
    return Rooms(
        link, outbox, keeper, engine, reporter, verifier, fetcher, renewal, clones, releases, installer, transports,
        containers, heat, accounts, spending, commands, metrics,
    )  # fmt: skip


async def _serve(rooms: Rooms, config: AgentConfig, stop: asyncio.Event) -> None:
    """Two groups of units, because what talks to the hub must outlive what the workers have to say at their end."""
    updates = Supervisor([Unit("update", rooms.engine.run), Unit("offline", rooms.installer.run)], drain_s=LEAVE_S)
    others = Supervisor(
        [
            Unit("link", rooms.link.run),
            Unit("outbox", rooms.outbox.run),
            Unit("privacy", rooms.accounts.run),
            Unit("report", rooms.reporter.run),
            Unit("renewal", rooms.renewal.run),
            Unit("clones", rooms.clones.run),
            Unit("release", rooms.releases.run),
            Unit("heat", rooms.heat.run),
            Unit("quotas", rooms.spending.run),
            Unit("commands", rooms.commands.run),
            *([Unit("metrics", rooms.metrics.run)] if config.metrics.listen else []),
            *([Unit("gateway", rooms.transports.gateway.run)] if rooms.transports.gateway else []),
        ],
        drain_s=LEAVE_S,
    )
    leave = asyncio.Event()
    updating = asyncio.create_task(updates.run(stop), name="updates")
    talking = asyncio.create_task(others.run(leave), name="others")
    try:
        await asyncio.wait({updating, talking}, return_when=asyncio.FIRST_COMPLETED)
        _logger.info("stopping: draining workers")
        stop.set()
        await asyncio.wait({updating}, timeout=2 * LEAVE_S)
        await _within("drain", config.serving.drain_s + LEAVE_S, rooms.keeper.close())
        await _within("containers", 2 * LEAVE_S, rooms.containers.close())
        await _within("privacy", LEAVE_S, rooms.accounts.flush())
        await _within("flush", LEAVE_S, rooms.outbox.flush())
        await _within("quotas", LEAVE_S, rooms.spending.keep())
    finally:
        stop.set()
        leave.set()
        await asyncio.wait({updating, talking}, timeout=2 * LEAVE_S)
        rooms.verifier.close()
        rooms.fetcher.close()
        rooms.transports.close()
        rooms.installer.close()


class _StatusFile:
    """Writes `status.json` when there is something new to say."""

    def __init__(self, path: Path, link: Link, outbox: Outbox, traffic: Callable[[], dict[str, int]]) -> None:
        self._path = path
        self._link = link
        self._outbox = outbox
        self._traffic = traffic
        self._said: tuple[object, ...] = ()

    def write(self, report: DeviceReport) -> None:
        waiting = self._outbox.waiting()
        traffic = self._traffic()
        said = (msgspec.structs.replace(report, at=0.0), self._link.status, waiting, traffic)
        if said == self._said:
            return
        try:
            write_status(self._path, Status(report, self._link.status, waiting, os.getpid(), time.time(), traffic))
            self._said = said
        except OSError as error:
            _logger.warning("status file not written", extra={"why": str(error)})


def _report(
    config: AgentConfig, ledger: Ledger, keeper: Keeper, engine: Engine, attacks: Attacks, outbox: Outbox
) -> DeviceReport:
    record = ledger.record
    return DeviceReport(
        device=config.device,
        counter=0,
        at=0.0,
        agent_version=__version__,
        profile=config.profile,
        director_version=record.director_version,
        image_version=record.image_version,
        modules=keeper.reports(),
        current=engine.current(),
        last=ledger.last,
        attacks=attacks.all(),
        dropped=outbox.dropped(),
        dropped_why=outbox.dropped_why(),
    )


def _make_folders(paths: StatePaths) -> None:
    """Whoever runs a module, or asks one, needs to pass through the folders that are theirs; the rest stays closed."""
    for path, mode in (
        (paths.root, 0o711),
        (paths.metadata, 0o700),
        (paths.staging, 0o700),
        (paths.slots, 0o711),
        (paths.endpoints, 0o755),
        (paths.logs, 0o700),
    ):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)


@contextlib.contextmanager
def _only_agent(paths: StatePaths) -> Iterator[None]:
    """Held until the process ends, however it ends."""
    handle = os.open(paths.root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"{paths.root}: another agent runs with this state directory") from error
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for the staged stop; a second one changes nothing, the stages have their deadlines."""
    loop = asyncio.get_running_loop()
    names = (signal.SIGTERM, signal.SIGINT)
    for name in names:
        loop.add_signal_handler(name, stop.set)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)


async def _within(what: str, deadline_s: float, work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(deadline_s):
            await work
    except (TimeoutError, AgentError) as error:
        _logger.warning("stop stage not finished, going on", extra={"stage": what, "why": str(error)})
