"""What is looked up: counts by state over whole tables, each in one query, at most once in `refresh_s` seconds.

No query reads windows, samples, looks or events one by one. Called by `room`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from sqlalchemy import ColumnElement, Label, and_, case, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.config import HubPaths
from cloud_hub.revocations import read_list
from cloud_hub.store.tables import (
    alerts,
    cursors,
    deliveries,
    devices,
    events,
    executions,
    look_scopes,
    modules,
    rollouts,
    streams,
    webhooks,
)
from cloud_hub.trust.standing import read_states

MAX_MODULES: Final = 500  # the newest builds
_FLEET: Final = "*"
Counts = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class Snapshot:
    """Counts by their labels, in the order in which `exposition` names them."""

    devices: Counts = field(default_factory=dict)
    streams: Counts = field(default_factory=dict)
    rollouts: Counts = field(default_factory=dict)
    executions: Counts = field(default_factory=dict)
    alerts: Counts = field(default_factory=dict)
    webhooks: Counts = field(default_factory=dict)
    deliveries: Counts = field(default_factory=dict)
    behind: Counts = field(default_factory=dict)
    module_rows: Counts = field(default_factory=dict)
    database_bytes: float = 0.0


async def read(connection: AsyncConnection, now: float, offline_after_s: float) -> Snapshot:
    """One consistent view of the database."""
    return Snapshot(
        devices=await _devices(connection, now, offline_after_s),
        streams=await _grouped(connection, streams.c.stream),
        rollouts=await _grouped(connection, rollouts.c.state),
        executions=await _grouped(connection, executions.c.state, where=_running()),
        alerts=await _grouped(
            connection, alerts.c.kind, alerts.c.severity, alerts.c.module, alerts.c.state,
            where=alerts.c.state != "resolved",
        ),
        webhooks=await _grouped(connection, webhooks.c.state),
        deliveries=await _grouped(connection, deliveries.c.state),
        behind=await _behind(connection),
        module_rows=await _module_rows(connection),
        database_bytes=await _database_bytes(connection),
    )  # fmt: skip


async def _grouped(
    connection: AsyncConnection, *columns: ColumnElement[str] | Label[str], where: ColumnElement[bool] | None = None
) -> Counts:
    query = select(*columns, func.count()).group_by(*columns)
    if where is not None:
        query = query.where(where)
    return {tuple(str(part) for part in row[:-1]): float(row[-1]) for row in await connection.execute(query)}


async def _devices(connection: AsyncConnection, now: float, offline_after_s: float) -> Counts:
    state = case(
        (devices.c.retired_at.is_not(None), "retired"),
        (devices.c.report_at.is_(None), "never"),
        (devices.c.report_at < now - offline_after_s, "silent"),
        else_="reporting",
    ).label("state")
    # Grouped by its name: PostgreSQL would take the same expression with other parameters for another one.
    query = select(state, func.count()).group_by(text("state"))
    found = {(str(name),): float(count) for name, count in await connection.execute(query)}
    return {(name,): found.get((name,), 0.0) for name in ("reporting", "silent", "never", "retired")}


def _running() -> ColumnElement[bool]:
    going = select(rollouts.c.id).where(rollouts.c.state.in_(("running", "paused")))
    return executions.c.rollout.in_(going)


async def _behind(connection: AsyncConnection) -> Counts:
    """Events that followers have still to take: of active webhooks the one that is furthest behind, others each."""
    active = set((await connection.execute(select(webhooks.c.id).where(webhooks.c.state == "active"))).scalars())
    newest = (await connection.execute(select(func.max(events.c.id)))).scalar_one() or 0
    found: dict[tuple[str, ...], float] = {}
    for name, event in await connection.execute(select(cursors.c.name, cursors.c.event)):
        follower, _, webhook = str(name).partition(":")
        if not webhook or webhook in active:
            found[(follower,)] = max(found.get((follower,), 0.0), float(newest - event))
    return found


async def _module_rows(connection: AsyncConnection) -> Counts:
    newest = select(modules).order_by(modules.c.created_at.desc()).limit(MAX_MODULES).subquery()
    here = and_(look_scopes.c.manifest_sha256 == newest.c.manifest_sha256, look_scopes.c.device == literal(_FLEET))
    query = select(newest.c.name, newest.c.version, newest.c.profile, look_scopes.c.rows).join(look_scopes, here)
    return {
        (name, str(version), profile): float(rows) for name, version, profile, rows in await connection.execute(query)
    }


async def _database_bytes(connection: AsyncConnection) -> float:
    if connection.dialect.name == "postgresql":
        return float((await connection.execute(text("SELECT pg_database_size(current_database())"))).scalar_one())
    query = text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
    return float((await connection.execute(query)).scalar_one())


async def metadata_ends(connection: AsyncConnection) -> Counts:
    """When signed metadata ends, in seconds since the epoch, by repository and role."""
    states = await read_states(connection)
    return {(state.repository, state.role): state.expires_at for state in states if state.expires_at is not None}


async def ends(paths: HubPaths, now: float) -> Counts:
    """When certificates and the revocation list end, in seconds since the epoch, by file."""
    return await asyncio.to_thread(_ends, paths, now)


def _ends(paths: HubPaths, now: float) -> Counts:
    found: dict[tuple[str, ...], float] = {}
    for path in (paths.server_ca_crt, paths.device_ca_crt, paths.server_crt, paths.hub_client_crt):
        if path.is_file():
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            found[(path.name,)] = certificate.not_valid_after_utc.timestamp()
    revoked = read_list(paths.crl, now)
    return found if revoked is None else found | {(paths.crl.name,): revoked.ends_at}
