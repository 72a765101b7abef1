"""Modules as worker processes: the listening sockets that outlive them, and a loaded, self-tested worker on demand.

The agent owns one Unix socket and one loopback TCP socket per module name and lends them to every worker of that
name, so a new worker takes over without a refused connection. The TCP port is kept in the store: it stays the same
over restarts and versions. Called by `agent.runtimes.keeper` and, for spare workers, by `agent.update.steps`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.config import ServingSettings, StatePaths
from agent.containers.options import seen_at
from agent.containers.runtime import Containers
from agent.errors import AgentError, WorkerError
from agent.fpga.circuit import Circuit
from agent.fpga.fabric import Fabric
from agent.installed import Installed
from agent.runtimes.access import Access
from agent.runtimes.caches import Caches
from agent.runtimes.evidence import Evidence
from agent.runtimes.priority import quiet, restore
from agent.sandbox.blackbox import BlackBox
from agent.sandbox.cage import NO_CAGE, Cage, Cages
from agent.sandbox.given import Given
from agent.sandbox.host import OnItem, WorkerProcess, spawn
from agent.sandbox.level import namespaces
from agent.sandbox.nursery import Nursery
from agent.sandbox.protocol import Start
from agent.sandbox.room import room_for, with_places
from agent.sandbox.share import cpus, limited
from agent.slots import Slot, Slots
from agent.sources.allowed import check_allowed, places
from agent.sources.door import Door, Doors
from agent.store import AgentStore
from modules.manifest import SamplingPolicy
from modules.runtime import CPU

BACKLOG = 1024  # what waits while one worker hands over to the next; the kernel may have a lower limit
MAX_LAST_WORDS = 300
MANY = 2  # modules, from which it pays to share the libraries; measured with benchmarks/workers.py
MAX_SOCKET_PATH = 107  # sun_path of Linux, without its end
# CAP_KILL, CAP_SETGID, CAP_SETUID: to give a worker another user, and to be able to end it then.
_SET_IDS = 1 << 5 | 1 << 6 | 1 << 7
# How long a port may still be held by a worker that dies with the agent before this one: the kernel frees its memory
# first, which takes a second for some gigabytes.
PORT_WAIT_S = 10.0
QUIET_SHARE = 0.25  # of its deadline, for which loading yields to those that serve; then a busy device goes on in haste

_logger = logging.getLogger(__name__)


class EndpointError(AgentError):
    """A module's listening socket cannot be made."""

    key = "endpoint"


@dataclass(frozen=True)
class Endpoint:
    """Where one module answers. Bound from the start, refusing connections until `listen`."""

    name: str
    path: Path
    host: str
    port: int
    sockets: tuple[socket.socket, ...]
    fast: socket.socket | None = None  # for clients over shared memory

    @property
    def address(self) -> str:
        """For people and reports: the TCP address where there is one, else the Unix socket."""
        return f"http://{self.host}:{self.port}" if self.port else f"unix:{self.path}"

    @property
    def handles(self) -> tuple[int, ...]:
        return tuple(one.fileno() for one in self.sockets)

    @property
    def fast_handle(self) -> int:
        return -1 if self.fast is None else self.fast.fileno()

    @property
    def inherited(self) -> tuple[int, ...]:
        """All that a worker must have."""
        return self.handles if self.fast is None else (*self.handles, self.fast_handle)

    def listen(self) -> None:
        """Idempotent. From now on connections wait in the backlog until a worker takes them."""
        for one in (*self.sockets, *([self.fast] if self.fast else [])):
            one.listen(BACKLOG)

    def close(self) -> None:
        for one in (*self.sockets, *([self.fast] if self.fast else [])):
            one.close()
        self.path.unlink(missing_ok=True)
        _fast_path(self.path).unlink(missing_ok=True)


