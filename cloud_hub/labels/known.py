"""What each build of a module answers: read from its manifest and its reference profile, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.labels.match import Known
from cloud_hub.labels.outputs import Outputs
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.manifest import decode_manifest
from modules.windows import decode_reference

MAX_KEPT: Final = 64
NOTHING: Final = Outputs("", {})


class KnownOutputs:
    """By manifest digest. What a digest names never changes, so nothing is read twice while it is kept."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._kept: OrderedDict[str, Outputs] = OrderedDict()

    async def of(self, manifests: Iterable[str]) -> Known:
        """Outputs of each of them; none for one that is not of this hub."""
        found = {sha256: await self._get(sha256) for sha256 in manifests}
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found

    async def _get(self, sha256: str) -> Outputs:
        if sha256 in self._kept:
            self._kept.move_to_end(sha256)
            return self._kept[sha256]
        query = select(modules.c.name).where(modules.c.manifest_sha256 == sha256).limit(1)
        async with self._store.read() as connection:
            if (await connection.execute(query)).scalar_one_or_none() is None:
                return NOTHING
        manifest = decode_manifest(await self._blobs.read(sha256))
        reference = None
        if manifest.reference:
            body = await self._blobs.read(manifest.file(manifest.reference).sha256)
            reference = decode_reference(body)
        self._kept[sha256] = Outputs.of(manifest, reference)
        return self._kept[sha256]
