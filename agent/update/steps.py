"""The work of each state of the update: verify, fetch, check, place, try, hand over, watch, put back.

Each step is safe to repeat from its start, because a power cut may ask for that. A step returns normally or raises an
AgentError whose key and text become the update's reason; which state follows is the table's affair, and that the state
was persisted first is the engine's. Files are touched on a thread, everything else on the loop.
"""

from __future__ import annotations

import asyncio
import functools
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from agent.config import AgentConfig, StatePaths
from agent.errors import UpdateError
from agent.files import write_durably
from agent.formats import check_formats
from agent.installed import Installed, ModuleSet, changes, kept_as
from agent.runtimes.past import Before
from agent.slots import Slots, Stop, verify_file
from agent.transfer.fetch import Fetcher
from agent.trust import Desired, DesiredModule, Verifier
from agent.update.budget import Budget, Kept, allocated
from agent.update.kinds import Kinds
from agent.update.probation import Verdict
from firmware_profiles.profile import Requirements, why_not
from modules.arms import why_not_beside
from modules.bundle import FileEntry
from modules.manifest import Manifest, decode_manifest, manifest_digest
from modules.targets import CANDIDATES

PROGRESS_EVERY_S = 2.0  # each is a report to the hub
TRIAL_MARGIN_S = 30.0  # beside a module's own deadlines: spawning, reading, comparing

_NONE: frozenset[str] = frozenset()