class ProcessRuntime:
    """Makes workers. Owns the endpoints until `close`."""

    def __init__(
        self,
        paths: StatePaths,
        settings: ServingSettings,
        store: AgentStore,
        slots: Slots,
        on_item: OnItem,
        cages: Cages | None = None,
        containers: Containers | None = None,
        fabric: Fabric | None = None,
        providers: tuple[str, ...] = (CPU,),
    ) -> None:
        """Without `cages` there is nothing around a worker but what it does itself. `containers` are the caller's.
        Only tests give a `fabric`. `providers` is the device profile's order.
        """
        self._paths = paths
        self._settings = settings
        self._store = store
        self._slots = slots
        self._on_item = on_item
        self._cages = cages or Cages()
        self._containers = containers
        self._providers = providers
        self._caches = Caches(paths.root / "caches", settings.cache_mib)
        self._nursery = Nursery() if settings.preload != "off" else None
        self._fabric = fabric or Fabric(settings.fpga_emulation)
        self._access = Access(paths, settings)
        self._doors = Doors(paths.root / "sources")
        self.evidence = Evidence(paths.evidence)
        self._endpoints: dict[str, Endpoint] = {}
        self._opening = asyncio.Lock()

    async def endpoint(self, name: str) -> Endpoint:
        """The module's endpoint, made on first use. Raises EndpointError."""
        async with self._opening:
            if name not in self._endpoints:
                self._endpoints[name] = await self._open(name)
            return self._endpoints[name]

    def address(self, name: str) -> str:
        """Empty while the module has no endpoint."""
        endpoint = self._endpoints.get(name)
        return endpoint.address if endpoint is not None else ""

    def forget(self, name: str) -> None:
        """Closes the module's endpoint: from now on connections are refused."""
        endpoint = self._endpoints.pop(name, None)
        if endpoint is not None:
            endpoint.close()

    def sweep(self) -> None:
        """Removes the sockets that an agent has left which was killed: nobody answers behind them any more."""
        known = {path for e in self._endpoints.values() for path in (e.path, _fast_path(e.path))}
        for path in self._paths.endpoints.glob("*.sock"):
            if path not in known:
                path.unlink(missing_ok=True)
        self.tidy()

    def tidy(self) -> None:
        """Caches of slots that are gone are removed; containers that a killed agent has left, and images of slots that
        are gone, beside other work.
        """
        self._caches.prune(self._paths.slots)
        if self._containers is not None:
            self._containers.tidy(self._paths.slots)

    def close(self) -> None:
        for name in list(self._endpoints):
            self.forget(name)
        self._doors.close()
        if self._nursery is not None:
            self._nursery.close()

    async def load(self, module: Installed, *, quietly: bool = False) -> WorkerProcess:
        """A worker that has loaded the module and passed its golden inputs, not serving yet; `quietly` where others
        serve meanwhile.

        Raises WorkerError, SlotError, EndpointError; no process is left behind then.
        """
        slot = self._slots.open(module.manifest_sha256)
        endpoint = await self.endpoint(module.name)
        uid = await self._uid(module.name)
        check_allowed(slot.manifest, self._settings.sources)
        cache = await asyncio.to_thread(self._caches.open, slot, uid)
        async with self._fabric.lend(slot.manifest, slot.path) as circuit:
            door = self._doors.open(module.name, slot.manifest.runtime.sources)
            inherited = (*endpoint.inherited, *circuit.handles, *door.handles)
            try:
                worker, cage = await self._spawn(slot, uid, inherited, cache)
            finally:
                door.given()
            self._fabric.used_by(worker, circuit)
        deadline_s = slot.manifest.health.load_deadline_s
        try:
            async with quiet(worker, deadline_s * QUIET_SHARE if quietly else 0.0):
                order = self._order(module, slot, endpoint, uid, cage, circuit, cache, door)
                await worker.start(_with_box(order, worker), deadline_s)
                if slot.manifest.health.golden:
                    await worker.self_test(deadline_s)
        except BaseException:
            await worker.kill()
            raise
        return worker

    def displaces(self, module: Installed) -> bool:
        """Whether the worker under the module's name must end before this one can be loaded. Raises SlotError."""
        slot = self._slots.open(module.manifest_sha256)
        return self._fabric.displaces(slot.manifest, slot.path)

    async def _spawn(
        self, slot: Slot, uid: int, listen: tuple[int, ...], cache: Path | None
    ) -> tuple[WorkerProcess, Cage]:
        """As its manifest says: a process in a cage, or a container."""
        name, resources = slot.manifest.name, slot.manifest.resources
        log = self._log(name)
        if slot.manifest.runtime.container is not None:
            if self._containers is None:
                raise WorkerError(f"module {name}: this agent runs no containers", "engine-absent")
            pinned = cpus(resources, sorted(os.sched_getaffinity(0)), self._settings.pin == "on", capped=True)
            return self._ranked(await self._containers.spawn(slot, uid, listen, log, pinned, cache), slot), NO_CAGE
        room = room_for(
            slot.manifest.requires.accelerators,
            cache,
            self._caches.each_bytes,
            shares_memory=self._settings.shared_memory,
        )
        room = with_places(room, places(slot.manifest.runtime.sources))
        cage = self._cages.around(name, slot.path, uid, resources, room)
        box = BlackBox() if self.evidence.crashes(name) else None
        try:
            inherited = (*listen, *([box.handle] if box is not None else []))
            worker = await spawn(name, inherited, log, self._on_item, cage=cage, nursery=self._forks())
        except BaseException:
            if box is not None:
                box.close()
            raise
        worker.keep(box)
        return self._ranked(worker, slot), cage

    def _forks(self) -> Nursery | None:
        """Who forks the next worker. For a single module, the process that forks costs more memory than it saves."""
        alone = self._settings.preload == "auto" and len(self._endpoints) < MANY
        return None if alone else self._nursery

    def _ranked(self, worker: WorkerProcess, slot: Slot) -> WorkerProcess:
        worker.resources = slot.manifest.resources
        return worker

    def last_words(self, name: str) -> str:
        """The last line that a worker of the module has printed, empty where it has said nothing."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_LAST_WORDS))
                lines = log.read(MAX_LAST_WORDS).decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def recheck(self, module: Installed) -> str:
        """What is wrong with the module's files on the disk, or nothing; a damaged slot is removed, to be made anew."""
        return await asyncio.to_thread(self._slots.recheck, module.manifest_sha256)

    def policy(self, module: Installed) -> SamplingPolicy:
        """The director's word, or else the manifest's own. Raises SlotError."""
        return module.sampling or self._slots.open(module.manifest_sha256).manifest.sampling

    async def serve(self, worker: WorkerProcess) -> None:
        """From now on the worker takes connections of its module's endpoint. Raises WorkerError."""
        await restore(worker)
        (await self.endpoint(worker.name)).listen()
        await worker.serve()

    def _log(self, name: str) -> Path:
        return self._paths.root / "logs" / f"{name}.log"

    def _order(
        self,
        module: Installed,
        slot: Slot,
        endpoint: Endpoint,
        uid: int,
        cage: Cage,
        circuit: Circuit,
        cache: Path | None,
        door: Door,
    ) -> Start:
        return Start(
            slot=seen_at(slot.manifest, slot.path),
            manifest=slot.manifest_bytes,
            sampling=module.sampling or slot.manifest.sampling,  # as in policy(), without reading the slot twice
            listen=endpoint.handles,
            uid=uid,
            confine=self._settings.confine,
            config=msgspec.json.encode(module.config),
            outside=namespaces(),
            around=cage.words,
            floor=self._settings.floor,
            given=self._given(slot, endpoint, cage, circuit, cache, door),
        )

    def _given(
        self, slot: Slot, endpoint: Endpoint, cage: Cage, circuit: Circuit, cache: Path | None, door: Door
    ) -> Given:
        settings = self._settings
        given = Given(
            providers=self._providers,
            cache=str(cache or ""),
            cache_bytes=self._caches.each_bytes if cache else 0,
            circuit=circuit,
            fast=endpoint.fast_handle,
            dial=door.handle,
            places=places(slot.manifest.runtime.sources),
        )
        return limited(
            self._access.given(given),
            slot.manifest.resources,
            settings.pin == "on",
            cage.limits_processors,
            settings.gpu_memory_mib,
        )

    async def _uid(self, name: str) -> int:
        """One user per module name, kept in the store, because process limits count all processes of a user."""
        if not self._settings.uid_first or not self._settings.confine:
            return 0
        async with self._opening:  # two at once would get the same user
            names = await self._store.get("uids", list[str]) or []
            if name not in names:
                names.append(name)
                await self._store.put("uids", names)
        uid = self._settings.uid_first + names.index(name)
        return uid if may_become(uid) else 0

    async def _open(self, name: str) -> Endpoint:
        path = self._paths.endpoints / f"{name}.sock"
        try:
            unix = _bind_unix(path)
            self._access.share(path)
        except OSError as error:
            raise EndpointError(f"endpoint {path}: {error}") from error
        if not self._settings.host:
            return Endpoint(name, path, "", 0, (unix,), _bind_fast(path))
        try:
            tcp = await self._bind_tcp(name)
        except OSError as error:
            unix.close()
            raise EndpointError(f"endpoint of {name} on {self._settings.host}: {error}") from error
        return Endpoint(name, path, self._settings.host, tcp.getsockname()[1], (unix, tcp), _bind_fast(path))

    async def _bind_tcp(self, name: str) -> socket.socket:
        """The port of last time where it is free, else a new one."""
        known = (await self._store.ports()).get(name, 0)
        if known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PORT_WAIT_S):
                    return await _bind_when_free(self._settings.host, known)
            _logger.warning("port taken by somebody else, choosing another", extra={"unit": name, "port": known})
        fresh = _bind(self._settings.host, 0)
        await self._store.put_port(name, fresh.getsockname()[1])
        return fresh


