"""What a module, a device or a group of devices is compared with now: what was set for it, else its training data.

Counts of a period or of another version were summed when they were chosen (`watches`); what all others count is read
here when it is needed. Used by `reports` and `readings`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.builds import builds_of
from cloud_hub.monitoring import looks
from cloud_hub.monitoring.evidence import IntArray
from cloud_hub.monitoring.integers import unpack
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.reference import TRAINING, BesideOthers, Reference, filled, matched
from cloud_hub.monitoring.references import References, Watched
from cloud_hub.monitoring.scopes import is_device, of_name
from cloud_hub.monitoring.usual import Usual, usual_of
from cloud_hub.monitoring.verdict import LookSeries
from cloud_hub.store.among import among
from cloud_hub.store.tables import looks as looks_table
from cloud_hub.store.tables import watch_counts, watches

MAX_LOOKS: Final = 10_000  # of a reference
PAGE: Final = 500
MAX_BUILDS: Final = 64


@dataclass(frozen=True)
class Basis:
    """What looks are weighed against. Those before `since` are in the reference and are not weighed."""

    own: Layout
    reference: str
    since: float | None = None
    others: Usual | None = None
    device: str = ""

    def layout(self, looks: LookSeries) -> Layout:
        """For exactly these looks."""
        if self.others is None:
            return self.own
        counts = self.others.beside(self.device, looks, self.own.cells)
        return BesideOthers(self.own, counts) if counts.any() else self.own


@dataclass(frozen=True)
class Counted:
    """Rows, counts per cell, and joint features (none where none were sent)."""

    rows: int
    counts: IntArray
    joint: IntArray


class Bases:
    """Finds them."""

    def __init__(self, references: References) -> None:
        self._references = references

    async def basis(
        self, connection: AsyncConnection, watched: Watched, group: Group, chosen: Reference | None = None
    ) -> Basis:
        """What the group is to be compared with: as chosen now, else as set for its scope, else for the module."""
        if chosen is not None:
            one = await self.count(connection, watched, "fleet", chosen)
            return await self._applied(connection, watched, group, chosen, one)
        return (await self.of(connection, watched, [group]))[group]

    async def of(self, connection: AsyncConnection, watched: Watched, groups: Collection[Group]) -> dict[Group, Basis]:
        """Of groups of this build, each as set for its scope, else for the module."""
        scopes = {"fleet", *(group.scope for group in groups)}
        query = select(watches).where(watches.c.module == watched.module, among(watches.c.scope, scopes))
        rows = {row.scope: row for row in await connection.execute(query)}
        found = {}
        for group in groups:
            row = rows.get(group.scope) or rows.get("fleet")
            found[group] = await self._set(connection, watched, group, row)
        return found

    async def _set(self, connection: AsyncConnection, watched: Watched, group: Group, row: Row[Any] | None) -> Basis:
        if row is None:
            return Basis(watched.layout, str(TRAINING))
        reference = msgspec.convert(row.reference, Reference)
        one = await self._kept(connection, watched, row.scope)
        return await self._applied(connection, watched, group, reference, one)

    async def _applied(
        self, connection: AsyncConnection, watched: Watched, group: Group, reference: Reference, one: Counted
    ) -> Basis:
        if reference.kind == "fleet":
            return await self._beside_others(connection, watched, group)
        # A version is not compared with itself: no row may be on both sides.
        if not one.rows or (reference.kind == "version" and reference.version == watched.version):
            return Basis(watched.layout, str(TRAINING))
        joint = one.joint if one.joint.size else None
        layout = watched.layout.against(filled(watched.layout, one.counts), joint)
        return Basis(layout, str(reference), reference.end if reference.kind == "period" else None)

    async def _beside_others(self, connection: AsyncConnection, watched: Watched, group: Group) -> Basis:
        """Only of a device, and where there are enough others."""
        if is_device(group.device) and len(own := await looks.series(connection, watched.layout, group)):
            others = await usual_of(connection, watched.layout, group.manifest_sha256, own.starts[0])
            if others is not None:
                return Basis(watched.layout, "fleet", others=others, device=group.device)
        return Basis(watched.layout, str(TRAINING))

    async def count(self, connection: AsyncConnection, build: Watched, scope: str, reference: Reference) -> Counted:
        """Rows, counts and joint features of a reference in the cells of a build."""
        total = Counted(0, np.zeros(build.layout.cells, np.int64), np.zeros(0, np.int64))
        if reference.kind not in ("period", "version") or not build.layout.cells:
            return total
        version = reference.version if reference.kind == "version" else None
        for sha256 in await builds_of(connection, build.module, version, MAX_BUILDS):
            other = await self._references.get(sha256)
            if other is not None and other.layout.cells:
                span = (reference.start, reference.end) if reference.kind == "period" else None
                total = _added(build, total, other, await _summed(connection, other, of_name(scope), span))
        return total

    async def _kept(self, connection: AsyncConnection, watched: Watched, scope: str) -> Counted:
        query = select(watch_counts).where(
            watch_counts.c.module == watched.module,
            watch_counts.c.scope == scope,
            watch_counts.c.reference_sha256 == watched.reference_sha256,
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            return Counted(0, np.zeros(watched.layout.cells, np.int64), np.zeros(0, np.int64))
        return Counted(row.rows, unpack(row.counts), unpack(row.joint))


async def _summed(connection: AsyncConnection, build: Watched, scope: str, span: tuple[float, float] | None) -> Counted:
    """Of the looks of a scope, the newest MAX_LOOKS of them at most, page by page."""
    where = [looks_table.c.manifest_sha256 == build.manifest_sha256, looks_table.c.device == scope]
    if span is not None:
        where += [looks_table.c.start >= span[0], looks_table.c.start < span[1]]
    columns = (looks_table.c.start, looks_table.c.rows, looks_table.c.counts, looks_table.c.joint)
    rows, counts, joint = 0, np.zeros(build.layout.cells, np.int64), np.zeros(0, np.int64)
    for _ in range(MAX_LOOKS // PAGE):
        query = select(*columns).where(*where).order_by(looks_table.c.start.desc()).limit(PAGE)
        page = (await connection.execute(query)).all()
        for row in page:
            rows, counts = rows + row.rows, counts + unpack(row.counts)
            joint = _plus(joint, unpack(row.joint))
        if len(page) < PAGE:
            break
        where = [*where[:2], *where[2:], looks_table.c.start < page[-1].start]
        await asyncio.sleep(0)
    return Counted(rows, counts, joint)


def _added(build: Watched, total: Counted, other: Watched, more: Counted) -> Counted:
    same = other.reference_sha256 == build.reference_sha256
    counts = more.counts if same else matched(build.layout, other.layout, more.counts)
    if not counts.any():
        return total
    return Counted(
        total.rows + more.rows, total.counts + counts, _plus(total.joint, more.joint) if same else total.joint
    )


def _plus(left: IntArray, right: IntArray) -> IntArray:
    if not left.size or not right.size:
        return left if left.size else right
    return np.asarray(left + right)
