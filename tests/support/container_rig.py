"""A keeper whose modules run in containers of the tests' engine, or in processes."""

from __future__ import annotations

from agent.config import ServingSettings, StatePaths
from agent.containers.runtime import Containers
from agent.containers.settings import ContainerSettings
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.unit import Unit
from agent.slots import Slots
from agent.store import AgentStore
from modules.messages import Stream
from support import built, contained
from support.built import Built
from support.contained import Contained
from support.waiting import until

QUICK = ServingSettings(drain_s=5.0, ping_every_s=0.2, ping_timeout_s=20.0, restart_first_s=0.01, restart_ceiling_s=0.2)


class Rig:
    """`told` is what the keeper tells, `items` what the workers say of their predictions."""

    def __init__(
        self, paths: StatePaths, store: AgentStore, engine: ContainerSettings, settings: ServingSettings = QUICK
    ) -> None:
        for folder in (paths.root, paths.slots, paths.endpoints, paths.root / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.items: list[tuple[Stream, bytes]] = []
        self.told: list[tuple[str, str, str]] = []
        self.paths = paths
        self.slots = Slots(paths.slots, paths.staging)
        self.containers = Containers(paths.root / "containers", engine, self._item)
        self.runtime = ProcessRuntime(paths, settings, store, self.slots, self._item, containers=self.containers)
        self.keeper = Keeper(self.runtime, settings, lambda: None, lambda _, *told: self.told.append(told))

    def installed(self, module: Contained | Built) -> Installed:
        if isinstance(module, Contained):
            contained.install(self.slots, module, self.paths.staging)
        else:
            built.install(self.slots, module, self.paths.staging)
        return Installed(module.manifest.name, module.manifest.version, module.sha256, 1, "d", verified=True)

    def set(self, *modules: Contained | Built) -> ModuleSet:
        return ModuleSet(1, 1, tuple(map(self.installed, modules)))

    def state(self, name: str = "iris") -> str:
        return next(report.state for report in self.keeper.reports() if report.name == name)

    async def serving(self, name: str = "iris") -> str:
        try:
            await until(lambda: self.state(name) == "serving", f"{name} to serve", 40)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; told: {self.told[-2:]}; printed: {self.log(name)[-500:]}") from error
        return self.runtime.address(name)

    def unit(self, name: str = "iris") -> Unit:
        unit = self.keeper.unit(name)
        assert unit is not None
        return unit

    def pid(self, name: str = "iris") -> int:
        worker = self.unit(name)._worker
        assert worker is not None
        return worker.pid

    def log(self, name: str = "iris") -> str:
        path = self.paths.root / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _item(self, stream: Stream, payload: bytes) -> None:
        self.items.append((stream, payload))

    async def close(self) -> None:
        await self.keeper.close()
        await self.containers.close()
