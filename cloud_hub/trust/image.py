"""The image repository: TUF metadata that says which module manifests exist and what hardware they are for.

One repository for all devices. Root and targets keys may be offline; snapshot and timestamp are signed here. Each
publication (a module signed by its publisher, then a new snapshot, then a new timestamp) is one transaction, so a
reader sees the state before or the state after. Files lie in the table `image_files` and are served as they are.
Called by the API (sign, metadata for offline verification), by `link` (devices fetch metadata), and by `trust.setup`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    MetaFile,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import image_files, modules
from cloud_hub.store.together import Together
from cloud_hub.trust.image_files import (
    TIMESTAMP_FILE,
    announce,
    body_of,
    direct_anew,
    load,
    missing,
    online,
    prune,
    publish_online,
    put,
)
from cloud_hub.trust.keys import (
    IMAGE_ROOTS,
    IMAGE_SNAPSHOT,
    IMAGE_TARGETS,
    IMAGE_TIMESTAMP,
    Keys,
    publisher_key,
)
from cloud_hub.trust.signing import (
    LONG_LIFE_S,
    SHORT_LIFE_S,
    expiry,
    needs_signing,
    payload_of,
    sign,
    sign_root,
)
from modules.manifest import decode_manifest, manifest_digest
from modules.targets import ImageCustom, TargetPath, to_custom

FIRST_ROOT = "1.root.json"
_ROLES = {Targets.type: IMAGE_TARGETS, Snapshot.type: IMAGE_SNAPSHOT, Timestamp.type: IMAGE_TIMESTAMP}


class ImageRepository:
    """The files of the repository, and the acts that change them."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._events = events
        self._keys = keys
        self._clock = clock
        self._files = Together(self._bodies)
        self._renewals = Together(self._renewed)

    async def create(self, publisher: str) -> None:
        """Signs version 1 of everything, with `publisher` delegated to. Needs every key, root keys too."""
        now = self._clock()
        targets = Targets(expires=expiry(now, LONG_LIFE_S), delegations=_delegate_to(self._keys, publisher))
        files = [
            sign_root(self._keys, IMAGE_ROOTS, _ROLES, consistent=True, now=now),
            sign(self._keys, targets, "1.targets.json", IMAGE_TARGETS),
            sign(
                self._keys, Targets(expires=expiry(now, LONG_LIFE_S)), f"1.{publisher}.json", publisher_key(publisher)
            ),
        ]
        async with self._store.write() as connection:
            for file in files:
                await put(connection, file)
            meta = {"targets.json": MetaFile(1), f"{publisher}.json": MetaFile(1)}
            await publish_online(connection, self._keys, meta, (1, 1), now)

    async def root_json(self) -> str:
        """The root that devices start from."""
        async with self._store.read() as connection:
            return (await body_of(connection, FIRST_ROOT)).decode()

    async def metadata(self, filename: str) -> bytes:
        """A file as signed. Raises NotFound `metadata-not-found`: TUF clients ask for roots that do not exist yet.

        Asking for the timestamp, where every client starts, first renews signatures that have lost half their life.
        """
        if filename == TIMESTAMP_FILE:
            await self._renewals.find(filename)
        body = await self._files.find(filename)
        if body is None:
            raise missing(filename)
        return body

    async def _renewed(self, _wanted: Collection[str]) -> Mapping[str, bool]:
        await self.renew()
        return {}

    async def _bodies(self, wanted: Collection[str]) -> Mapping[str, bytes]:
        query = select(image_files.c.filename, image_files.c.body).where(among(image_files.c.filename, wanted))
        async with self._store.read() as connection:
            return {row.filename: bytes(row.body) for row in await connection.execute(query)}

    async def version(self) -> int:
        """The newest timestamp's version."""
        async with self._store.read() as connection:
            return payload_of(await body_of(connection, TIMESTAMP_FILE), Timestamp).version

    async def sign_module(self, name: str, version: int, profile: str, actor: str) -> int:
        """Publishes the module's manifest as a target and gives it the next release counter of its name.

        Signing it again gives a new, higher counter: that is the way back to an older version. Devices that have the
        module assigned are directed anew, because both repositories must name the same counter. Raises NotFound
        `module-not-found`, Conflict `offline-key` or `manifest-differs`.
        """
        async with self._store.write() as connection:
            path, target = await self._target(connection, name, version, profile)
            counter = await _next_counter(connection, name)
            target.unrecognized_fields["custom"] = to_custom(ImageCustom((profile,), counter))
            await self._publish(connection, path.publisher, str(path), target)
            where = (modules.c.name == name, modules.c.version == version, modules.c.profile == profile)
            change = update(modules).where(*where).values(release_counter=counter, signed_at=self._clock())
            await connection.execute(change)
            await direct_anew(connection, name, version, profile)
            await self._events.record(
                connection, "module.signed", actor, f"{name}/{version}/{profile}", release_counter=counter
            )
        return counter

    async def _target(
        self, connection: AsyncConnection, name: str, version: int, profile: str
    ) -> tuple[TargetPath, TargetFile]:
        where = (modules.c.name == name, modules.c.version == version, modules.c.profile == profile)
        row = (await connection.execute(select(modules).where(*where))).one_or_none()
        if row is None:
            raise NotFound(
                "module-not-found",
                f"no module {name} version {version} for {profile}; nothing was signed",
                name=name,
                version=version,
                profile=profile,
            )
        path = TargetPath(row.publisher, name, version, profile)
        body = await self._blobs.read(row.manifest_sha256)
        manifest = decode_manifest(body)
        said = (manifest.name, manifest.version, manifest.profile, manifest_digest(body))
        if said != (name, version, profile, row.manifest_sha256):
            raise Conflict(
                "manifest-differs",
                f"module {name} version {version} for {profile}: its manifest says {said[0]} version {said[1]} for "
                f"{said[2]}; nothing was signed",
            )
        return path, TargetFile(len(body), {"sha256": row.manifest_sha256}, str(path))

    async def _publish(self, connection: AsyncConnection, publisher: str, path: str, target: TargetFile) -> None:
        """The publisher's targets with `target` in them, and the snapshot and timestamp that announce it."""
        _, snapshot = await online(connection)
        role = f"{publisher}.json"
        delegations = (await load(connection, snapshot, "targets.json", Targets)).delegations
        if role not in snapshot.meta or delegations is None or publisher not in (delegations.roles or {}):
            raise Conflict("publisher-unknown", f"publisher {publisher}: not delegated to; nothing was signed")
        listed = await load(connection, snapshot, role, Targets)
        listed.targets[path] = target
        listed.version += 1
        listed.expires = expiry(self._clock(), LONG_LIFE_S)
        file = sign(self._keys, listed, f"{listed.version}.{role}", publisher_key(publisher))
        await announce(connection, self._keys, file, role, self._clock())

    async def _sign_long(
        self, connection: AsyncConnection, snapshot: Snapshot, role: str, targets: Targets, key: str
    ) -> None:
        targets.version += 1
        targets.expires = expiry(self._clock(), LONG_LIFE_S)
        await put(connection, sign(self._keys, targets, f"{targets.version}.{role}", key))
        await prune(connection, role, targets.version)
        snapshot.meta[role] = MetaFile(targets.version)

    async def renew(self) -> None:
        """Signs anew what has lost half its life, as far as the keys are here; nothing when nothing has."""
        async with self._store.read() as connection:
            if not await self._is_due(connection, TIMESTAMP_FILE, SHORT_LIFE_S):
                return
        async with self._store.write() as connection:
            if not await self._is_due(connection, TIMESTAMP_FILE, SHORT_LIFE_S):
                return  # another request has just done it
            stamp, snapshot = await online(connection)
            for role in tuple(snapshot.meta):
                await self._renew_long(connection, snapshot, role)
            versions = snapshot.version + 1, stamp.version + 1
            await publish_online(connection, self._keys, snapshot.meta, versions, self._clock())

    async def _renew_long(self, connection: AsyncConnection, snapshot: Snapshot, role: str) -> None:
        """Targets and publishers are renewed here only on a hub that holds their keys."""
        key = IMAGE_TARGETS if role == "targets.json" else publisher_key(role.removesuffix(".json"))
        current = f"{snapshot.meta[role].version}.{role}"
        if self._keys.has(key) and await self._is_due(connection, current, LONG_LIFE_S):
            targets = await load(connection, snapshot, role, Targets)
            await self._sign_long(connection, snapshot, role, targets, key)

    async def _is_due(self, connection: AsyncConnection, filename: str, life_s: float) -> bool:
        query = select(image_files.c.expires_at).where(image_files.c.filename == filename)
        expires_at = (await connection.execute(query)).scalar_one_or_none()
        return expires_at is not None and needs_signing(expires_at, self._clock(), life_s)


def _delegate_to(keys: Keys, publisher: str) -> Delegations:
    key = keys.signer(publisher_key(publisher)).public_key
    role = DelegatedRole(publisher, [key.keyid], 1, terminating=True, paths=[TargetPath.pattern(publisher)])
    return Delegations({key.keyid: key}, {publisher: role})


async def _next_counter(connection: AsyncConnection, name: str) -> int:
    query = select(func.coalesce(func.max(modules.c.release_counter), 0)).where(modules.c.name == name)
    return int((await connection.execute(query)).scalar_one()) + 1
