"""Whether a build runs beside what serves, where an alert is about it: then nobody's answers are at stake.

Called when an alert opens; what it found stays with the alert.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import MAIN
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.scopes import is_device
from cloud_hub.store.tables import assignments, modules

Way = Literal["", "shadow", "arm"]


async def way_of(connection: AsyncConnection, group: Group) -> Way:
    """Empty where some device of the group has it as its main version, or none has it any more."""
    built = and_(
        assignments.c.module == modules.c.name,
        assignments.c.version == modules.c.version,
        assignments.c.profile == modules.c.profile,
    )
    query = (
        select(assignments.c.role, assignments.c.mode)
        .select_from(modules.join(assignments, built))
        .where(modules.c.manifest_sha256 == group.manifest_sha256)
        .distinct()
    )
    if is_device(group.device):
        query = query.where(assignments.c.device == group.device)
    found = {(role, mode) for role, mode in await connection.execute(query)}
    if not found or any(role == MAIN for role, _ in found):
        return ""
    return "arm" if any(mode == "arm" for _, mode in found) else "shadow"
