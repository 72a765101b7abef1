"""A hub's life: its rooms are opened, run, and ended in order.

`composition` builds the rooms. `open_hub` has them without starting anything that talks; `serve` adds the broker, the
link, the tickers and the API. Called by `cli`.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import msgspec
from aiohttp import web

from cloud_hub.api.app import application
from cloud_hub.api.gate import Gate
from cloud_hub.api.table import EVERY_ROUTE
from cloud_hub.broker import device_address
from cloud_hub.clock import Clock, system_clock
from cloud_hub.composition import Ground, compose
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Conflict, Unavailable
from cloud_hub.hardening import check_private
from cloud_hub.limits import Rate
from cloud_hub.link import HubLink
from cloud_hub.oidc import Provider
from cloud_hub.patches.build import Builder
from cloud_hub.patches.wishes import Wishes
from cloud_hub.replicas.joining import ensure_client
from cloud_hub.retention import Retention
from cloud_hub.rooms import Rooms
from cloud_hub.store.address import database_url
from cloud_hub.store.engine import Store
from cloud_hub.trust.expiry import ExpiryWatch
from firmware_profiles.catalog import CatalogError, load
from firmware_profiles.profile import DeviceProfile

TICK_S: Final = 1.0
RENEW_S: Final = 60.0
START_DEADLINE_S: Final = 15.0
API_STOP_S: Final = 5.0
BURST_S: Final = 10.0
log = logging.getLogger(__name__)


class Ready(msgspec.Struct, frozen=True):
    """Where a hub that is up can be reached."""

    api: str
    broker: str


@asynccontextmanager
async def open_hub(paths: HubPaths, clock: Clock = system_clock, broker: str = "") -> AsyncIterator[Rooms]:
    """All rooms over one database. Nothing listens and nothing connects yet.

    `broker` is the address of a broker to use in place of the configured one. Raises NotFound `hub-not-found`,
    BadRequest `config-invalid` or `profiles-invalid`.
    """
    config = _with_broker(HubConfig.load(paths.root), broker)
    catalog = _catalog(config)
    store = await Store.open(database_url(config, paths))
    try:
        ground = Ground.of(config, paths, store, catalog, clock)
        try:
            yield compose(ground)
        finally:
            await ground.blobs.close()
            await ground.tensors.close()
    finally:
        await store.close()


async def serve(
    paths: HubPaths,
    until_stopped: Callable[[], Awaitable[object]],
    on_ready: Callable[[Ready], None],
    broker: str = "",
    start_deadline_s: float = START_DEADLINE_S,
) -> None:
    """Runs the hub until `until_stopped` returns, then ends it in order, each part within its own deadline.

    `broker` as for `open_hub`; the broker and the link to it have `start_deadline_s` each. Raises Conflict
    `hub-running` when another process serves this directory, Unavailable when broker or API cannot be started.
    """
    check_private(paths)
    with only_one(paths):
        async with AsyncExitStack() as parts:
            rooms = await parts.enter_async_context(open_hub(paths, broker=broker))
            await rooms.blobs.clean()
            await rooms.tensors.clean()
            ensure_client(rooms.paths, rooms.config)
            await rooms.revocations.tick()  # the broker does not start without a revocation list
            await parts.enter_async_context(rooms.broker)
            await rooms.broker.ready(start_deadline_s)
            await parts.enter_async_context(rooms.alerts)
            await parts.enter_async_context(rooms.link)
            await parts.enter_async_context(_beside(rooms.presence.run(), "presence"))
            await parts.enter_async_context(_beside(rooms.ringing.run(), "doorbells"))
            await parts.enter_async_context(_beside(_ticking(rooms.revocations.tick, "revocation list"), "revocations"))
            await parts.enter_async_context(_beside(rooms.labels.watch.keep_watching(), "labels"))
            if rooms.mirror is not None:
                rooms.mirror.open()
                await parts.enter_async_context(_beside(rooms.mirror.run(), "mirror"))
            await parts.enter_async_context(_beside(rooms.replica.here.keep(), "replica"))
            await parts.enter_async_context(_beside(rooms.replica.lease.keep(), "lease"))
            for name, work in _works_of_one(rooms):
                await parts.enter_async_context(_beside(rooms.replica.lease.run(work, name), name))
            await parts.enter_async_context(rooms.operations)
            await parts.enter_async_context(_listening(rooms))
            await _connected(rooms.link, start_deadline_s)
            address = device_address(rooms.config)
            on_ready(Ready(rooms.config.api_url, f"mqtts://{address.host}:{address.port}"))
            await until_stopped()
            log.info("stopping")


def _with_broker(config: HubConfig, broker: str) -> HubConfig:
    try:
        return msgspec.structs.replace(config, broker=broker) if broker else config
    except ValueError as error:
        raise BadRequest("config-invalid", str(error)) from error


def _catalog(config: HubConfig) -> dict[str, DeviceProfile]:
    try:
        return load(config.profiles_folder)
    except (CatalogError, OSError) as error:
        raise BadRequest("profiles-invalid", f"device profiles in {config.profiles}: {error}") from error


def retention(rooms: Rooms) -> Retention:
    """What removes old data from these rooms."""
    return Retention(rooms.config, rooms.store, rooms.blobs, rooms.events, rooms.clock)


def _builder(rooms: Rooms) -> Builder:
    settings = rooms.config.patches
    wishes = Wishes(rooms.store, rooms.blobs, settings)
    catalog, work = _catalog(rooms.config), rooms.paths.patch_work
    return Builder(rooms.store, rooms.blobs, wishes, settings, catalog, work, rooms.clock)


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    """Work without an end goes on inside."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=API_STOP_S)


