"""How trust stands: every role with its keys, version and expiry, what waits for signatures, and what ends soon.

Reads the signed metadata itself, so it says what devices see. Called by `ceremony`, by `expiry` (warnings) and, over
the API, by `mooring trust status`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import Key, Role, Root, Signed, Snapshot, Targets, Timestamp

from cloud_hub.errors import NotFound
from cloud_hub.store.tables import director_files, image_files
from cloud_hub.trust import image_files as files
from cloud_hub.trust.director import ALL_DEVICES
from cloud_hub.trust.signing import payload_of

Repository = Literal["image", "director"]
REPOSITORIES: Final[tuple[Repository, ...]] = ("image", "director")
DAY_S = 86_400.0
# Six weeks: a ceremony needs people, and people have holidays.
WARN_OFFLINE_S = 42 * DAY_S
# What the hub renews by itself has half its life left; less than this means that it could not.
WARN_ONLINE_S = 2 * DAY_S


class KeyState(msgspec.Struct, frozen=True):
    """A public key by its id."""

    keyid: str
    keytype: str
    scheme: str


class RoleState(msgspec.Struct, frozen=True):
    """One role. `version` and `expires_at` are null for a publisher that has signed nothing yet, and for the director's
    online roles, which each device has of its own. `online`: the hub signs it by itself.
    """

    repository: Repository
    role: str
    threshold: int
    keys: tuple[KeyState, ...]
    online: bool
    version: int | None = None
    expires_at: float | None = None

    def warning(self, now: float) -> str:
        """What to do about its end; empty while that is far away."""
        if self.expires_at is None:
            return ""
        left = self.expires_at - now
        if left >= (WARN_ONLINE_S if self.online else WARN_OFFLINE_S):
            return ""
        when = f"ends in {left / DAY_S:.0f} days" if left > 0 else "HAS EXPIRED: devices take nothing new"
        return f"{self.repository} {self.role} version {self.version} {when}; {self._remedy}"

    @property
    def _remedy(self) -> str:
        if self.online:
            return "the hub renews it by itself while it runs: look at its log"
        if self.role == Root.type:
            return f"renew it with `mooring trust rotate-root --repository {self.repository}`"
        if self.role == Targets.type:
            return "renew it with `mooring trust renew --targets-key`"
        return f"its publisher renews it with `mooring module renew {self.role} --key`"


async def read_states(connection: AsyncConnection) -> list[RoleState]:
    """Every role of both repositories, the image repository first."""
    root = await current_root(connection, "image")
    stamp, snapshot = await files.online(connection)
    targets = await files.load(connection, snapshot, "targets.json", Targets)
    states = [
        _top("image", root, Root.type, root, online=False),
        _top("image", root, Targets.type, targets, online=False),
        _top("image", root, Snapshot.type, snapshot, online=True),
        _top("image", root, Timestamp.type, stamp, online=True),
    ]
    for name, role in sorted((targets.delegations.roles or {}).items()) if targets.delegations else ():
        listed = f"{name}.json" in snapshot.meta
        signed = await files.load(connection, snapshot, f"{name}.json", Targets) if listed else None
        keys = targets.delegations.keys if targets.delegations else {}
        states.append(_state("image", name, role, keys, signed, online=False))
    director = await current_root(connection, "director")
    states.append(_top("director", director, Root.type, director, online=False))
    own = (Targets.type, Snapshot.type, Timestamp.type)
    return states + [_state("director", name, director.roles[name], director.keys, None, online=True) for name in own]


async def current_root(connection: AsyncConnection, repository: Repository) -> Root:
    """The newest root. Its bytes are served as `N.root.json`."""
    return payload_of(await current_root_body(connection, repository), Root)


async def current_root_body(connection: AsyncConnection, repository: Repository) -> bytes:
    """Raises NotFound `metadata-not-found`."""
    if repository == "image":
        query = select(image_files.c.filename, image_files.c.body).where(image_files.c.filename.like("%.root.json"))
    else:
        query = select(director_files.c.filename, director_files.c.body).where(
            director_files.c.device == ALL_DEVICES, director_files.c.filename.like("%.root.json")
        )
    found = {int(name.partition(".")[0]): body for name, body in await connection.execute(query)}
    if not found:
        raise NotFound("metadata-not-found", f"the {repository} repository has no root", repository=repository)
    return bytes(found[max(found)])


def _top(repository: Repository, root: Root, name: str, signed: Signed, *, online: bool) -> RoleState:
    return _state(repository, name, root.roles[name], root.keys, signed, online=online)


def _state(
    repository: Repository, name: str, role: Role, keys: dict[str, Key], signed: Signed | None, *, online: bool
) -> RoleState:
    known = tuple(KeyState(keyid, keys[keyid].keytype, keys[keyid].scheme) for keyid in role.keyids if keyid in keys)
    if signed is None:
        return RoleState(repository, name, role.threshold, known, online)
    # python-tuf's times are UTC; older versions of it leave out the zone.
    expires_at = signed.expires.replace(tzinfo=UTC).timestamp()
    return RoleState(repository, name, role.threshold, known, online, signed.version, expires_at)


def as_date(expires_at: float) -> str:
    return f"{datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d}"
