"""What private windows have spent, by device, module and day: the fleet's side of the accountant.

The device charges before a window leaves, and bounds it; here it is added up from what has come, so that an operator
can show it. Written by `monitoring.committing` in its transaction, served by `api.privacy`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Annotated, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.bounds import Limit
from cloud_hub.store.behind import behind
from cloud_hub.store.bulk import upsert
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import privacy_spent
from modules.privacy import DAY_S, epsilon_of
from modules.windows import Window

LATEST_S: Final = 1e13  # its day fits a column
DELTA: Final = 1e-6  # at which what was spent is shown, unless one asks for another


class PrivacyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Empty texts mean any; `since` is seconds since the epoch. `delta` is what epsilon is said at."""

    device: str = ""
    module: str = ""
    since: float = 0.0
    delta: float = DELTA
    limit: Limit = 200
    after: Annotated[str, msgspec.Meta(max_length=512)] = ""  # the cursor of the page before

    def __post_init__(self) -> None:
        if not 0.0 < self.delta <= 0.01:
            raise ValueError(f"delta: expected above 0 to 0.01, got {self.delta}")
        if not 0.0 <= self.since <= LATEST_S:
            raise ValueError(f"since: expected seconds since the epoch up to {LATEST_S:g}, got {self.since}")


class PrivacySpent(msgspec.Struct, frozen=True):
    """One day of a module on a device. What several modules tell of the same person adds up: sum their `rho`."""

    device: str
    module: str
    day: float
    rho: float
    epsilon: float
    windows: int


async def note_spent(connection: AsyncConnection, windows: Iterable[tuple[str, Window]]) -> None:
    """Add what new windows of devices have spent; those that are not private change nothing."""
    sums: dict[tuple[str, str, int], tuple[float, int]] = {}
    for device, window in windows:
        if window.rho > 0 and math.isfinite(window.rho):
            key = (device, window.module, int(window.start // DAY_S))
            rho, count = sums.get(key, (0.0, 0))
            sums[key] = (rho + window.rho, count + 1)
    rows = [
        {"device": device, "module": module, "day": day, "rho": rho, "windows": count}
        for (device, module, day), (rho, count) in sums.items()
    ]
    table = privacy_spent
    await upsert(
        connection, table, rows, lambda new: {"rho": table.c.rho + new.rho, "windows": table.c.windows + new.windows}
    )


class PrivacyAccounts:
    """Reads what was spent."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(
        self,
        query: PrivacyQuery,
        devices: Collection[str] | None = None,
        after: tuple[int, str, str] | None = None,
    ) -> list[PrivacySpent]:
        """Newest day first, behind the day, device and module of `after`; with `devices` only theirs."""
        table = privacy_spent
        statement = select(table).order_by(table.c.day.desc(), table.c.device, table.c.module).limit(query.limit)
        if query.device:
            statement = statement.where(table.c.device == query.device)
        if query.module:
            statement = statement.where(table.c.module == query.module)
        if query.since:
            statement = statement.where(table.c.day >= int(query.since // DAY_S))
        if after is not None:
            order = ((table.c.day, True), (table.c.device, False), (table.c.module, False))
            statement = statement.where(behind(order, after))
        if devices is not None:
            statement = statement.where(among(table.c.device, devices))
        async with self._store.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [
            PrivacySpent(
                row.device, row.module, row.day * DAY_S, row.rho, epsilon_of(row.rho, query.delta), row.windows
            )
            for row in rows
        ]
