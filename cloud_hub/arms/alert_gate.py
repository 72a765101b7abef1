"""The alert gate of a rollout: whether the watch over inputs, outputs and labels speaks against the candidate.

Reads alerts that are there; weighs nothing itself. Called by `gates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.alert_book import LIVE
from cloud_hub.rollouts.gate import AlertGate, Answer
from cloud_hub.rollouts.states import Rollout
from cloud_hub.store.engine import among
from cloud_hub.store.tables import alerts, executions

MAX_READ: Final = 200
SHOWN: Final = 3
_DEVICE: Final = "device:"


async def look(connection: AsyncConnection, rollout: Rollout, gate: AlertGate) -> Answer:
    """`worse`, naming the alerts, else `fine`."""
    since = rollout.created_at if rollout.started_at is None else rollout.started_at
    query = (
        select(*(alerts.c[name] for name in ("id", "kind", "severity", "scope")))
        .where(
            alerts.c.module == rollout.module,
            alerts.c.version == rollout.version,
            alerts.c.state.in_(LIVE),
            alerts.c.opened_at >= since,
            alerts.c.kind.in_(gate.kinds),
            alerts.c.severity.in_(gate.severities),
        )
        .order_by(alerts.c.id.desc())
        .limit(MAX_READ)
    )
    found = await _of_rollout(connection, rollout.id, (await connection.execute(query)).all())
    if not found:
        return Answer("fine", f"no alert about version {rollout.version}")
    found.sort(key=lambda row: row.severity != "critical")
    shown = ", ".join(f"{row.severity} {row.kind} of {row.scope} (alert {row.id})" for row in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Answer("worse", f"alerts about version {rollout.version}: {shown}{more}")


async def _of_rollout(connection: AsyncConnection, rollout: str, found: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Without alerts of single devices that run the version because of something else."""
    single = [row.scope.removeprefix(_DEVICE) for row in found if row.scope.startswith(_DEVICE)]
    query = select(executions.c.device).where(executions.c.rollout == rollout, among(executions.c.device, single))
    members = set((await connection.execute(query)).scalars()) if single else set()
    return [r for r in found if not r.scope.startswith(_DEVICE) or r.scope.removeprefix(_DEVICE) in members]
