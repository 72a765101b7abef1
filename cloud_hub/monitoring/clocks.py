"""Windows of a clock that was set back: a device's outbox is in order of time, so what lies far before what was counted
of it already was not seen then.

Such windows would stand among looks of long ago, where nobody looks for them, and the fleet's would hold them as its
own. They are refused, and told like anything else that cannot be used. Called by `committing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.intake import CountedWindow, Parsed, Problem
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.tables import look_scopes

# Rows may say that they are of up to seven days ago (event time), and then come in windows of that time.
MAX_BACK_S: Final = 8 * 86_400.0

Marks = dict[tuple[str, str], float]  # by manifest and device


async def newest_looks(connection: AsyncConnection, sent: Sequence[tuple[str, list[Parsed]]]) -> Marks:
    """Start of the newest look of each device, by what it sends windows of."""
    windows = [item for _, items in sent for item in items if isinstance(item, CountedWindow)]
    manifests = sorted({item.window.manifest_sha256 for item in windows})
    found: Marks = {}
    for some in in_slices(sorted({device for device, _ in sent})):
        query = select(look_scopes.c.manifest_sha256, look_scopes.c.device, look_scopes.c.last).where(
            look_scopes.c.manifest_sha256.in_(manifests), look_scopes.c.device.in_(some)
        )
        found |= {(row.manifest_sha256, row.device): row.last for row in await connection.execute(query)}
    return found


def without_gone_back(device: str, items: list[Parsed], newest: Marks) -> list[Parsed]:
    """The entries, with a Problem in the place of each window too far back; `newest` goes on with the others."""
    found: list[Parsed] = []
    for item in items:
        if not isinstance(item, CountedWindow):
            found.append(item)
            continue
        key, end = (item.window.manifest_sha256, device), item.window.end
        back_s = newest.get(key, end) - end
        if back_s > MAX_BACK_S:
            text = f"window: its clock went back: {back_s / 86_400:.1f} days before what it has sent already"
            found.append(Problem("clock", text, item.window.manifest_sha256, item.window.module))
            continue
        newest[key] = max(newest.get(key, end), end)
        found.append(item)
    return found