def _with_box(order: Start, worker: WorkerProcess) -> Start:
    if worker.box is None:
        return order
    return msgspec.structs.replace(order, given=msgspec.structs.replace(order.given, black_box=worker.box.handle))


def first_uid(settings: ServingSettings) -> int:
    """The user that a worker becomes here; 0 where it stays the agent's."""
    return settings.uid_first if settings.confine and settings.uid_first and may_become(settings.uid_first) else 0


def may_become(uid: int) -> bool:
    """Whether this process may give a child another user, and end it then, and whether such a user exists here."""
    try:
        status = Path("/proc/self/status").read_text()
        ranges = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return effective & _SET_IDS == _SET_IDS and any(first <= uid < first + count for first, _, count in ranges)


def _fast_path(path: Path) -> Path:
    return path.with_suffix(".fast.sock")  # names of modules have no dot


def _bind_fast(path: Path) -> socket.socket | None:
    """None where there can be no such socket (a path that is too long): clients then use HTTP."""
    try:
        return _bind_unix(_fast_path(path), socket.SOCK_SEQPACKET)
    except OSError as error:
        _logger.warning("no shared memory for this module's clients", extra={"unit": path.stem, "why": str(error)})
        return None


def _bind_unix(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise OSError(f"expected a path of at most {MAX_SOCKET_PATH} bytes, got {len(os.fsencode(path))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
        path.unlink()  # of an agent that was killed
    unix = socket.socket(socket.AF_UNIX, kind)
    try:
        unix.bind(str(path))
        path.chmod(0o660)  # before listen: nobody can connect sooner
        unix.setblocking(False)
    except BaseException:
        unix.close()
        raise
    return unix


async def _bind_when_free(host: str, port: int) -> socket.socket:
    while True:
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        await asyncio.sleep(0.05)


def _bind(host: str, port: int) -> socket.socket:
    tcp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
        tcp.setblocking(False)
    except BaseException:
        tcp.close()
        raise
    return tcp
