"""Modules as worker processes: a loaded, self-tested worker on demand, with all that the device lends it.

Called by `agent.runtimes.keeper` and, for spare workers, by `agent.update.steps`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from agent.candidates.introductions import Introductions
from agent.candidates.tap import Tap
from agent.config import ServingSettings, StatePaths
from agent.containers.options import seen_at
from agent.containers.runtime import Containers
from agent.errors import WorkerError
from agent.fpga.circuit import Circuit
from agent.fpga.fabric import Fabric
from agent.installed import Installed
from agent.rings import Rings
from agent.runtimes.access import Access
from agent.runtimes.caches import Caches
from agent.runtimes.endpoints import Endpoint, Endpoints
from agent.runtimes.evidence import Evidence
from agent.runtimes.priority import quiet, restore
from agent.runtimes.users import Users
from agent.sampling.spending import Spending
from agent.sandbox.blackbox import BlackBox
from agent.sandbox.cage import NO_CAGE, Cage, Cages
from agent.sandbox.given import Given
from agent.sandbox.host import OnItem, WorkerProcess, spawn
from agent.sandbox.level import namespaces
from agent.sandbox.log import unstamped
from agent.sandbox.nursery import Nursery
from agent.sandbox.protocol import Start
from agent.sandbox.room import room_for, with_places
from agent.sandbox.share import cpus, limited
from agent.slots import Slot, Slots
from agent.sources.allowed import check_allowed, places
from agent.sources.door import Door, Doors
from agent.store import AgentStore
from modules.manifest import Resources, SamplingPolicy
from modules.messages import Stream
from modules.runtime import CPU

MAX_LAST_WORDS = 300
MANY = 2  # modules, from which it pays to share the libraries; measured with benchmarks/workers.py
FIRST_TO_GO = 1000  # of a candidate, when memory runs out: nobody's answers depend on it
QUIET_SHARE = 0.25  # of its deadline, for which loading yields to those that serve; then a busy device goes on in haste

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loan:
    """What one worker is lent of the device; `cache` is None where it has none."""

    endpoint: Endpoint | None  # a candidate has none
    uid: int
    cache: Path | None
    circuit: Circuit
    door: Door
    tap: Tap

    @property
    def handles(self) -> tuple[int, ...]:
        """The descriptors that it inherits."""
        inherited = self.endpoint.inherited if self.endpoint is not None else ()
        return (*inherited, *self.circuit.handles, *self.door.handles, self.tap.handle)


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
        spending: Spending | None = None,
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
        self._rings = Rings(paths.root / "rings")
        self._spending = spending
        self._nursery = Nursery() if settings.preload != "off" else None
        self._fabric = fabric or Fabric(settings.fpga_emulation)
        self._access = Access(paths, settings)
        self._doors = Doors(paths.root / "sources")
        self.evidence = Evidence(paths.evidence)
        self._endpoints = Endpoints(paths.endpoints, settings.host, store, self._access)
        self._users = Users(settings, store)
        self._introductions = Introductions()

    async def endpoint(self, name: str) -> Endpoint:
        """The module's endpoint, made on first use. Raises EndpointError."""
        return await self._endpoints.get(name)

    def address(self, name: str) -> str:
        """Empty while the module has no endpoint."""
        return self._endpoints.address(name)

    def forget(self, name: str) -> None:
        """Closes the module's endpoint: from now on connections are refused."""
        self._endpoints.forget(name)

    def sweep(self) -> None:
        """Removes the sockets that an agent has left which was killed: nobody answers behind them any more."""
        self._endpoints.sweep()
        self.tidy()

    def tidy(self) -> None:
        """Caches of slots that are gone are removed; containers that a killed agent has left, and images of slots that
        are gone, beside other work.
        """
        self._caches.prune(self._paths.slots)
        self._rings.prune(self._paths.slots)
        if self._containers is not None:
            self._containers.tidy(self._paths.slots)

    def close(self) -> None:
        self._endpoints.close()
        self._doors.close()
        self._introductions.close()
        if self._nursery is not None:
            self._nursery.close()

    async def load(self, module: Installed, *, quietly: bool = False) -> WorkerProcess:
        """A worker that has loaded the module and passed its golden inputs, not serving yet; `quietly` where others
        serve meanwhile.

        Raises WorkerError, SlotError, EndpointError; no process is left behind then.
        """
        slot = self._slots.open(module.manifest_sha256)
        endpoint = None if module.candidate else await self.endpoint(module.name)
        uid = await self._users.uid(module.key)
        check_allowed(slot.manifest, self._settings.sources)
        cache = await asyncio.to_thread(self._caches.open, slot, uid)
        async with self._fabric.lend(slot.manifest, slot.path) as circuit:
            sources = () if module.candidate else slot.manifest.runtime.sources
            loan = Loan(endpoint, uid, cache, circuit, self._doors.open(module.name, sources), _tap())
            try:
                worker, cage = await self._spawn(module, slot, loan)
            except BaseException:
                loan.tap.close()
                raise
            finally:
                loan.door.given()
                loan.tap.given()
            self._fabric.used_by(worker, circuit)
        self._introductions.expects(worker, loan.tap, module)
        deadline_s = slot.manifest.health.load_deadline_s
        try:
            async with quiet(worker, deadline_s * QUIET_SHARE if quietly else 0.0):
                order = self._order(module, slot, loan, cage)
                await worker.start(_with_files(order, worker), deadline_s)
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

    async def _spawn(self, module: Installed, slot: Slot, loan: Loan) -> tuple[WorkerProcess, Cage]:
        """As its manifest says: a process in a cage, or a container."""
        name, resources, policy = module.key, _resources(module, slot), module.sampling or slot.manifest.sampling
        log = self._log(name)
        if slot.manifest.runtime.container is not None:
            if self._containers is None:
                raise WorkerError(f"module {name}: this agent runs no containers", "engine-absent")
            pinned = cpus(resources, sorted(os.sched_getaffinity(0)), self._settings.pin == "on", capped=True)
            worker = await self._containers.spawn(slot, loan.uid, loan.handles, log, pinned, loan.cache)
            worker.resources = resources
            return worker, NO_CAGE
        room = room_for(
            slot.manifest.requires.accelerators,
            loan.cache,
            self._caches.each_bytes,
            shares_memory=self._settings.shared_memory,
        )
        room = with_places(room, places(slot.manifest.runtime.sources))
        cage = self._cages.around(name, slot.path, loan.uid, resources, room)
        box = BlackBox() if self.evidence.crashes(name) else None
        ring = await asyncio.to_thread(self._rings.open, slot.path.name, policy)
        files = [file for file in (box, ring) if file is not None]
        try:
            inherited = (*loan.handles, *(file.handle for file in files))
            passed = partial(self._pass_on, module, policy)
            worker = await spawn(name, inherited, log, passed, cage=cage, nursery=self._forks())
        except BaseException:
            for file in files:
                file.close()
            raise
        worker.keep(box)
        worker.lend(ring)
        worker.resources = resources
        return worker, cage

    def _pass_on(self, module: Installed, policy: SamplingPolicy, stream: Stream, item: bytes) -> None:
        """What a candidate would spend of a module's privacy is kept for the version that serves."""
        if module.candidate and stream == "window" and policy.privacy:
            return
        if self._spending is not None:
            self._spending.passed(module.key, stream, len(item))
        self._on_item(stream, item)

    def _forks(self) -> Nursery | None:
        """Who forks the next worker. For a single module, the process that forks costs more memory than it saves."""
        alone = self._settings.preload == "auto" and len(self._endpoints) < MANY
        return None if alone else self._nursery

    def last_words(self, name: str) -> str:
        """The last line that a worker of the module has printed, empty where it has said nothing."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_LAST_WORDS))
                lines = log.read(MAX_LAST_WORDS).decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((said for line in reversed(lines) if (said := unstamped(line).strip())), "")

    async def recheck(self, module: Installed) -> str:
        """What is wrong with the module's files on the disk, or nothing; a damaged slot is removed, to be made anew."""
        return await asyncio.to_thread(self._slots.recheck, module.manifest_sha256)

    def policy(self, module: Installed) -> SamplingPolicy:
        """The director's word, or else the manifest's own, which counts from now on. Raises SlotError."""
        policy = module.sampling or self._slots.open(module.manifest_sha256).manifest.sampling
        if self._spending is not None:
            self._spending.left(module.key, policy)
        return policy

    async def serve(self, worker: WorkerProcess) -> None:
        """From now on the worker takes connections of its module's endpoint, or what the version that serves gives it.
        Raises WorkerError.
        """
        await restore(worker)
        if not self._introductions.beside(worker):
            (await self.endpoint(worker.name)).listen()
        await worker.serve()
        self._introductions.serves(worker)

    async def changed(self, worker: WorkerProcess, module: Installed) -> None:
        """The same files under new wishes: a candidate's share and mode count from now on. Raises SlotError."""
        self._introductions.changed(worker, module)
        if module.candidate:
            worker.resources = _resources(module, self._slots.open(module.manifest_sha256))

    def rest(self, worker: WorkerProcess, rests: bool) -> None:
        """A candidate that rests is given nothing."""
        self._introductions.rest(worker, rests)

    def _log(self, name: str) -> Path:
        return self._paths.root / "logs" / f"{name}.log"

    def _order(self, module: Installed, slot: Slot, loan: Loan, cage: Cage) -> Start:
        return Start(
            slot=seen_at(slot.manifest, slot.path),
            manifest=slot.manifest_bytes,
            sampling=module.sampling or slot.manifest.sampling,  # as in policy(), without reading the slot twice
            listen=loan.endpoint.handles if loan.endpoint is not None else (),
            uid=loan.uid,
            confine=self._settings.confine,
            config=msgspec.json.encode(module.config),
            outside=namespaces(),
            around=cage.words,
            floor=self._settings.floor,
            given=self._sampled(module, slot, self._given(module, slot, loan, cage)),
        )

    def _sampled(self, module: Installed, slot: Slot, given: Given) -> Given:
        if self._spending is None:
            return given
        left = self._spending.left(module.key, module.sampling or slot.manifest.sampling)
        return msgspec.structs.replace(given, quota_left=left, secret=self._spending.secret)

    def _given(self, module: Installed, slot: Slot, loan: Loan, cage: Cage) -> Given:
        settings = self._settings
        given = Given(
            providers=self._providers,
            cache=str(loan.cache or ""),
            cache_bytes=self._caches.each_bytes if loan.cache else 0,
            circuit=loan.circuit,
            fast=loan.endpoint.fast_handle if loan.endpoint is not None else -1,
            dial=loan.door.handle,
            places=places(slot.manifest.runtime.sources),
            tap=loan.tap.handle,
            candidate=module.candidate,
        )
        mine = limited(
            self._access.given(given),
            _resources(module, slot),
            settings.pin == "on",
            cage.limits_processors,
            settings.gpu_memory_mib,
        )
        return msgspec.structs.replace(mine, oom_score=FIRST_TO_GO) if module.candidate else mine


def _tap() -> Tap:
    """Raises WorkerError."""
    try:
        return Tap()
    except OSError as error:
        raise WorkerError(f"no socket for a worker: {error}", "spawn-failed") from error


def _resources(module: Installed, slot: Slot) -> Resources:
    """A shadow gives way to everything else, whatever its manifest says; for an arm somebody waits."""
    resources = slot.manifest.resources
    return msgspec.structs.replace(resources, priority="low") if module.mode == "shadow" else resources


def _with_files(order: Start, worker: WorkerProcess) -> Start:
    files = {"black_box": worker.box, "ring": worker.ring}
    handles = {name: file.handle for name, file in files.items() if file is not None}
    return msgspec.structs.replace(order, given=msgspec.structs.replace(order.given, **handles))