def _works_of_one(rooms: Rooms) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
    """What only one process of a hub may do, by name; each goes on without an end."""
    works: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("rollouts", lambda: _ticking(rooms.rollouts.tick, "rollouts")),
        ("retention", lambda: retention(rooms).keep_sweeping()),
        ("renewal", lambda: _renew(rooms)),
        ("commands", rooms.asking.commands.run),
        ("sample-blobs", rooms.asking.blobs.run),
        ("gates", rooms.gates.run),
        ("patches", lambda: _builder(rooms).keep_building()),
        ("outward", rooms.outward.run),
        ("retraining", rooms.retraining.work),
    ]
    if not rooms.replica.lease.alone:
        works.append(("retained", rooms.replica.rereading.run))
    return works


async def _ticking(tick: Callable[[], Awaitable[object]], what: str) -> None:
    """Looks at what is due, once a second."""
    while True:
        try:
            await tick()
        except Exception:
            # The next tick finds the same work.
            log.exception("%s could not be seen to; trying again in %s s", what, TICK_S)
        await asyncio.sleep(TICK_S)


def gate(rooms: Rooms) -> Gate:
    """What stands before the API, as the settings say."""
    config = rooms.config
    return Gate(
        rooms.store,
        rooms.events,
        rooms.clock,
        Provider(config.oidc, rooms.clock) if config.oidc.issuer else None,
        Rate(config.requests_per_s, BURST_S * config.requests_per_s),
        Rate(config.strangers_per_s, BURST_S * config.strangers_per_s),
        rooms.capabilities.allows,
    )


async def _renew(rooms: Rooms) -> None:
    """Signatures that the hub gives by itself are renewed ahead of time, and the end of others is announced."""
    watch = ExpiryWatch(rooms.store, rooms.events, rooms.clock)
    while True:
        try:
            await rooms.image.renew()
            while await rooms.director.renew():
                pass
            await watch.check()
        except Exception:
            # Devices that ask are signed for all the same; half of a signature's life is left to try again.
            log.exception("signatures could not be renewed; trying again in %s s", RENEW_S)
        await asyncio.sleep(RENEW_S)


@asynccontextmanager
async def _listening(rooms: Rooms) -> AsyncIterator[None]:
    """The API over TLS. At the end new connections are refused first, then requests under way get a moment."""
    runner = web.AppRunner(
        application(rooms, EVERY_ROUTE, gate(rooms), rooms.metrics.meters), access_log=None, shutdown_timeout=API_STOP_S
    )
    await runner.setup()
    host, port = rooms.config.api_host, rooms.config.api_port
    try:
        await web.TCPSite(runner, host, port, ssl_context=_server_context(rooms.paths)).start()
    except OSError as error:
        await runner.cleanup()
        raise Unavailable(
            "api-not-started", f"API at {host}:{port}: {error.strerror or error}; is another program listening there?"
        ) from error
    try:
        yield
    finally:
        await runner.cleanup()


def _server_context(paths: HubPaths) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(paths.server_crt, paths.server_key)
    return context


async def _connected(link: HubLink, deadline_s: float) -> None:
    try:
        await asyncio.wait_for(link.connected.wait(), deadline_s)
    except TimeoutError as error:
        raise Unavailable(
            "link-not-connected", f"the hub was not connected to its broker after {deadline_s:.0f} s"
        ) from error


@contextmanager
def only_one(paths: HubPaths) -> Iterator[None]:
    """Two processes on one directory would each answer half of the devices. The lock ends with the process."""
    if not paths.config.is_file():
        HubConfig.load(paths.root)  # says what is missing
    with (paths.root / "hub.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("hub-running", f"another process serves {paths.root}; stop that one first") from error
        yield
