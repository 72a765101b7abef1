"""Which patches the fleet could use now: from the files that devices hold to the files that they are to have.

What a device holds stands in its signed report; what it is to have, in its assignments, in rollouts that have not
ended, and, before anybody asks for it, in the newest signed version. So a patch can be there when the rollout begins.
Called by `build` (to queue them) and `retention` (to drop those that nobody could use any more).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.errors import NotFound
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.rollouts.states import DONE, ENDED, NOT_ELIGIBLE
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, executions, model_versions, modules, rollouts
from modules.bundle import FileEntry
from modules.errors import MALFORMED, ManifestError
from modules.manifest import decode_manifest

MAX_WISHES: Final = 1000
MAX_REMEMBERED_MANIFESTS: Final = 256


class Wish(msgspec.Struct, frozen=True):
    """A patch that could be of use. `devices` hold the base and are to have the target; `holders` hold the base."""

    target: str
    base: str
    module: str
    path: str
    base_version: int
    version: int
    target_size: int
    devices: int
    holders: int


class _Build(NamedTuple):
    """A signed module of one profile."""

    module: str
    version: int
    profile: str
    manifest: str
    current: bool  # its model version is still registered


class _Held(msgspec.Struct):
    name: str
    manifest_sha256: str


class _Report(msgspec.Struct):
    """The fields of a device's report that matter here."""

    modules: tuple[_Held, ...]


class _Goal(NamedTuple):
    """Where devices are to go: those that shall be there, and all that could."""

    devices: set[str]
    candidates: set[str]


class _Standing(NamedTuple):
    """What the database says at one moment."""

    builds: list[_Build]
    wanted: set[tuple[str, str, int]]  # device, module, version
    profiles: dict[str, str]  # by device
    reports: dict[str, bytes]  # by device


_report = msgspec.json.Decoder(_Report)


class Wishes:
    """Reads the fleet anew each time. Manifests are remembered: their bytes never change under their digest."""

    def __init__(self, store: Store, blobs: Blobs, settings: PatchSettings) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._files: dict[str, tuple[FileEntry, ...]] = {}

    async def now(self) -> list[Wish]:
        """The most wanted first, at most MAX_WISHES; none when patches are switched off."""
        if not self._settings.enabled:
            return []
        async with self._store.read() as connection:
            standing = await _standing(connection)
        steps = await asyncio.to_thread(_steps, standing, self._settings.recent)
        found: dict[tuple[str, str], Wish] = {}
        for (old, new), (moving, holders) in steps.items():
            for wish in await self._between(old, new, moving, holders):
                same = found.get((wish.target, wish.base))
                found[wish.target, wish.base] = wish if same is None else _joined(same, wish)
        ranked = sorted(found.values(), key=lambda wish: (-wish.devices, -wish.holders, -wish.version, wish.base))
        return ranked[:MAX_WISHES]

    async def _between(self, old: _Build, new: _Build, moving: int, holders: int) -> Iterator[Wish]:
        before, after = await self._entries(old.manifest), await self._entries(new.manifest)
        smallest, largest = self._settings.min_bytes, self._settings.max_bytes
        return (
            Wish(b.sha256, a.sha256, new.module, b.path, old.version, new.version, b.size, moving, holders)
            for a, b in _changed(before, after)
            if smallest <= b.size <= largest and smallest <= a.size <= largest
        )

    async def _entries(self, manifest: str) -> tuple[FileEntry, ...]:
        if manifest not in self._files:
            if len(self._files) >= MAX_REMEMBERED_MANIFESTS:
                self._files.pop(next(iter(self._files)))
            try:
                self._files[manifest] = decode_manifest(await self._blobs.read(manifest)).files
            except (NotFound, ManifestError):
                return ()  # gone, or of a version of Mooring that is yet to come: there will be no patch
        return self._files[manifest]


async def _standing(connection: AsyncConnection) -> _Standing:
    registered = {
        (row.name, row.version)
        for row in await connection.execute(select(model_versions.c.name, model_versions.c.version))
    }
    signed = select(modules.c.name, modules.c.version, modules.c.profile, modules.c.manifest_sha256)
    rows = await connection.execute(signed.where(modules.c.release_counter.is_not(None)))
    builds = [_Build(*row, current=(row.name, row.version) in registered) for row in rows]
    known = select(devices.c.id, devices.c.profile, devices.c.report).where(devices.c.retired_at.is_(None))
    fleet = (await connection.execute(known)).all()
    return _Standing(
        builds,
        await _wanted(connection),
        {row.id: row.profile for row in fleet},
        {row.id: row.report for row in fleet if row.report is not None},
    )


