"""Which modules are known here, and the layout of their reference profiles: read from blobs, kept in memory.

Used by `ingest` to check windows and by `alerts` to weigh looks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.monitoring.layout import Layout
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.manifest import decode_manifest
from modules.windows import ReferenceProfile, decode_reference

MAX_KEPT: Final = 64


@dataclass(frozen=True, eq=False)
class Watched:
    """A module under watch. Without a reference profile `reference_sha256` is empty and the layout has no features."""

    module: str
    version: int
    manifest_sha256: str
    reference_sha256: str
    layout: Layout


class References:
    """By manifest digest. What a digest names never changes, so nothing is read twice while it is kept."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._kept: OrderedDict[str, Watched] = OrderedDict()

    async def get(self, manifest_sha256: str) -> Watched | None:
        """None for a manifest that is not of this hub's modules."""
        if manifest_sha256 in self._kept:
            self._kept.move_to_end(manifest_sha256)
            return self._kept[manifest_sha256]
        query = select(modules.c.name).where(modules.c.manifest_sha256 == manifest_sha256).limit(1)
        async with self._store.read() as connection:
            if (await connection.execute(query)).scalar_one_or_none() is None:
                return None
        self._kept[manifest_sha256] = watched = await self._read(manifest_sha256)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return watched

    async def _read(self, manifest_sha256: str) -> Watched:
        manifest = decode_manifest(await self._blobs.read(manifest_sha256))
        if not manifest.reference:
            return Watched(manifest.name, manifest.version, manifest_sha256, "", Layout(ReferenceProfile(0, ())))
        sha256 = manifest.file(manifest.reference).sha256
        layout = Layout(decode_reference(await self._blobs.read(sha256)))
        return Watched(manifest.name, manifest.version, manifest_sha256, sha256, layout)
