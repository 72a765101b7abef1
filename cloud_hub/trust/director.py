"""The director: for each device a small TUF repository that says exactly what this device shall run.

All devices share one root and the online keys; each has its own targets, snapshot and timestamp, signed when the
device asks and what stands is older than `devices.director_version`, or ahead of time by `renew`. The device's id
stands in the targets even when nothing is assigned, so that metadata of one device means nothing to another. Versions
only grow. Database here, signing in `director_sign`.
Called by `link` (devices fetch metadata), `devices` (root at enrolment), `service` (renewal), `trust.setup` and
`trust.offline`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import Snapshot, TargetFile, Targets, Timestamp

from cloud_hub.clock import Clock
from cloud_hub.desired import MAIN, to_assignment
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.store.among import pairs_among
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import assignments, devices, director_files, modules
from cloud_hub.store.together import Together
from cloud_hub.trust.director_sign import (
    FRESH_LIFE_S,
    SET_LIFE_S,
    SNAPSHOT_FILE,
    TARGETS_FILE,
    TIMESTAMP_FILE,
    DeviceSet,
    sign_freshness,
    sign_set,
)
from cloud_hub.trust.keys import (
    DIRECTOR_ROOTS,
    DIRECTOR_SNAPSHOT,
    DIRECTOR_TARGETS,
    DIRECTOR_TIMESTAMP,
    Keys,
)
from cloud_hub.trust.signing import SignedFile, needs_signing, sign_root
from modules.targets import DirectorCustom, TargetPath, to_custom

FIRST_ROOT = "1.root.json"
log = logging.getLogger(__name__)
_FILES = frozenset({TIMESTAMP_FILE, SNAPSHOT_FILE, TARGETS_FILE})
_ROLES = {Targets.type: DIRECTOR_TARGETS, Snapshot.type: DIRECTOR_SNAPSHOT, Timestamp.type: DIRECTOR_TIMESTAMP}
ALL_DEVICES: Final = "_root"  # where the shared root lies; an underscore cannot occur in a device id
RENEW_BATCH: Final = 200  # devices per transaction: about 50 ms of signing, so that other writers get their turn


@dataclass(frozen=True)
class _Standing:
    """Where a device's metadata stands: what is wanted, what is signed, until when. Versions are 0 before the first."""

    device: str
    wanted: int
    set_version: int
    set_expires_at: float
    timestamp_version: int
    timestamp_expires_at: float

    def needs_set(self, now: float) -> bool:
        return self.set_version < self.wanted or needs_signing(self.set_expires_at, now, SET_LIFE_S)

    def needs_freshness(self, now: float) -> bool:
        return needs_signing(self.timestamp_expires_at, now, FRESH_LIFE_S)

    @property
    def next_set(self) -> int:
        """A set that is signed only because of its age gets a new version too."""
        return max(self.wanted, self.set_version + 1)