async def _wanted(connection: AsyncConnection) -> set[tuple[str, str, int]]:
    assigned = select(assignments.c.device, assignments.c.module, assignments.c.version)
    planned = (
        select(executions.c.device, rollouts.c.module, rollouts.c.version)
        .join(rollouts, rollouts.c.id == executions.c.rollout)
        .where(rollouts.c.state.not_in([str(state) for state in ENDED]))
        .where(executions.c.state.not_in([str(state) for state in DONE]))
        .where(executions.c.group_index != NOT_ELIGIBLE)
    )
    rows = [*(await connection.execute(assigned)).all(), *(await connection.execute(planned)).all()]
    return {(row.device, row.module, row.version) for row in rows}


def _steps(standing: _Standing, recent: int) -> dict[tuple[_Build, _Build], tuple[int, int]]:
    """From which build to which, with the number of devices that go there, and of those that hold the first."""
    holders = _holders(standing)
    goals = _goals(standing, holders)
    by_module: dict[tuple[str, str], list[_Build]] = defaultdict(list)
    for build in sorted(standing.builds, key=lambda build: -build.version):
        by_module[build.module, build.profile].append(build)
    steps: dict[tuple[_Build, _Build], tuple[int, int]] = {}
    for new, goal in goals.items():
        others = [build for build in by_module[new.module, new.profile] if build.manifest != new.manifest]
        lately = [build for build in others if build.version < new.version][:recent]
        for old in others:
            moving = holders[old] & goal.devices
            could = holders[old] & goal.candidates
            if moving or could or old in lately:
                steps[old, new] = len(moving), len(holders[old])
    return steps


def _holders(standing: _Standing) -> Mapping[_Build, set[str]]:
    builds = {(build.manifest, build.profile): build for build in standing.builds}
    holders: dict[_Build, set[str]] = defaultdict(set)
    for device, body in standing.reports.items():
        for manifest in _manifests(body):
            build = builds.get((manifest, standing.profiles[device]))
            if build is not None:
                holders[build].add(device)
    return holders


def _manifests(body: bytes) -> Iterable[str]:
    try:
        return [held.manifest_sha256 for held in _report.decode(body).modules]
    except MALFORMED:
        return []


def _goals(standing: _Standing, holders: Mapping[_Build, set[str]]) -> dict[_Build, _Goal]:
    goals: dict[_Build, _Goal] = {}
    builds = {(build.module, build.version, build.profile): build for build in standing.builds}
    for device, module, version in standing.wanted:
        build = builds.get((module, version, standing.profiles.get(device, "")))
        if build is not None:
            goals.setdefault(build, _Goal(set(), set())).devices.add(device)
    newest: dict[tuple[str, str], _Build] = {}
    for build in standing.builds:
        best = newest.get((build.module, build.profile))
        if build.current and (best is None or best.version < build.version):
            newest[build.module, build.profile] = build
    for build, held_by in list(holders.items()):
        best = newest.get((build.module, build.profile))
        if best is not None and build.version < best.version:
            goals.setdefault(best, _Goal(set(), set())).candidates.update(held_by)
    return goals


def _changed(before: Iterable[FileEntry], after: Iterable[FileEntry]) -> Iterator[tuple[FileEntry, FileEntry]]:
    """Each file that is new in `after`, with the one that it was: of the same path, or the only one of its kind."""
    old, new = list(before), list(after)
    held, paths = {entry.sha256 for entry in old}, {entry.path: entry for entry in old}
    for entry in new:
        if entry.sha256 in held:
            continue
        was = paths.get(entry.path) or _only(old, entry, new)
        if was is not None:
            yield was, entry


def _only(old: list[FileEntry], entry: FileEntry, new: list[FileEntry]) -> FileEntry | None:
    def of_its_kind(entries: list[FileEntry]) -> list[FileEntry]:
        kind = entry.path.rpartition(".")[2]
        return [other for other in entries if other.path.rpartition(".")[2] == kind]

    was = of_its_kind(old)
    return was[0] if len(was) == 1 == len(of_its_kind(new)) else None


def _joined(one: Wish, other: Wish) -> Wish:
    """The same two files in modules of several profiles."""
    return msgspec.structs.replace(one, devices=one.devices + other.devices, holders=one.holders + other.holders)
