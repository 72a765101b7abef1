"""What runs on this device now: one unit per serving module, and the hand-over from one module set to the next.

Needs no network: at start it serves the committed set. The update engine asks for spare workers and hands over with
`switch`; until then, and whatever happens during a download, the units keep serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from agent.config import ServingSettings
from agent.errors import AgentError, WorkerError
from agent.installed import Installed, ModuleSet
from agent.news import Tell, nobody
from agent.runtimes.heat import Warmth
from agent.runtimes.past import Before
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.unit import Unit, nothing
from agent.sandbox.host import WorkerProcess
from agent.sandbox.protocol import Stats
from modules.configuration import config_digest
from modules.messages import ModuleReport
from modules.sampling import SamplingPolicy

MAX_SAMPLING_WORDS = 300
MAX_WORD, MAX_WORDS = 40, 32  # of what went between a version and its candidate
_logger = logging.getLogger(__name__)


class Keeper:
    """`set` is what was asked for last. `close` drains everything. `changed` is called on every change of a state,
    `tell` hears of workers that end by themselves, `damaged` when a module's files had to be removed.
    """

    def __init__(
        self,
        runtime: ProcessRuntime,
        settings: ServingSettings,
        changed: Callable[[], None],
        tell: Tell = nobody,
        damaged: Callable[[], None] = nothing,
    ) -> None:
        self.set = ModuleSet()
        self._runtime = runtime
        self._settings = settings
        self._changed = changed
        self._tell = tell
        self._damaged = damaged
        self._units: dict[str, Unit] = {}
        self._warmth = Warmth.COOL
        self._aside: dict[str, Installed] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    async def start(self, modules: ModuleSet) -> None:
        """Begins to serve a set; returns at once, the workers load meanwhile."""
        async with self._lock:
            self.set = modules
            for module in modules.modules:
                if module.serves:
                    self._begin(module, None)
        self._runtime.sweep()
        self._changed()

    async def spare(self, module: Installed) -> WorkerProcess:
        """A loaded worker that has passed its golden inputs and serves nobody. The caller ends it or hands it over.

        Where the two cannot be loaded at once, the one that serves makes room first; requests wait meanwhile. Raises
        WorkerError, SlotError, EndpointError.
        """
        try:
            if self._runtime.displaces(module):
                await self._step_aside(module.key)
            return await self._runtime.load(module, quietly=True)
        except BaseException:
            self._come_back(module.key)
            if module.key not in self._units:
                self._runtime.forget(module.key)
            raise

    async def _step_aside(self, name: str) -> None:
        unit = self._units.pop(name, None)
        if unit is not None:
            self._aside[name] = unit.module
            await unit.end(self._settings.drain_s)

    def _come_back(self, name: str) -> None:
        module = self._aside.pop(name, None)
        if module is not None and name not in self._units:
            self._begin(module, None)

    async def drop(self, spare: WorkerProcess) -> None:
        """Ends a spare worker that is not needed."""
        await spare.kill()
        self._come_back(spare.name)
        if spare.name not in self._units:
            self._runtime.forget(spare.name)

    async def switch(self, target: ModuleSet, spares: dict[str, WorkerProcess]) -> None:
        """Serves `target` from now on: of each module the new worker accepts first, then the old one drains. Modules
        that stay are untouched. A spare that serves is taken out of `spares`.

        A module without a spare is loaded here, and kept trying where that fails. Raises WorkerError when a spare does
        not begin to serve; then some modules may have changed, and the caller switches again, forth or back. Cancelled,
        it leaves each module with a worker that serves, and the old ones go on draining.
        """
        async with self._lock:
            self.set = target
            self._aside.clear()  # whoever made room is in the target, and is brought back, or is not wanted
            for module in target.modules:
                if module.serves:
                    await self._bring(module, spares)
            serving = {module.key for module in target.modules if module.serves}
            for name in sorted(set(self._units) - serving):
                self._leave(self._units.pop(name))
                self._runtime.forget(name)
        await self._drained()
        self._changed()

    async def replace(self, name: str) -> None:
        """Another worker for a module, with no moment in which none serves; the one before it drains.

        Raises WorkerError, SlotError or EndpointError where it does not load, or `superseded` where the module has
        changed meanwhile; then what serves goes on.
        """
        unit = self._units[name]
        spare = await self.spare(unit.module)
        held = {name: spare}
        try:
            async with self._lock:
                now = self._units.get(name)
                wanted = self.set.get(name)
                if now not in (unit, None) or wanted is None or wanted.proof != unit.module.proof:
                    raise WorkerError(f"module {name}: it has changed meanwhile; nothing was restarted", "superseded")
                self._aside.pop(name, None)
                await _unbroken(self._take_over(wanted, spare, held))
        finally:
            for worker in held.values():
                await self.drop(worker)
        self._runtime.evidence.release(name)
        await self._drained()
        self._changed()

    async def begin_again(self, name: str) -> None:
        """Drains a module's worker and starts another one: between the two requests wait, or are refused."""
        async with self._lock:
            self._runtime.evidence.release(name)
            await _unbroken(self._step_aside(name))
            self._come_back(name)
        self._changed()

    async def poll(self, name: str) -> Stats:
        """Asks the worker of `name` now; zeros while there is none."""
        unit = self._units.get(name)
        if unit is None:
            return Stats()
        await unit.poll()
        return unit.stats

    async def record(self, name: str) -> Before | None:
        """How the worker of `name` has done so far, for whoever follows it; None where nobody serves."""
        await self.poll(name)
        unit = self._units.get(name)
        return unit.record() if unit is not None else None

    def unit(self, name: str) -> Unit | None:
        return self._units.get(name)

    def policy(self, name: str) -> SamplingPolicy | None:
        """What holds for a module's windows and samples; None where it is not kept, or its slot cannot be read."""
        unit = self._units.get(name)
        try:
            return None if unit is None else self._runtime.policy(unit.module)
        except AgentError:
            return None

    def reports(self) -> tuple[ModuleReport, ...]:
        """One for each module of the set, sorted by name, a candidate behind the version that serves."""
        return tuple(self._report(module) for module in sorted(self.set.modules, key=lambda module: module.key))

    def stats(self) -> dict[str, Stats]:
        """What workers counted, as they said last, by module."""
        return {name: unit.stats for name, unit in self._units.items()}

    async def endure(self, warmth: Warmth) -> None:
        """How warm the device is: each module bears it as its priority says."""
        self._warmth = warmth
        await asyncio.gather(*(unit.endure(warmth) for unit in list(self._units.values())))
        self._changed()

    async def close(self) -> None:
        """Drains and ends every worker, then closes the endpoints."""
        async with self._lock:
            units, self._units = list(self._units.values()), {}
            for unit in units:
                self._leave(unit)
            await self._drained()
        self._runtime.close()

    async def _bring(self, module: Installed, spares: dict[str, WorkerProcess]) -> None:
        """Makes `module` the one that serves under its name; the unit that it replaces is left to drain."""
        unit, spare = self._units.get(module.key), spares.get(module.key)
        if spare is not None:
            await _unbroken(self._take_over(module, spare, spares))
        elif unit is None:
            self._begin(module, None)
        elif unit.module.proof == module.proof:
            await unit.adopt(module)
        else:
            await self._bring_back(module)

    async def _bring_back(self, module: Installed) -> None:
        """With a worker loaded now, as with a spare; a module that does not load is left to its unit to try on."""
        own: dict[str, WorkerProcess] = {}
        try:
            if self._runtime.displaces(module):
                await self._step_aside(module.key)
                del self._aside[module.key]
            own[module.key] = await self._runtime.load(module)
            await _unbroken(self._take_over(module, own[module.key], own))
        except AgentError as error:
            _logger.error("module does not load, its unit goes on trying", extra={"why": str(error), "key": error.key})
            self._replace(module, None)
        finally:
            for worker in own.values():
                await worker.kill()

    async def _take_over(self, module: Installed, worker: WorkerProcess, held: dict[str, WorkerProcess]) -> None:
        """Between serving and being kept there is no moment at which a cancellation could lose the worker."""
        await self._runtime.serve(worker)
        del held[module.key]
        self._replace(module, worker)

    def _replace(self, module: Installed, worker: WorkerProcess | None) -> None:
        old = self._units.get(module.key)
        self._begin(module, worker)
        if old is not None:
            self._leave(old)

    def _leave(self, unit: Unit) -> None:
        """The unit drains and ends by itself, within its deadlines, whoever waits for it or not."""
        task = asyncio.create_task(unit.end(self._settings.drain_s), name=f"drain-{unit.module.key}")
        self._leaving.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a module did not drain", extra={"unit": task.get_name()}, exc_info=error)

    async def _drained(self) -> None:
        if self._leaving:
            await asyncio.wait(set(self._leaving))

    def _begin(self, module: Installed, worker: WorkerProcess | None) -> None:
        unit = Unit(
            module, self._runtime, self._settings, self._changed, self._tell, self._damaged, self._warmth
        )  # fmt: skip
        self._units[module.key] = unit
        unit.begin(worker)

    def _report(self, module: Installed) -> ModuleReport:
        held = ModuleReport(
            name=module.name,
            version=module.version,
            manifest_sha256=module.manifest_sha256,
            release_counter=module.release_counter,
            deployment=module.deployment,
            state="off",
            verified=module.verified,
            config_sha256=config_digest(module.config),
        )
        if module.candidate:
            held = msgspec.structs.replace(held, mode=module.mode, share=module.share)
        unit = self._units.get(module.key)
        if unit is None:
            return held
        return msgspec.structs.replace(
            held,
            state=unit.state,
            requests=unit.stats.requests,
            errors=unit.stats.errors,
            restarts=unit.restarts,
            confinement=unit.ready.confinement if unit.ready is not None else "",
            execution=unit.ready.execution if unit.ready is not None else "",
            stages=unit.ready.stages if unit.ready is not None else (),
            sources=unit.sources,
            samples_dropped=unit.samples_dropped,
            sampling=unit.stats.sampling[:MAX_SAMPLING_WORDS],
            endpoint=self._runtime.address(module.key),
            level=unit.ready.level.value if unit.ready is not None else "",
            beside=self._beside(module.name, unit.stats) if module.candidate else {},
        )

    def _beside(self, name: str, stats: Stats) -> dict[str, int]:
        """What a candidate was given, by the version that serves, and what it made of it; a worker's words, and few."""
        main = self._units.get(name)
        counts = {**(main.stats.beside if main is not None else {}), **stats.beside}
        return {word[:MAX_WORD]: count for word, count in sorted(counts.items())[:MAX_WORDS]}


async def _unbroken(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, which has deadlines of its own, to its end, and lets a cancellation through only then."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the cancellation goes before
        raise
