"""The hubs whose seal counts here, and what they have told of their devices. Called by `api.sites`."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest
from cloud_hub.events import Events
from cloud_hub.sites import book
from cloud_hub.sites.book import Site
from cloud_hub.sites.seal import MAX_KEY_CHARS, fingerprint, parse_key
from cloud_hub.store.engine import Store
from modules.messages import DeviceReport, decode_report

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")


class NewSite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another hub, by the key that `mooring site key` prints there."""

    name: str
    public_key: Annotated[str, msgspec.Meta(max_length=MAX_KEY_CHARS)]


class CarriedDevice(msgspec.Struct, frozen=True):
    """A device of a site as its newest merged pack has it. `id` is SITE.DEVICE; times are the site's."""

    id: str
    site: str
    profile: str
    tags: dict[str, str]
    report_at: float | None
    made_at: float
    report: DeviceReport | None


class SiteRegistry:
    def __init__(self, store: Store, events: Events, clock: Clock) -> None:
        self._store, self._events, self._clock = store, events, clock

    async def add(self, new: NewSite, actor: str) -> Site:
        """Raises BadRequest `site-invalid` or `site-key-invalid`, Conflict `site-exists`."""
        if _NAME.fullmatch(new.name) is None:
            raise BadRequest("site-invalid", f"site: expected 1 to 20 of a-z, 0-9 and -, got {new.name[:40]!r}")
        parse_key(new.public_key)
        async with self._store.write() as connection:
            await book.add(connection, new.name, new.public_key, self._clock())
            said = {"fingerprint": fingerprint(new.public_key)}
            await self._events.record(connection, "site.added", actor, new.name, **said)
            return next(one for one in await book.listed(connection) if one.name == new.name)

    async def remove(self, name: str, actor: str) -> None:
        """Raises NotFound `site-not-found`."""
        async with self._store.write() as connection:
            await book.remove(connection, name)
            await self._events.record(connection, "site.removed", actor, name)

    async def get(self, name: str) -> Site:
        """Raises NotFound `site-not-found`."""
        async with self._store.read() as connection:
            await book.key_of(connection, name)
            return next(one for one in await book.listed(connection) if one.name == name)

    async def devices(self, name: str, limit: int, after: str) -> list[CarriedDevice]:
        """By id. Raises NotFound `site-not-found`."""
        async with self._store.read() as connection:
            await book.key_of(connection, name)
            rows = await book.devices_of(connection, name, limit, after)
        return [
            CarriedDevice(
                row.id, row.site, row.profile, dict(row.tags), row.report_at, row.made_at,
                decode_report(row.report) if row.report else None,
            )
            for row in rows
        ]  # fmt: skip

    async def list(self) -> list[Site]:
        async with self._store.read() as connection:
            return await book.listed(connection)