class Director:
    """Signs and serves the director metadata of every device."""

    def __init__(self, store: Store, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._files = Together(self._bodies)
        self._standing = Together(self._signable)
        self._signing = Together(self._sign)

    async def create(self) -> None:
        """Signs the root that all devices share. Needs the director's root keys."""
        root = sign_root(self._keys, DIRECTOR_ROOTS, _ROLES, consistent=False, now=self._clock())
        async with self._store.write() as connection:
            await put_root(connection, root)

    async def root_json(self) -> str:
        """The root that devices start from."""
        return (await self._stored(ALL_DEVICES, FIRST_ROOT)).decode()

    async def metadata(self, device: str, filename: str) -> bytes:
        """A file of the device's repository. Raises NotFound `metadata-not-found` or `device-not-found`.

        Asking for the timestamp, where every client starts, first signs what has changed since; the other files
        then belong to it until the next such request. Raises Conflict `device-retired`.
        """
        if filename not in _FILES:
            return await self._stored(ALL_DEVICES, filename)
        if filename == TIMESTAMP_FILE:
            await self._bring_up_to_date(device)
        return await self._stored(device, filename)

    async def root_file(self, filename: str) -> bytes:
        """One root of the chain, such as 2.root.json. Raises NotFound `metadata-not-found`."""
        return await self._stored(ALL_DEVICES, filename)

    async def _stored(self, device: str, filename: str) -> bytes:
        body = await self._files.find((device, filename))
        if body is None:
            raise NotFound(
                "metadata-not-found", f"the director has no file {filename[:80]!r} for {device}", filename=filename[:80]
            )
        return body

    async def sign_ahead(self, wanted: Collection[str]) -> None:
        """Signs what these devices are about to ask for, in groups. A device whose set cannot be signed is left out."""
        names = sorted(wanted)
        for start in range(0, len(names), RENEW_BATCH):
            await self._sign(names[start : start + RENEW_BATCH])

    async def renew(self, limit: int = RENEW_BATCH) -> int:
        """Signs ahead of time for devices that changed or whose signatures grow old; how many files were signed.

        One transaction with at most `limit` devices: call it until it returns 0. A device whose assignment cannot be
        signed keeps what it has and does not hold up the others.
        """
        now, refused = self._clock(), dict[str, Conflict]()
        async with self._store.write() as connection:
            files = await self._sign_due(connection, await _standings(connection, _is_due(now), limit), refused, now)
        for device, error in refused.items():
            log.warning("not signed ahead of time: device=%s reason=%s", device, error.message)
        return files

    async def _bring_up_to_date(self, device: str) -> None:
        standing = await self._standing.find(device)
        if standing is None:
            async with self._store.read() as connection:
                standing = await standing_of(connection, device)  # says why it is not there
        now = self._clock()
        if standing.needs_set(now) or standing.needs_freshness(now):
            refused = await self._signing.find(device)
            if refused is not None:
                raise refused

    async def _sign(self, wanted: Collection[str]) -> Mapping[str, Conflict]:
        """What these devices lack, in one transaction; why, for those whose set cannot be signed."""
        now, refused = self._clock(), dict[str, Conflict]()
        async with self._store.write() as connection:
            await self._sign_due(connection, await _standings(connection, _served(wanted), len(wanted)), refused, now)
        return refused

    async def _sign_due(
        self, connection: AsyncConnection, standings: Sequence[_Standing], refused: dict[str, Conflict], now: float
    ) -> int:
        """How many files were signed."""
        sets = await self._sets(connection, [one for one in standings if one.needs_set(now)], refused)
        fresh = [one for one in standings if not one.needs_set(now) and one.needs_freshness(now)]
        files = await asyncio.to_thread(self._signed, sets, fresh, now)
        await put_files(connection, files)
        await set_versions(connection, [wanted for wanted, _ in sets])
        return len(files)

    async def _bodies(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], bytes]:
        of = pairs_among(director_files.c.device, director_files.c.filename, wanted)
        query = select(director_files.c.device, director_files.c.filename, director_files.c.body)
        async with self._store.read() as connection:
            rows = await connection.execute(query.where(of))
            return {(row.device, row.filename): bytes(row.body) for row in rows}

    async def _signable(self, wanted: Collection[str]) -> Mapping[str, _Standing]:
        async with self._store.read() as connection:
            return {one.device: one for one in await _standings(connection, _served(wanted), len(wanted))}

    async def _sets(
        self, connection: AsyncConnection, due: Sequence[_Standing], refused: dict[str, Conflict]
    ) -> list[tuple[DeviceSet, _Standing]]:
        """What is to be signed; `refused` gets why, for those whose set cannot be."""
        rows = await _assigned_rows(connection, [one.device for one in due])
        found: list[tuple[DeviceSet, _Standing]] = []
        for one in due:
            try:
                found.append((DeviceSet(one.device, one.next_set, _targets(rows.get(one.device, ()))), one))
            except Conflict as error:
                refused[one.device] = error
        return found

    def _signed(
        self, sets: Iterable[tuple[DeviceSet, _Standing]], fresh: Iterable[_Standing], now: float
    ) -> list[tuple[str, SignedFile]]:
        files = [
            (wanted.device, file)
            for wanted, standing in sets
            for file in sign_set(self._keys, wanted, _next_timestamp(wanted, standing), now)
        ]
        return files + [
            (one.device, sign_freshness(self._keys, one.set_version, one.timestamp_version + 1, now)) for one in fresh
        ]


def _next_timestamp(wanted: DeviceSet, standing: _Standing) -> int:
    """Never below the set's, so that the first has the same version as the set."""
    return max(wanted.version, standing.timestamp_version + 1)


_TIMESTAMPS = director_files.alias("timestamps")
_TARGETS = director_files.alias("targets")


async def standing_of(connection: AsyncConnection, device: str) -> _Standing:
    """Raises NotFound `device-not-found`, Conflict `device-retired`."""
    query = select(devices.c.retired_at).where(devices.c.id == device)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("device-not-found", f"no device {device}", device=device)
    if row.retired_at is not None:
        raise Conflict("device-retired", f"device {device} is retired: nothing is signed for it", device=device)
    (standing,) = await _standings(connection, devices.c.id == device, 1)
    return standing


