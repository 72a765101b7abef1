"""Claim tokens: who may let which devices in, how often and until when. Only digests are kept.

A token is for one device unless made for a batch, and bound to an id, to a pattern of ids, or to none. Called by the
API (made, listed, revoked) and by `devices`, which takes one for each device that it lets in.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict, HubError, NotFound, Unauthorized
from cloud_hub.events import Events
from cloud_hub.query import check_tags
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import claim_tokens, devices
from firmware_profiles.profile import DeviceProfile
from modules.enrolment import ClaimToken
from modules.errors import ModuleError
from modules.targets import check_device_id

MIN_TOKEN_LIFE_S = 60.0
MAX_TOKEN_LIFE_S = 30 * 86_400.0
MAX_USES = 10_000
PATTERN = r"[a-z0-9*-]{1,63}"  # what ids are made of, and * for any text
MAX_LISTED = 1000
NOTED_EVERY_S = 60.0
MAX_SAID = 10_000


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a claim token allows. Empty `device` or `profile`: any that is not there yet. Life in seconds.

    `device` may hold `*` for any text, and `uses` say how many devices the token lets in.
    """

    device: str = ""
    profile: str = ""
    tags: dict[str, str] = {}
    life_s: float = 3600.0
    uses: int = 1

    def __post_init__(self) -> None:
        if not MIN_TOKEN_LIFE_S <= self.life_s <= MAX_TOKEN_LIFE_S:
            raise ValueError(f"life_s: expected {MIN_TOKEN_LIFE_S:.0f} to {MAX_TOKEN_LIFE_S:.0f}, got {self.life_s}")
        if not 1 <= self.uses <= MAX_USES:
            raise ValueError(f"uses: expected 1 to {MAX_USES}, got {self.uses}")
        if self.uses > 1 and self.device and not is_pattern(self.device):
            raise ValueError(f"uses: expected 1 for the one device {self.device[:63]}, got {self.uses}")


class KnownToken(msgspec.Struct, frozen=True):
    """A claim token as operators see it, without its secret. Empty `device` or `profile`: any. Times in seconds."""

    id: str
    state: Literal["open", "used", "expired", "revoked"]
    device: str
    profile: str
    tags: dict[str, str]
    uses: int
    used: int
    created_by: str
    created_at: float
    expires_at: float


class IssuedToken(msgspec.Struct, frozen=True):
    """A claim token's text, of which the hub keeps only a digest, and the id by which it is listed and revoked."""

    token: str
    id: str


class Claims:
    """Every change is one transaction with its event."""

    def __init__(
        self, store: Store, events: Events, ca_sha256: str, catalog: Mapping[str, DeviceProfile], clock: Clock
    ) -> None:
        """`ca_sha256` is the digest of the server CA, by which devices know this hub."""
        self._store = store
        self._events = events
        self._ca_sha256 = ca_sha256
        self._catalog = catalog
        self._clock = clock
        self._said: dict[tuple[str | None, str, str], float] = {}

    async def create(self, new: NewToken, actor: str) -> IssuedToken:
        """Nobody can read the text again. Raises BadRequest, NotFound `profile-not-found`."""
        if new.device:
            _check_device(new.device)
        if new.profile:
            check_profile(self._catalog, new.profile)
        check_tags(new.tags)
        token, now = ClaimToken(secrets.token_urlsafe(32), self._ca_sha256), self._clock()
        row: dict[str, object] = {"id": secrets.token_hex(6), "device": new.device or None}
        row |= {
            "profile": new.profile or None,
            "tags": dict(new.tags),
            "uses": new.uses,
            "used": 0,
            "created_by": actor[:80],
        }
        row |= {"created_at": now, "expires_at": now + new.life_s, "secret_sha256": token.secret_sha256}
        async with self._store.write() as connection:
            await connection.execute(insert(claim_tokens).values(row))
            details = {"token": row["id"], "profile": new.profile, "life_s": new.life_s, "uses": new.uses}
            await self._events.record(connection, "token.created", actor, new.device or "any", **details)
        return IssuedToken(str(token), str(row["id"]))

    async def list(self, spent: bool = False) -> list[KnownToken]:
        """Newest first; those that let nobody in any more only on request."""
        query = select(claim_tokens).order_by(claim_tokens.c.created_at.desc(), claim_tokens.c.id).limit(MAX_LISTED)
        now = self._clock()
        if not spent:
            query = query.where(
                claim_tokens.c.revoked_at.is_(None),
                claim_tokens.c.expires_at > now,
                claim_tokens.c.used < claim_tokens.c.uses,
            )
        async with self._store.read() as connection:
            return [_known(row, now) for row in await connection.execute(query)]

    async def get(self, token_id: str) -> KnownToken:
        """Raises NotFound `token-not-found`."""
        async with self._store.read() as connection:
            return _known(await _by_id(connection, token_id), self._clock())

    async def revoke(self, token_id: str, actor: str) -> None:
        """From now on it lets nobody in. Again is harmless. Raises NotFound `token-not-found`."""
        async with self._store.write() as connection:
            row = await _by_id(connection, token_id)
            if row.revoked_at is not None:
                return
            change = update(claim_tokens).where(claim_tokens.c.id == token_id)
            await connection.execute(change.values(revoked_at=self._clock()))
            await self._events.record(
                connection, "token.revoked", actor, row.device or "any", token=token_id, used=row.used, uses=row.uses
            )

    async def check(self, token: ClaimToken, device: str, profile: str) -> None:
        """Whether `take` would work now. A refusal of a token that this hub made is recorded. Raises as `take`."""
        try:
            async with self._store.read() as connection:
                await _checked(connection, token, device, profile, self._clock())
        except HubError as error:
            await self.note_refusal(token, device, error)
            raise

    async def take(self, connection: AsyncConnection, token: ClaimToken, device: str, profile: str) -> KnownToken:
        """Uses the token once, for this device.

        Raises Unauthorized `token-unknown`, `token-used`, `token-expired`, `token-revoked`, `token-other-device` or
        `token-other-profile`, Conflict `device-exists` when the id is taken and the token is not made for exactly it,
        or made before the device was there.
        """
        now = self._clock()
        row = await _checked(connection, token, device, profile, now)
        this_token = claim_tokens.c.secret_sha256 == token.secret_sha256
        change = update(claim_tokens).where(this_token, claim_tokens.c.used < claim_tokens.c.uses)
        taken = await connection.execute(change.values(used=claim_tokens.c.used + 1, used_at=now, used_by=device))
        if taken.rowcount != 1:
            raise _refused(device, "used", "it has been used")
        return _known(row, now)

    async def note_refusal(self, token: ClaimToken, device: str, error: HubError) -> None:
        """Puts it into the audit trail when the token is ours, each kind once in a while: nobody floods that."""
        query = select(claim_tokens.c.id).where(claim_tokens.c.secret_sha256 == token.secret_sha256)
        async with self._store.read() as connection:
            known = (await connection.execute(query)).scalar_one_or_none()
        said, now = (known, device, error.key), self._clock()
        if known is not None and now - self._said.get(said, -NOTED_EVERY_S) >= NOTED_EVERY_S:
            if len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said[said] = now
            async with self._store.write() as connection:
                details = {"key": error.key, "token": known, "text": error.message}
                await self._events.record(connection, "device.refused", f"token of {device}", device, **details)


