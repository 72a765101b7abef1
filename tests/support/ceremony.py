"""People with offline keys, for tests of ceremonies: what they read of a hub, and signing with the keys of a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import Key
from sqlalchemy import select
from tuf.api.metadata import Metadata, Root, Targets

from cloud_hub.clock import Clock
from cloud_hub.operator import releases, rotation, signing, trusted
from cloud_hub.operator.trusted import PublishedImage
from cloud_hub.operator.verify import Source
from cloud_hub.store.tables import director_files, image_files
from cloud_hub.trust.ceremony import Ceremony, Outcome
from cloud_hub.trust.director import ALL_DEVICES
from modules.targets import TargetPath
from support.devices import PROFILE
from support.trust import OPERATOR, TrustWorld

YEAR_S = 365 * 86_400.0


def no_secret(what: str) -> str:
    raise AssertionError(f"nobody is there to give the {what}")


@dataclass(frozen=True)
class People:
    """Holders of the keys in `folder`, who trust the first root of `world`."""

    world: TrustWorld
    ceremony: Ceremony
    folder: Path
    clock: Clock

    async def image(self) -> PublishedImage:
        files = await self._image_files()
        now = self.clock()
        return await asyncio.to_thread(trusted.read_image, files.get, files["1.root.json"], now)

    async def root(self, repository: str = "image") -> Metadata[Root]:
        files = await self._image_files() if repository == "image" else await self._director_files()
        return trusted.read_root(files.get, files["1.root.json"])

    async def source(self, *digests: str) -> Source:
        """The blobs that the hub holds."""
        blobs = {path.name: path.read_bytes() for path in self.world.paths.blobs.rglob("*") if path.is_file()}
        return Source((await self._image_files()).get, blobs.__getitem__)

    async def release(
        self, name: str, digest: str, publisher: str = "acme", used: Mapping[str, int] | None = None
    ) -> Metadata[Targets]:
        """The publisher's next list with the module in it, not signed."""
        wanted = releases.Release(TargetPath(publisher, name, 1, PROFILE), digest)
        source = await self.source()
        return releases.propose(await self.image(), publisher, [wanted], source, used or {}, self.until())

    def sign(self, metadata: Metadata[Targets] | Metadata[Root], *keys: str) -> str:
        """Signs with keys of the folder, whoever may sign; the file's text."""
        for name in keys:
            path = self.folder / f"{name}.pem"
            signing.sign(metadata, str(path), [signing.load_public(path)], no_secret)
        return metadata.to_bytes().decode()

    async def publish(self, metadata: Metadata[Targets], *keys: str, publisher: str = "acme") -> Outcome:
        return await self.ceremony.submit_publisher(publisher, self.sign(metadata, *keys), OPERATOR)

    async def next_targets(self) -> Metadata[Targets]:
        return rotation.next_targets(await self.image(), self.until())

    async def delegate(self, name: str, *keys: str, threshold: int = 1) -> Outcome:
        """Gives `name` these keys, signed by the targets key."""
        metadata = await self.next_targets()
        rotation.with_publisher(metadata, name, [self.public(key) for key in keys], threshold)
        return await self.ceremony.submit_targets(self.sign(metadata, "image-targets"), OPERATOR)

    async def next_root(
        self, repository: str = "image", keep: Sequence[str] = (), new: Sequence[str] = (), threshold: int = 0
    ) -> Metadata[Root]:
        current = (await self.root(repository)).signed
        kept = [self.public(name).keyid for name in keep]
        return rotation.next_root(current, kept, [self.public(name) for name in new], threshold, self.until())

    def public(self, name: str) -> Key:
        return signing.load_public(self.folder / f"{name}.pem")

    def new_key(self, name: str) -> None:
        signing.create(self.folder / f"{name}.pem", "ed25519", "")

    def until(self) -> datetime:
        return datetime.fromtimestamp(int(self.clock() + YEAR_S), UTC)

    async def _image_files(self) -> dict[str, bytes]:
        async with self.world.store.read() as connection:
            rows = await connection.execute(select(image_files.c.filename, image_files.c.body))
            return {name: bytes(body) for name, body in rows}

    async def _director_files(self) -> dict[str, bytes]:
        query = select(director_files.c.filename, director_files.c.body).where(director_files.c.device == ALL_DEVICES)
        async with self.world.store.read() as connection:
            return {name: bytes(body) for name, body in await connection.execute(query)}
