"""The devices behind a scope, and the few of them that are worth a look: bounded, however large the fleet is.

Used by `spread`. Who has looks comes from `look_scopes`, one row per device; looks themselves are read of at most
MAX_LOOKED devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.scopes import FLEET, DeviceTraits, groups_of, is_group
from cloud_hub.monitoring.traits import Traits
from cloud_hub.store.tables import look_scopes, looks

MAX_MEMBERS: Final = 20_000
MAX_SUSPECTS: Final = 200
MAX_HEAVY: Final = 20
MAX_DRAWN: Final = 100
MAX_LOOKED: Final = MAX_SUSPECTS + MAX_HEAVY + MAX_DRAWN
MAX_NEWEST: Final = 100  # groups are among them


@dataclass(frozen=True)
class Population:
    """Devices with looks of one build: rows ever counted of each, the most first, and their groups.

    `order` is that of the kinds of groups.
    """

    rows: Mapping[str, int]
    groups: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]

    def members(self, scope: str) -> tuple[str, ...]:
        """Of the fleet or of a group, those with most rows first."""
        return tuple(self.rows) if scope == FLEET else tuple(self._members.get(scope, ()))

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for device in self.rows:
            for group in self.groups.get(device, ()):
                found.setdefault(group, []).append(device)
        return found

    def groups_of(self, device: str) -> tuple[str, ...]:
        return self.groups.get(device, ())


@dataclass(frozen=True)
class Chosen:
    """Devices to look at: `drawn` speak for all of them, `others` are those that are known for something."""

    drawn: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.drawn + self.others


async def population(
    connection: AsyncConnection, traits: Traits, group_by: Collection[str], manifest_sha256: str, since: float
) -> Population:
    """Devices with looks at `since` or later."""
    query = (
        select(look_scopes.c.device, look_scopes.c.rows)
        .where(look_scopes.c.manifest_sha256 == manifest_sha256, look_scopes.c.last >= since)
        .order_by(look_scopes.c.rows.desc(), look_scopes.c.device)
        .limit(MAX_MEMBERS)
    )
    found = (await connection.execute(query)).all()
    rows = {row.device: row.rows for row in found if row.device != FLEET and not is_group(row.device)}
    known = await traits.of(connection, rows)
    return Population(rows, {device: _groups(had, group_by) for device, had in known.items()}, tuple(group_by))


def choose(members: Collection[str], suspects: Collection[str], heavy: Collection[str]) -> Chosen:
    """All of a small population; of a large one those suspected, the heaviest, and some drawn for the rest.

    The draw depends on the ids alone, so that it is the same each time and not by rows.
    """
    there = set(members)
    if len(there) <= MAX_LOOKED:
        return Chosen(tuple(sorted(there)), ())
    drawn = set(sorted(there, key=lot)[:MAX_DRAWN])
    known = [*sorted(set(suspects) & there)[:MAX_SUSPECTS], *[d for d in heavy if d in there][:MAX_HEAVY]]
    return Chosen(tuple(sorted(drawn)), tuple(device for device in dict.fromkeys(known) if device not in drawn))


async def heaviest(connection: AsyncConnection, manifest_sha256: str, people: Population) -> list[str]:
    """Devices that have sent most rows in the newest looks of all."""
    latest = select(look_scopes.c.last).where(
        look_scopes.c.manifest_sha256 == manifest_sha256, look_scopes.c.device == FLEET
    )
    newest = (await connection.execute(latest)).scalar_one_or_none()
    query = (
        select(looks.c.device)
        .where(looks.c.manifest_sha256 == manifest_sha256, looks.c.start == newest)
        .order_by(looks.c.rows.desc())
        .limit(MAX_NEWEST)
    )
    return [device for device in (await connection.execute(query)).scalars() if device in people.rows]


def heavy_in(people: Population, scope: str, newest: Collection[str]) -> list[str]:
    """Devices of a scope that may outweigh the others: by all rows ever, and by those of the newest look."""
    members = people.members(scope)
    inside = set(members)
    found = [*members[: MAX_HEAVY // 2], *(device for device in newest if device in inside)]
    return list(dict.fromkeys(found))[:MAX_HEAVY]


def _groups(traits: DeviceTraits | None, group_by: Collection[str]) -> tuple[str, ...]:
    return () if traits is None else groups_of(traits, group_by)


def lot(device: str) -> bytes:
    """Its place in a draw: by its id alone, so that it is the same each time and not by rows."""
    return hashlib.sha256(device.encode()).digest()