def is_pattern(device: str) -> bool:
    return "*" in device


def check_profile(catalog: Mapping[str, DeviceProfile], profile: str) -> None:
    """Raises NotFound `profile-not-found`."""
    if profile not in catalog:
        known = ", ".join(sorted(catalog))
        raise NotFound("profile-not-found", f"no device profile {profile}; known: {known}", profile=profile)


async def _checked(connection: AsyncConnection, token: ClaimToken, device: str, profile: str, now: float) -> Row[Any]:
    this_token = claim_tokens.c.secret_sha256 == token.secret_sha256
    row = (await connection.execute(select(claim_tokens).where(this_token))).one_or_none()
    if row is None:
        raise _refused(device, "unknown", "this hub did not make it")
    _check(row, device, profile, now)
    query = select(devices.c.created_at).where(devices.c.id == device)
    there = (await connection.execute(query)).scalar_one_or_none()
    # Whoever made a token before the device was there was never asked whether this device is theirs.
    if there is not None and (row.device != device or row.created_at < there):
        raise Conflict(
            "device-exists",
            f"device {device} is enrolled already: expected a token made for exactly this id, and made since then; "
            "nothing was changed",
            device=device,
        )
    return row


def _check(row: Row[Any], device: str, profile: str, now: float) -> None:
    if row.revoked_at is not None:
        raise _refused(device, "revoked", "an operator has revoked it")
    if row.used >= row.uses:
        times = "once" if row.uses == 1 else f"{row.uses} times"
        raise _refused(device, "used", f"it has been used {times}, as often as it may")
    if row.expires_at <= now:
        raise _refused(device, "expired", f"it ended {now - row.expires_at:.0f} s ago")
    if row.device is not None and not fnmatchcase(device, row.device):
        what = f"devices named {row.device}" if is_pattern(row.device) else "another device"
        raise _refused(device, "other-device", f"it is made for {what}")
    if row.profile not in (None, profile):
        raise _refused(device, "other-profile", f"it is made for profile {row.profile}, got {profile}")


def _refused(device: str, key: str, why: str) -> Unauthorized:
    return Unauthorized(
        f"token-{key}", f"claim token for {device}: {why}; the device was not enrolled, ask for a new token"
    )


async def _by_id(connection: AsyncConnection, token_id: str) -> Row[Any]:
    row = (await connection.execute(select(claim_tokens).where(claim_tokens.c.id == token_id))).one_or_none()
    if row is None:
        raise NotFound("token-not-found", f"no claim token {token_id[:16]!r}", id=token_id[:16])
    return row


def _known(row: Row[Any], now: float) -> KnownToken:
    state: Literal["open", "used", "expired", "revoked"] = "open"
    if row.revoked_at is not None:
        state = "revoked"
    elif row.used >= row.uses:
        state = "used"
    elif row.expires_at <= now:
        state = "expired"
    return KnownToken(
        id=row.id,
        state=state,
        device=row.device or "",
        profile=row.profile or "",
        tags=row.tags,
        uses=row.uses,
        used=row.used,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _check_device(device: str) -> None:
    try:
        if not is_pattern(device):
            check_device_id(device)
        elif not re.fullmatch(PATTERN, device):
            raise BadRequest("device-id-invalid", f"device: expected {PATTERN}, got {device[:80]!r}; no token was made")
    except ModuleError as error:
        raise BadRequest("device-id-invalid", f"{error}; no token was made") from error
