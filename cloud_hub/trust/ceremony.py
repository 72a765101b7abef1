"""Takes metadata that was signed where the offline keys are: checks, keeps until enough have signed, publishes.

The hub computes and signs nothing here but the snapshot and timestamp that announce what it took. Each submission is
one transaction with its events. Called by `api.trust`; the checks are `admission`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, Unprocessable
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import pending_metadata
from cloud_hub.trust import admission
from cloud_hub.trust import image_files as files
from cloud_hub.trust.admission import Count
from cloud_hub.trust.director import put_root
from cloud_hub.trust.keys import (
    DIRECTOR_SNAPSHOT,
    DIRECTOR_TARGETS,
    DIRECTOR_TIMESTAMP,
    IMAGE_SNAPSHOT,
    IMAGE_TIMESTAMP,
    Keys,
)
from cloud_hub.trust.releases import check_targets, devices_with, mark_signed
from cloud_hub.trust.signing import SignedFile
from cloud_hub.trust.standing import Repository, RoleState, current_root, read_states

_ONLINE_OF_IMAGE = {Snapshot.type: IMAGE_SNAPSHOT, Timestamp.type: IMAGE_TIMESTAMP}
_ONLINE_OF_DIRECTOR = {
    Targets.type: DIRECTOR_TARGETS,
    Snapshot.type: DIRECTOR_SNAPSHOT,
    Timestamp.type: DIRECTOR_TIMESTAMP,
}


class Outcome(msgspec.Struct, frozen=True):
    """What became of a submission: published, or waiting until `threshold` keys have signed."""

    repository: Repository
    role: str
    version: int
    published: bool
    signed_by: tuple[str, ...]
    threshold: int
    notes: tuple[str, ...] = ()


class Pending(msgspec.Struct, frozen=True):
    """A proposal that waits. `metadata` is its TUF file: whoever signs next checks it and adds a signature."""

    repository: Repository
    role: str
    version: int
    signatures: int
    submitted_at: float
    submitted_by: str
    metadata: str


@dataclass(frozen=True)
class _Proposal:
    """A submission with the signatures that were collected before, and how far they reach."""

    repository: Repository
    role: str
    metadata: Metadata[Any]  # Root or Targets; which one the caller knows
    body: bytes
    count: Count
    actor: str

    @property
    def version(self) -> int:
        return int(self.metadata.signed.version)

    @property
    def file(self) -> SignedFile:
        expires_at = self.metadata.signed.expires.timestamp()
        return SignedFile(f"{self.version}.{self.role}.json", self.version, self.body, expires_at)

    def outcome(self, *notes: str) -> Outcome:
        count = self.count
        return Outcome(
            self.repository, self.role, self.version, count.complete, count.signed, count.threshold, tuple(notes)
        )


class Ceremony:
    """What people with offline keys do to the two repositories."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._events = events
        self._keys = keys
        self._clock = clock

    async def states(self) -> list[RoleState]:
        async with self._store.read() as connection:
            return await read_states(connection)

    async def pending(self) -> list[Pending]:
        """What still makes sense to sign: proposals for the version after the one that is published."""
        async with self._store.read() as connection:
            rows = (await connection.execute(select(pending_metadata))).all()
            known = {(state.repository, state.role): state.version or 0 for state in await read_states(connection)}
        return [
            Pending(
                row.repository, row.role, row.version, len(Metadata.from_bytes(row.body).signatures),
                row.submitted_at, row.submitted_by, row.body.decode(),
            )
            for row in rows
            if row.version == known.get((row.repository, row.role), -1) + 1
        ]  # fmt: skip

    async def submit_publisher(self, publisher: str, text: str, actor: str) -> Outcome:
        """A publisher's list of modules. Raises as `admission`, and Unprocessable `manifest-unknown`, `target-invalid`,
        Conflict `counter-too-low`.
        """
        metadata = admission.parse(text, Targets, publisher)
        async with self._store.write() as connection:
            _, snapshot = await files.online(connection)
            top = await files.load(connection, snapshot, "targets.json", Targets)
            known = f"{publisher}.json" in snapshot.meta
            current = await files.load(connection, snapshot, f"{publisher}.json", Targets) if known else None
            if publisher not in (admission.roles_of(top).roles or {}):
                raise admission.not_delegated(publisher)
            admission.check_step(publisher, metadata.signed, current.version if current else 0, self._clock())
            changed = admission.check_publisher(publisher, current, metadata.signed)
            counters = await check_targets(connection, self._blobs, changed)
            metadata = await _with_earlier(connection, "image", publisher, metadata)
            count = admission.count(top, publisher, metadata)
            proposal = _Proposal("image", publisher, metadata, _bytes(metadata), count, actor)
            if not await self._complete(connection, proposal):
                return proposal.outcome()
            await files.announce(connection, self._keys, proposal.file, f"{publisher}.json", self._clock())
            for path, counter in counters.items():
                await mark_signed(connection, path, counter, self._clock())
                subject = f"{path.name}/{path.version}/{path.profile}"
                await self._events.record(connection, "module.signed", actor, subject, release_counter=counter)
        return proposal.outcome(*(f"{path} has release counter {counter}" for path, counter in counters.items()))

    async def submit_targets(self, text: str, actor: str) -> Outcome:
        """The top-level targets: who publishes, with which keys. Raises as `admission`, and Conflict
        `publisher-not-resigned`.
        """
        metadata = admission.parse(text, Targets, Targets.type)
        async with self._store.write() as connection:
            root = await current_root(connection, "image")
            _, snapshot = await files.online(connection)
            current = await files.load(connection, snapshot, "targets.json", Targets)
            admission.check_step(Targets.type, metadata.signed, current.version, self._clock())
            admission.check_top(metadata.signed, Targets.type)
            await self._check_still_signed(connection, snapshot, current, metadata.signed)
            metadata = await _with_earlier(connection, "image", Targets.type, metadata)
            count = admission.count(root, Targets.type, metadata)
            proposal = _Proposal("image", Targets.type, metadata, _bytes(metadata), count, actor)
            if not await self._complete(connection, proposal):
                return proposal.outcome()
            # A publisher that is no longer delegated to stays in the snapshot: TUF clients refuse one that forgets.
            await files.announce(connection, self._keys, proposal.file, "targets.json", self._clock())
            notes = await self._record_publishers(connection, current, metadata.signed, actor)
        return proposal.outcome(*notes)

    async def submit_root(self, repository: Repository, text: str, actor: str) -> Outcome:
        """The next root. Raises as `admission`, and Unprocessable `root-unusable`."""
        role = f"{repository} root"
        metadata = admission.parse(text, Root, role)
        async with self._store.write() as connection:
            current = await current_root(connection, repository)
            admission.check_step(role, metadata.signed, current.version, self._clock())
            admission.check_root(current, metadata.signed, self._online(repository), role)
            if repository == "image":
                await _check_targets_hold(connection, metadata.signed, role)
            metadata = await _with_earlier(connection, repository, Root.type, metadata)
            count = admission.count_root(current, metadata, role)
            proposal = _Proposal(repository, Root.type, metadata, _bytes(metadata), count, actor)
            if not await self._complete(connection, proposal):
                return proposal.outcome()
            if repository == "image":
                await files.put(connection, proposal.file)
            else:
                await put_root(connection, proposal.file)
            details = {"version": proposal.version, "signed_by": count.signed}
            await self._events.record(connection, "trust.root-rotated", actor, repository, **details)
        return proposal.outcome()

    def _online(self, repository: Repository) -> dict[str, str]:
        names = _ONLINE_OF_IMAGE if repository == "image" else _ONLINE_OF_DIRECTOR
        return {role: self._keys.signer(name).public_key.keyid for role, name in names.items()}

    async def _complete(self, connection: AsyncConnection, proposal: _Proposal) -> bool:
        """Whether enough have signed; else the proposal is kept. In the place of any other for the same role."""
        repository, role = proposal.repository, proposal.role
        mine = (pending_metadata.c.repository == repository, pending_metadata.c.role == role)
        await connection.execute(delete(pending_metadata).where(*mine))
        if proposal.count.complete:
            return True
        row = {"repository": repository, "role": role, "version": proposal.version, "body": proposal.body}
        about = {"submitted_at": self._clock(), "submitted_by": proposal.actor}
        await connection.execute(insert(pending_metadata).values(**row, **about))
        await self._events.record(
            connection, "trust.pending", proposal.actor, f"{repository}/{role}",
            version=proposal.version, signed_by=proposal.count.signed, threshold=proposal.count.threshold,
        )  # fmt: skip
        return False

    async def _check_still_signed(
        self, connection: AsyncConnection, snapshot: Snapshot, current: Targets, proposed: Targets
    ) -> None:
        """New keys of a publisher that stays must already have signed what it lists, or devices refuse all of it."""
        before = admission.roles_of(current).roles or {}
        for name in admission.roles_of(proposed).roles or {}:
            role = f"{name}.json"
            if name not in before or role not in snapshot.meta:
                continue
            listed = Metadata[Targets].from_bytes(
                await files.body_of(connection, f"{snapshot.meta[role].version}.{role}")
            )
            if not proposed.get_verification_result(name, listed.signed_bytes, listed.signatures):
                raise Conflict(
                    "publisher-not-resigned",
                    f"{name}: what it lists now is not signed by enough of its new keys; add the new key beside the "
                    "old, sign with both, then take the old away, or revoke the publisher; nothing was changed",
                )

    async def _record_publishers(
        self, connection: AsyncConnection, current: Targets, proposed: Targets, actor: str
    ) -> list[str]:
        """An event for each publisher that came, went or changed keys; and what that means for devices."""
        before, after = admission.roles_of(current).roles or {}, admission.roles_of(proposed).roles or {}
        notes: list[str] = []
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if old == new:
                continue
            kind = "trust.publisher-revoked" if new is None else "trust.publisher-set"
            details = {"keys": new.keyids, "threshold": new.threshold} if new else {}
            await self._events.record(connection, kind, actor, name, **details)
            devices = await devices_with(connection, name) if new is None else 0
            if devices:
                notes.append(f"{devices} devices are assigned modules of {name}: they keep what runs and take nothing")
        return notes


async def _with_earlier(
    connection: AsyncConnection, repository: Repository, role: str, metadata: Metadata[Any]
) -> Metadata[Any]:
    """With the signatures that others have given to the same content before."""
    mine = (pending_metadata.c.repository == repository, pending_metadata.c.role == role)
    body = (await connection.execute(select(pending_metadata.c.body).where(*mine))).scalar_one_or_none()
    if body is not None:
        earlier: Metadata[Any] = Metadata.from_bytes(body)
        if earlier.signed_bytes == metadata.signed_bytes:
            metadata.signatures.update({**earlier.signatures, **metadata.signatures})
    return metadata


async def _check_targets_hold(connection: AsyncConnection, proposed: Root, role: str) -> None:
    _, snapshot = await files.online(connection)
    body = await files.body_of(connection, f"{snapshot.meta['targets.json'].version}.targets.json")
    listed = Metadata[Targets].from_bytes(body)
    if not proposed.get_verification_result(Targets.type, listed.signed_bytes, listed.signatures):
        raise Unprocessable(
            "root-unusable",
            f"{role}: the targets that are published are not signed by the targets keys in it; have them signed with "
            "the new key too, then propose this root; nothing was changed",
        )


def _bytes(metadata: Metadata[Any]) -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=True))
