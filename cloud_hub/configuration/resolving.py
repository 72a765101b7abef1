"""What devices get by a revision: the rule of `document`, with the database saying which overrides are theirs.

Functions over a connection, a few statements for as many devices as a caller assigns at once. Called by the rollout
engine when it assigns, and by `configurations`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.configuration import book
from cloud_hub.configuration.document import Document, resolve
from cloud_hub.desired import MAIN
from cloud_hub.errors import BadRequest
from cloud_hub.query import Moment, Query, parse
from cloud_hub.store.among import among
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.tables import assignments
from cloud_hub.store.tables import devices as device_rows
from modules.configuration import config_digest

# A device is what it is and where it belongs; what it does just now is nothing that a configuration could follow.
LASTING: Final = frozenset({"id", "profile", "arch", "tags", "groups", "accelerators"})
_NO_MOMENT: Final = Moment(0.0, 0.0)  # which nothing that lasts depends on


async def standing(connection: AsyncConnection, module: str) -> int:
    """The revision that stands; 0 where there is none."""
    return await book.standing(connection, module)


async def resolved(
    connection: AsyncConnection, module: str, revision: int, devices: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The configuration of each device by that revision (0: nothing); devices that are not there are left out.

    Equal configurations may be one object: not to be changed. Raises NotFound `configuration-not-found`.
    """
    if not revision:
        return {device: {} for device in devices}
    return await resolved_by(connection, await book.document(connection, module, revision), devices)


async def resolved_by(
    connection: AsyncConnection, document: Document, devices: Collection[str]
) -> dict[str, dict[str, Any]]:
    """As `resolved`, by a document."""
    shared: dict[tuple[int, ...], dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for device, numbers in (await matching(connection, document, devices)).items():
        if document.own(device) is not None:
            found[device] = resolve(document, numbers, device)
            continue
        if numbers not in shared:
            shared[numbers] = resolve(document, numbers, "")
        found[device] = shared[numbers]
    return found


async def matching(
    connection: AsyncConnection, document: Document, devices: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """The numbers of the targets that each device matches, ascending."""
    queries = [target_query(override.target) for override in document.targets]
    columns = [query.where(_NO_MOMENT).label(f"m{index}") for index, query in enumerate(queries)]
    found: dict[str, tuple[int, ...]] = {}
    for some in in_slices(sorted(devices)):
        rows = await connection.execute(select(device_rows.c.id, *columns).where(among(device_rows.c.id, some)))
        found.update({row[0]: tuple(index for index, holds in enumerate(row[1:]) if holds) for row in rows})
    return found


async def changing(connection: AsyncConnection, module: str, revision: int, devices: Collection[str]) -> set[str]:
    """Those of the devices that have the module assigned, and get another configuration by the revision."""
    held = await assigned(connection, module, devices)
    wanted = await resolved(connection, module, revision, held.keys())
    return {device for device, config in wanted.items() if config_digest(config) != config_digest(held[device])}


async def assigned(connection: AsyncConnection, module: str, devices: Collection[str]) -> dict[str, dict[str, Any]]:
    """What those of the devices are directed to have that have the module."""
    found: dict[str, dict[str, Any]] = {}
    for some in in_slices(sorted(devices)):
        query = select(assignments.c.device, assignments.c.config).where(
            assignments.c.module == module, among(assignments.c.device, some), *main_only()
        )
        found.update((row.device, row.config or {}) for row in await connection.execute(query))
    return found


def main_only() -> tuple[ColumnElement[bool], ...]:
    """Not candidates beside the main version, which have what it has."""
    return (assignments.c.role == MAIN,)


def target_query(text: str) -> Query:
    """Raises BadRequest `query-invalid`, or `target-changes` for what a device is only now and then."""
    query = parse(text)
    passing = sorted(query.needs() - LASTING)
    if passing:
        raise BadRequest(
            "target-changes",
            f"{text!r}: expected conditions on {', '.join(sorted(LASTING))}, got one on {', '.join(passing)}, which a "
            "device is only now and then; nothing was changed",
        )
    return query
