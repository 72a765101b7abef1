"""The alert gate of a rollout: whether the watch over inputs, outputs and labels speaks against the candidate.

Reads alerts that are there; weighs nothing itself. Called by `gates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, Select, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.builds import builds_of
from cloud_hub.monitoring.alert_book import LIVE, Resolution
from cloud_hub.rollouts.gate import AlertGate, Answer
from cloud_hub.rollouts.states import Rollout
from cloud_hub.store.engine import among
from cloud_hub.store.tables import alert_changes, alerts, executions

MAX_READ: Final = 200
SHOWN: Final = 3
_DEVICE: Final = "device:"
_BY_HAND: Final[tuple[Resolution, ...]] = ("by-hand", "normal")


async def look(connection: AsyncConnection, rollout: Rollout, gate: AlertGate) -> Answer:
    """`worse`, naming the alerts that are live, else `fine`. Either says what somebody has seen to or resolved; what
    became calm by itself is over, and not spoken of.
    """
    asked = _asked(rollout, gate)
    live = await _of_rollout(connection, rollout.id, await _read(connection, asked.where(alerts.c.state.in_(LIVE))))
    ended = await _ended_by_hand(connection, rollout, asked)
    said = f"; resolved by hand: {_listed(ended)}" if ended else ""
    if not live:
        return Answer("fine", f"no {'live ' if ended else ''}alert about version {rollout.version}{said}")
    return Answer("worse", f"alerts about version {rollout.version}: {_listed(live)}{said}")


def _asked(rollout: Rollout, gate: AlertGate) -> Select[Any]:
    """Alerts that the gate is about, in whatever state, with who changed them last."""
    here, since = alerts.c, rollout.created_at if rollout.started_at is None else rollout.started_at
    mine = and_(alert_changes.c.alert == here.id, alert_changes.c.change == here.state)
    last = select(alert_changes.c.actor).where(mine).order_by(alert_changes.c.id.desc()).limit(1)
    query = select(here.id, here.kind, here.severity, here.scope, here.state, last.scalar_subquery().label("actor"))
    return query.where(
        here.module == rollout.module,
        here.version == rollout.version,
        here.opened_at >= since,
        here.kind.in_(gate.kinds),
        here.severity.in_(gate.severities),
    )


async def _ended_by_hand(connection: AsyncConnection, rollout: Rollout, asked: Select[Any]) -> list[Row[Any]]:
    """Of the version's builds, which an index knows: resolved alerts are many."""
    builds = await builds_of(connection, rollout.module, rollout.version)
    how = alerts.c.evidence["resolution"].as_string()
    query = asked.where(alerts.c.manifest_sha256.in_(builds), alerts.c.state == "resolved", how.in_(_BY_HAND))
    return await _of_rollout(connection, rollout.id, await _read(connection, query))


async def _read(connection: AsyncConnection, query: Select[Any]) -> list[Row[Any]]:
    return list(await connection.execute(query.order_by(alerts.c.id.desc()).limit(MAX_READ)))


def _listed(found: list[Row[Any]]) -> str:
    """The gravest first."""
    found = sorted(found, key=lambda row: row.severity != "critical")
    shown = ", ".join(f"{row.severity} {row.kind} of {row.scope} ({_known(row)})" for row in found[:SHOWN])
    return shown + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _known(row: Row[Any]) -> str:
    if row.state == "open":
        return f"alert {row.id}"
    by = f" by {row.actor}" if row.actor else ""
    return f"alert {row.id}, {row.state}{by}"


async def _of_rollout(connection: AsyncConnection, rollout: str, found: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Without alerts of single devices that run the version because of something else."""
    single = [row.scope.removeprefix(_DEVICE) for row in found if row.scope.startswith(_DEVICE)]
    query = select(executions.c.device).where(executions.c.rollout == rollout, among(executions.c.device, single))
    members = set((await connection.execute(query)).scalars()) if single else set()
    return [r for r in found if not r.scope.startswith(_DEVICE) or r.scope.removeprefix(_DEVICE) in members]