class Steps:
    """What all kinds of modules share; trying, serving and judging them is left to `kinds`."""

    def __init__(
        self,
        config: AgentConfig,
        paths: StatePaths,
        verifier: Verifier,
        fetcher: Fetcher,
        slots: Slots,
        kinds: Kinds,
        pruned: Callable[[], None] = lambda: None,
    ) -> None:
        """`pruned` is called when slots have gone."""
        self._config = config
        self._paths = paths
        self._verifier = verifier
        self._fetcher = fetcher
        self._slots = slots
        self._kinds = kinds
        self._pruned = pruned
        self._budget = Budget(config, paths.staging, slots, fetcher)
        self.done_bytes = 0
        self.total_bytes = 0
        self.arrived_bytes = 0  # since the download began, or went on

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
        _check_candidates(desired)
        for module in desired.modules:
            if module.manifest_sha256 in held:
                continue
            if not self._kinds.knows(kept_as(module.manifest.runtime.kind)):
                text = f"module {module.name}: this device runs no modules of kind {module.manifest.runtime.kind}"
                raise UpdateError(text, "requirements")
            check_formats(module.manifest)
            reasons = why_not(_with_floor(module.manifest, self._config), self._config.profile)
            if reasons:
                text = f"module {module.name} version {module.version} does not fit this device: "
                raise UpdateError(text + "; ".join(map(str, reasons)), "requirements")

    async def make_room(self, desired: Desired, current: ModuleSet, previous: ModuleSet) -> None:
        """That new modules fit beside the old, after what nobody needs is gone. Raises UpdateError disk-budget,
        memory-budget.
        """
        target = to_set(desired)
        manifests = {module.manifest_sha256: module.manifest for module in desired.modules}
        absent = [m for m in changes(current, target).fetch if not self._slots.has(m.manifest_sha256)]
        kept = Kept(current.digests | target.digests, previous.digests if self._config.update.keep_slots > 1 else _NONE)
        await asyncio.to_thread(self._budget.check_disk, [manifests[m.manifest_sha256] for m in absent], kept)
        self._budget.check_memory([manifests[m.manifest_sha256] for m in changes(current, target).trial])

    async def receive(self, desired: Desired) -> None:
        """Keeps the verified manifests of what is to be fetched, so that fetching can go on after a power cut. Raises
        UpdateError disk.
        """
        new = [module for module in desired.modules if not self._slots.has(module.manifest_sha256)]
        try:
            await asyncio.to_thread(self._write_manifests, new)
        except OSError as error:
            raise UpdateError(f"manifests: {error}", "disk") from error

    def staged_bytes(self) -> int:
        """What lies in staging, whole or in part."""
        return sum(allocated(path) for path in self._paths.staging.glob("*"))

    @property
    def waiting(self) -> str:
        """For what the download stands still, in words; empty while it may go on."""
        return self._fetcher.waiting

    async def fetch(self, target: ModuleSet, current: ModuleSet, progress: Callable[[], None]) -> None:
        """Raises FetchError, UpdateError."""
        entries = [entry for manifest in self._missing(target, current) for entry in manifest.files]
        self._fetcher.clear(frozenset(entry.sha256 for entry in entries))
        self.arrived_bytes = 0

        told, first = time.monotonic(), -1

        def note(done: int, total: int) -> None:
            nonlocal told, first
            first = done if first < 0 else first
            self.done_bytes, self.total_bytes, self.arrived_bytes = done, total, done - first
            if time.monotonic() - told >= PROGRESS_EVERY_S:
                told = time.monotonic()
                progress()

        if entries:
            await self._fetcher.fetch(entries, note)

    async def verify(self, target: ModuleSet, current: ModuleSet) -> None:
        """Every file of every new module, read back from the disk. Raises SlotError; what is wrong is removed."""
        await asyncio.to_thread(self._slots.clean)
        for manifest in self._missing(target, current):
            await _in_thread(functools.partial(self._verify_files, manifest))

    async def stage(self, target: ModuleSet, current: ModuleSet) -> None:
        """Raises SlotError."""
        for module in self._absent(target, current):
            data = self._manifest_bytes(module)
            await _in_thread(functools.partial(self._slots.make, data, decode_manifest(data), self._source))

    async def try_out(self, target: ModuleSet, current: ModuleSet) -> None:
        """Whatever new modules can prove before they serve. Raises WorkerError, SlotError, EndpointError."""
        await self._kinds.discard()
        await self._kinds.try_out(changes(current, target).trial)

    async def activate(self, target: ModuleSet, current: ModuleSet) -> dict[str, Before]:
        """How the modules did that the new ones replace. Raises WorkerError when one does not take over."""
        return await self._kinds.activate(target, changes(current, target).trial)

    async def watch(self, target: ModuleSet, current: ModuleSet, before: Mapping[str, Before]) -> None:
        """Returns when every new module has come through probation. Raises UpdateError at the first that has not."""
        waiting = list(changes(current, target).trial)
        started = time.monotonic()
        pause_s = min((self._kinds.of(module).look_every_s(module) for module in waiting), default=0.0)
        while waiting:
            await asyncio.sleep(pause_s)
            waiting = [m for m in waiting if await self._waits(m, before.get(m.key), time.monotonic() - started)]

    async def revert(self, current: ModuleSet) -> None:
        """Serves what was committed, whatever stands."""
        await self._kinds.discard()
        await self._kinds.revert(current)

    async def commit(self, current: ModuleSet) -> None:
        """Serves what was committed: new policies, modes and removals take effect here."""
        await self._kinds.commit(current)

    async def clean(self, keep: ModuleSet, previous: ModuleSet, all_staging: bool) -> None:
        """Slots other than those of the two sets go; staging too, unless an attempt is to follow."""
        digests = set(keep.digests)
        if self._config.update.keep_slots > 1:
            digests |= previous.digests
        await asyncio.to_thread(self._slots.prune, digests)
        self._pruned()
        if all_staging:
            self._fetcher.clear()
            await asyncio.to_thread(shutil.rmtree, self._incoming, True)

    async def discard(self) -> None:
        """Ends what was only tried."""
        await self._kinds.discard()

    def trial_deadline_s(self, target: ModuleSet, current: ModuleSet) -> float:
        trial = changes(current, target).trial
        return sum(self._kinds.of(m).trial_deadline_s(m) for m in trial) + TRIAL_MARGIN_S * (len(trial) + 1)

    def probation_deadline_s(self, target: ModuleSet, current: ModuleSet) -> float:
        trial = changes(current, target).trial
        return max((self._kinds.of(m).probation_deadline_s(m) for m in trial), default=0.0) + TRIAL_MARGIN_S

    async def _waits(self, module: Installed, before: Before | None, elapsed_s: float) -> bool:
        judgement = await self._kinds.of(module).judge(module, before, elapsed_s)
        if judgement.verdict is Verdict.UNHEALTHY:
            raise UpdateError(judgement.text, judgement.key)
        return judgement.verdict is Verdict.WAITING

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

    def _verify_files(self, manifest: Manifest, stop: Stop) -> None:
        for entry in manifest.files:
            path = self._source(entry)
            try:
                verify_file(path, entry, stop)
            except BaseException:
                if not stop() and path == self._fetcher.path(entry.sha256):
                    path.unlink(missing_ok=True)
                raise


async def _in_thread(work: Callable[[Stop], object]) -> None:
    """Cancelled, it asks the thread to stop and waits for that: two must not work on the same files."""
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop.is_set))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        task.exception()
        raise


def _check_candidates(desired: Desired) -> None:
    """Each has a version beside it that serves, with the same tensors: it is fed with those, and answers with these."""
    serving = {module.name: module.manifest for module in desired.modules if module.mode == "serve"}
    for module in desired.modules:
        if module.mode not in CANDIDATES:
            continue
        what, main = f"module {module.name}: version {module.version} as a candidate", serving.get(module.name)
        if main is None:
            raise UpdateError(f"{what}: expected a version that serves beside it, got none", "lone-candidate")
        if unlike := why_not_beside(main, module.manifest):
            raise UpdateError(f"{what} of {main.version}: {unlike}", "unlike-candidate")


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
                kind=kept_as(module.manifest.runtime.kind),
                share=module.share,
                salt=module.salt,
            )
            for module in desired.modules
        ),
    )
