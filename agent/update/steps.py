"""The work of each state of the update: verify, fetch, check, place, try, hand over, watch, put back.

Each step is safe to repeat from its start, because a power cut may ask for that. A step returns normally or raises an
AgentError whose key and text become the update's reason; which state follows is the table's affair, and that the state
was persisted first is the engine's. Files are touched on a thread, everything else on the loop.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agent.config import AgentConfig, StatePaths
from agent.errors import UpdateError
from agent.files import write_durably
from agent.formats import check_formats
from agent.installed import Installed, ModuleSet, changes
from agent.runtimes.keeper import Keeper
from agent.sandbox.host import WorkerProcess
from agent.slots import Slots, verify_file
from agent.transfer.fetch import Fetcher
from agent.trust import Desired, DesiredModule, Verifier
from agent.update.probation import Seen, Verdict, judge
from firmware_profiles.profile import Requirements, why_not
from modules.bundle import FileEntry
from modules.manifest import Manifest, decode_manifest, manifest_digest

PROBATION_LOOK_S = 1.0
PROGRESS_EVERY_S = 2.0  # each is a report to the hub
TRIAL_MARGIN_S = 30.0  # beside a module's own deadlines: spawning, reading, comparing

Again = Callable[[], Awaitable[bool]]


class Steps:
    """Holds what lives between two steps and may be lost: the spare workers. `discard` ends them."""

    def __init__(
        self,
        config: AgentConfig,
        paths: StatePaths,
        verifier: Verifier,
        fetcher: Fetcher,
        slots: Slots,
        keeper: Keeper,
    ) -> None:
        self._config = config
        self._paths = paths
        self._verifier = verifier
        self._fetcher = fetcher
        self._slots = slots
        self._keeper = keeper
        self._spares: dict[str, WorkerProcess] = {}
        self.done_bytes = 0
        self.total_bytes = 0

    async def desired(self, counters: dict[str, int]) -> Desired:
        """Asks and verifies. Raises TrustError."""
        return await self._verifier.refresh(counters)

    def whole(self, modules: ModuleSet) -> ModuleSet:
        """Without the modules whose slot is damaged: those are fetched again, as if they were new."""
        kept = tuple(module for module in modules.modules if self._slots.has(module.manifest_sha256))
        return msgspec.structs.replace(modules, modules=kept)

    def admit(self, desired: Desired, current: ModuleSet) -> None:
        """That every module new to this device fits it. Raises UpdateError with every reason why not; FormatError."""
        held = current.digests
        for module in desired.modules:
            if module.manifest_sha256 in held:
                continue
            check_formats(module.manifest)
            reasons = why_not(_with_floor(module.manifest, self._config), self._config.profile)
            if reasons:
                text = f"module {module.name} version {module.version} does not fit this device: "
                raise UpdateError(text + "; ".join(map(str, reasons)), "requirements")

    async def receive(self, desired: Desired) -> None:
        """Keeps the verified manifests of what is to be fetched, so that fetching can go on after a power cut."""
        new = [module for module in desired.modules if not self._slots.has(module.manifest_sha256)]
        await asyncio.to_thread(self._write_manifests, new)

    async def fetch(self, target: ModuleSet, current: ModuleSet, progress: Callable[[], None]) -> None:
        """Raises FetchError, UpdateError."""
        entries = [entry for manifest in self._missing(target, current) for entry in manifest.files]
        self._fetcher.clear(frozenset(entry.sha256 for entry in entries))

        told = time.monotonic()

        def note(done: int, total: int) -> None:
            nonlocal told
            self.done_bytes, self.total_bytes = done, total
            if time.monotonic() - told >= PROGRESS_EVERY_S:
                told = time.monotonic()
                progress()

        if entries:
            await self._fetcher.fetch(entries, note)

    async def verify(self, target: ModuleSet, current: ModuleSet) -> None:
        """Every file of every new module, read back from the disk. Raises SlotError; what is wrong is removed."""
        await asyncio.to_thread(self._slots.clean)
        for manifest in self._missing(target, current):
            await asyncio.to_thread(self._verify_files, manifest)

    async def stage(self, target: ModuleSet, current: ModuleSet) -> None:
        """Raises SlotError."""
        for module in self._absent(target, current):
            data = self._manifest_bytes(module)
            await asyncio.to_thread(self._slots.make, data, decode_manifest(data), self._source)

    async def try_out(self, target: ModuleSet, current: ModuleSet) -> None:
        """A spare worker for each new module that shall serve. Raises WorkerError, SlotError, EndpointError."""
        await self.discard()
        for module in changes(current, target).trial:
            self._spares[module.name] = await self._keeper.spare(module)

    async def activate(self, target: ModuleSet) -> None:
        """Raises WorkerError when a spare does not take over."""
        try:
            await self._keeper.switch(target, self._spares)
        except BaseException:
            await self.discard()
            raise
        self._spares.clear()  # they serve now

    async def watch(self, target: ModuleSet, current: ModuleSet, superseded: Again) -> None:
        """Returns when every new module has come through probation. Raises UpdateError at the first that has not."""
        waiting = [(module, self._slots.open(module.manifest_sha256).manifest.health)
                   for module in changes(current, target).trial]  # fmt: skip
        started = time.monotonic()
        pause_s = min([PROBATION_LOOK_S, *(health.probation_s / 5 for _, health in waiting)])
        while waiting:
            await asyncio.sleep(max(pause_s, 0.02))
            still = []
            for module, health in waiting:
                judgement = judge(module.name, health, await self._look(module), time.monotonic() - started)
                if judgement.verdict is Verdict.UNHEALTHY:
                    raise UpdateError(judgement.text, judgement.key)
                if judgement.verdict is Verdict.WAITING:
                    still.append((module, health))
            waiting = still
            if waiting and await superseded():
                raise UpdateError("the hub wants another module before this one was through probation", "superseded")

    async def settle(self, current: ModuleSet) -> None:
        """Serves what was committed: new policies, modes and removals take effect here."""
        await self._keeper.switch(current, {})

    async def clean(self, keep: ModuleSet, previous: ModuleSet, all_staging: bool) -> None:
        """Slots other than those of the two sets go; staging too, unless an attempt is to follow."""
        digests = set(keep.digests)
        if self._config.update.keep_slots > 1:
            digests |= previous.digests
        await asyncio.to_thread(self._slots.prune, digests)
        if all_staging:
            self._fetcher.clear()
            await asyncio.to_thread(shutil.rmtree, self._incoming, True)

    async def discard(self) -> None:
        """Ends the spare workers."""
        while self._spares:
            _, worker = self._spares.popitem()
            await worker.kill()

    def trial_deadline_s(self, target: ModuleSet, current: ModuleSet) -> float:
        trial = changes(current, target).trial
        return sum(2 * self._slots.open(m.manifest_sha256).manifest.health.load_deadline_s for m in trial) + (
            TRIAL_MARGIN_S * (len(trial) + 1)
        )

    def probation_deadline_s(self, target: ModuleSet, current: ModuleSet) -> float:
        trial = changes(current, target).trial
        bounds = [self._slots.open(m.manifest_sha256).manifest.health for m in trial]
        return max([max(h.probation_deadline_s, h.probation_s) for h in bounds], default=0.0) + TRIAL_MARGIN_S

    async def _look(self, module: Installed) -> Seen:
        stats = await self._keeper.poll(module.name)
        unit = self._keeper.unit(module.name)
        if unit is None:
            return Seen(stats, 1, "it is not kept any more")
        return Seen(stats, unit.restarts, str(unit.failure or ""))

    @property
    def _incoming(self) -> Path:
        return self._paths.root / "incoming"

    def _write_manifests(self, modules: list[DesiredModule]) -> None:
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        for module in modules:
            write_durably(self._incoming / f"{module.manifest_sha256}.json", module.manifest_bytes)

    def _manifest_bytes(self, module: Installed) -> bytes:
        path = self._incoming / f"{module.manifest_sha256}.json"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UpdateError(f"manifest of {module.name}: {error}", "io") from error
        if manifest_digest(data) != module.manifest_sha256:
            raise UpdateError(f"manifest of {module.name}: the file on the disk is not what was verified", "io")
        return data

    def _absent(self, target: ModuleSet, current: ModuleSet) -> list[Installed]:
        """New modules without a whole slot of their own; an earlier version may still have one."""
        return [m for m in changes(current, target).fetch if not self._slots.has(m.manifest_sha256)]

    def _missing(self, target: ModuleSet, current: ModuleSet) -> list[Manifest]:
        return [decode_manifest(self._manifest_bytes(module)) for module in self._absent(target, current)]

    def _source(self, entry: FileEntry) -> Path:
        staged = self._fetcher.path(entry.sha256)
        return staged if staged.exists() else self._slots.find(entry.sha256) or staged

    def _verify_files(self, manifest: Manifest) -> None:
        for entry in manifest.files:
            path = self._source(entry)
            try:
                verify_file(path, entry)
            except BaseException:
                if path == self._fetcher.path(entry.sha256):
                    path.unlink(missing_ok=True)
                raise


def _with_floor(manifest: Manifest, config: AgentConfig) -> Requirements:
    """What the module requires, and what this device requires of every module."""
    wanted = manifest.requires.confinement
    floor = wanted if wanted.reaches(config.serving.floor) else config.serving.floor
    return msgspec.structs.replace(manifest.requires, confinement=floor)


def to_set(desired: Desired) -> ModuleSet:
    """The desired set as what would be installed."""
    return ModuleSet(
        desired.director_version,
        desired.image_version,
        tuple(
            Installed(
                name=module.name,
                version=module.version,
                manifest_sha256=module.manifest_sha256,
                release_counter=module.release_counter,
                deployment=module.deployment,
                mode=module.mode,
                sampling=module.sampling,
                config=module.config,
            )
            for module in desired.modules
        ),
    )
