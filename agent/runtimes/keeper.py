"""What runs on this device now: one unit per serving module, and the hand-over from one module set to the next.

Needs no network: at start it serves the committed set. The update engine asks for spare workers and hands over with
`switch`; until then, and whatever happens during a download, the units keep serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from agent.config import ServingSettings
from agent.errors import AgentError
from agent.installed import Installed, ModuleSet
from agent.news import Tell, nobody
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.unit import Unit
from agent.sandbox.host import WorkerProcess
from agent.sandbox.protocol import Stats
from modules.messages import ModuleReport

_logger = logging.getLogger(__name__)


class Keeper:
    """`set` is what was asked for last. `close` drains everything. `changed` is called on every change of a state,
    `tell` hears of workers that end by themselves.
    """

    def __init__(
        self, runtime: ProcessRuntime, settings: ServingSettings, changed: Callable[[], None], tell: Tell = nobody
    ) -> None:
        self.set = ModuleSet()
        self._runtime = runtime
        self._settings = settings
        self._changed = changed
        self._tell = tell
        self._units: dict[str, Unit] = {}
        self._lock = asyncio.Lock()

    async def start(self, modules: ModuleSet) -> None:
        """Begins to serve a set; returns at once, the workers load meanwhile."""
        async with self._lock:
            self.set = modules
            for module in modules.modules:
                if module.serves:
                    self._begin(module, None)
        self._changed()

    async def spare(self, module: Installed) -> WorkerProcess:
        """A loaded worker that has passed its golden inputs and serves nobody. The caller ends it or hands it over.

        Raises WorkerError, SlotError, EndpointError.
        """
        try:
            return await self._runtime.load(module)
        except BaseException:
            if module.name not in self._units:
                self._runtime.forget(module.name)
            raise

    async def switch(self, target: ModuleSet, spares: Mapping[str, WorkerProcess]) -> None:
        """Serves `target` from now on: new workers accept first, then old ones drain. Modules that stay are untouched.

        A module without a spare is loaded here, and kept trying where that fails. Raises WorkerError when a spare does
        not begin to serve; then some modules may have changed, and the caller switches again, forth or back.
        """
        old: list[Unit] = []
        async with self._lock:
            self.set = target
            try:
                for module in target.modules:
                    if module.serves:
                        old += await self._bring(module, spares.get(module.name))
                serving = {module.name for module in target.modules if module.serves}
                for name in sorted(set(self._units) - serving):
                    old.append(self._units.pop(name))
                    self._runtime.forget(name)
            finally:
                await asyncio.gather(*(unit.end(self._settings.drain_s) for unit in old))
        self._changed()

    async def poll(self, name: str) -> Stats:
        """Asks the worker of `name` now; zeros while there is none."""
        unit = self._units.get(name)
        if unit is None:
            return Stats()
        await unit.poll()
        return unit.stats

    def unit(self, name: str) -> Unit | None:
        return self._units.get(name)

    def reports(self) -> tuple[ModuleReport, ...]:
        """One for each module of the set, sorted by name."""
        return tuple(self._report(module) for module in sorted(self.set.modules, key=lambda module: module.name))

    async def close(self) -> None:
        """Drains and ends every worker, then closes the endpoints."""
        async with self._lock:
            units, self._units = list(self._units.values()), {}
            await asyncio.gather(*(unit.end(self._settings.drain_s) for unit in units))
        self._runtime.close()

    async def _bring(self, module: Installed, spare: WorkerProcess | None) -> list[Unit]:
        """Makes `module` the one that serves under its name; returns the unit that it replaces, to be drained."""
        unit = self._units.get(module.name)
        if unit is not None and unit.module.proof == module.proof and spare is None:
            await unit.adopt(module)
            return []
        if spare is not None:
            await self._runtime.serve(spare)
        elif unit is not None:
            spare = await self._try_serve(module)
        self._begin(module, spare)
        return [unit] if unit is not None else []

    async def _try_serve(self, module: Installed) -> WorkerProcess | None:
        """A worker that serves already, or None; whatever happens, none is left that nobody keeps."""
        try:
            worker = await self._runtime.load(module)
            try:
                await self._runtime.serve(worker)
            except BaseException:
                await worker.kill()
                raise
            return worker
        except AgentError as error:
            _logger.error("module does not load, its unit goes on trying", extra={"why": str(error), "key": error.key})
            return None

    def _begin(self, module: Installed, worker: WorkerProcess | None) -> None:
        unit = Unit(module, self._runtime, self._settings, self._changed, self._tell)
        self._units[module.name] = unit
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
        )
        unit = self._units.get(module.name)
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
            endpoint=self._runtime.address(module.name),
            level=unit.ready.level.value if unit.ready is not None else "",
        )