async def _standings(connection: AsyncConnection, which: ColumnElement[bool], limit: int) -> list[_Standing]:
    stamps = and_(_TIMESTAMPS.c.device == devices.c.id, _TIMESTAMPS.c.filename == TIMESTAMP_FILE)
    sets = and_(_TARGETS.c.device == devices.c.id, _TARGETS.c.filename == TARGETS_FILE)
    query = (
        select(
            devices.c.id, devices.c.director_version, _TARGETS.c.version, _TARGETS.c.expires_at,
            _TIMESTAMPS.c.version, _TIMESTAMPS.c.expires_at,
        )
        .select_from(devices.outerjoin(_TIMESTAMPS, stamps).outerjoin(_TARGETS, sets))
        .where(which)
        .limit(limit)
    )  # fmt: skip
    return [
        _Standing(device, wanted, set_version or 0, set_until or 0.0, stamp_version or 0, stamp_until or 0.0)
        for device, wanted, set_version, set_until, stamp_version, stamp_until in await connection.execute(query)
    ]


def _served(wanted: Collection[str]) -> ColumnElement[bool]:
    return and_(among(devices.c.id, wanted), devices.c.retired_at.is_(None))


def _is_due(now: float) -> ColumnElement[bool]:
    """As `_Standing.needs_set` and `needs_freshness` say. Devices that never asked wait until they do."""
    return and_(
        devices.c.retired_at.is_(None),
        or_(
            _TARGETS.c.version < devices.c.director_version,
            _TARGETS.c.expires_at < now + SET_LIFE_S / 2,
            _TIMESTAMPS.c.expires_at < now + FRESH_LIFE_S / 2,
        ),
    )


async def targets_of(connection: AsyncConnection, device: str) -> dict[str, TargetFile]:
    """The device's assignments as targets, with length, hash and counter as the image repository has them."""
    return _targets((await _assigned_rows(connection, [device])).get(device, ()))


async def _assigned_rows(connection: AsyncConnection, wanted: Sequence[str]) -> dict[str, list[Row[Any]]]:
    built = and_(
        modules.c.name == assignments.c.module,
        modules.c.version == assignments.c.version,
        modules.c.profile == assignments.c.profile,
    )
    query = (
        select(
            assignments, modules.c.publisher, modules.c.manifest_sha256, modules.c.manifest_size,
            modules.c.release_counter,
        )
        .select_from(assignments.outerjoin(modules, built))
        .where(among(assignments.c.device, wanted))
        .order_by(assignments.c.module)
    )  # fmt: skip
    found: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in await connection.execute(query):
        found[row.device].append(row)
    return found


def _targets(rows: Sequence[Row[Any]]) -> dict[str, TargetFile]:
    """A candidate is left out where the main version is not older (it may have been signed again since), or does not
    serve: the device would refuse the whole set as holding an older release.
    """
    mains = {row.module: row.release_counter or 0 for row in rows if row.role == MAIN and row.mode == "serve"}
    wanted = (
        row for row in rows if row.role == MAIN or (row.release_counter or 0) > mains.get(row.module, sys.maxsize)
    )
    return {target.path: target for target in map(_target, wanted)}


def _target(row: Row[Any]) -> TargetFile:
    assignment = to_assignment(row)
    if row.release_counter is None:
        raise Conflict(
            "module-not-signed",
            f"module {assignment.module} version {assignment.version} for {assignment.profile} is assigned to "
            f"{row.device} but not signed; the device keeps what it has",
        )
    path = str(TargetPath(row.publisher, assignment.module, assignment.version, assignment.profile))
    custom = DirectorCustom(
        hardware_id=assignment.profile,
        release_counter=row.release_counter,
        deployment=assignment.deployment,
        mode=assignment.mode,
        sampling=assignment.sampling,
        config=assignment.config,
        share=assignment.share,
        salt=assignment.salt,
    )
    fields = {"custom": to_custom(custom)}
    return TargetFile(row.manifest_size, {"sha256": row.manifest_sha256}, path, fields)


async def put_root(connection: AsyncConnection, root: SignedFile) -> None:
    """The next root of all devices; those before stay, because devices walk from one to the next."""
    await put_files(connection, [(ALL_DEVICES, root)])


async def put_files(connection: AsyncConnection, files: Sequence[tuple[str, SignedFile]]) -> None:
    """Each file in the place of the one before."""
    if not files:
        return
    same = and_(director_files.c.device == bindparam("of"), director_files.c.filename == bindparam("named"))
    names = [{"of": device, "named": file.filename} for device, file in files]
    await connection.execute(delete(director_files).where(same), names)
    rows = [
        {
            "device": device,
            "filename": file.filename,
            "version": file.version,
            "body": file.body,
            "expires_at": file.expires_at,
        }
        for device, file in files
    ]
    await connection.execute(insert(director_files), rows)


async def set_versions(connection: AsyncConnection, signed: Sequence[DeviceSet]) -> None:
    if not signed:
        return
    change = update(devices).where(devices.c.id == bindparam("of")).values(director_version=bindparam("at"))
    await connection.execute(change, [{"of": one.device, "at": one.version} for one in signed])
