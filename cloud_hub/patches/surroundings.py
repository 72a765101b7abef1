"""What the encoder must know beside the two files: which models describe them, and what the devices can decode.

Called by `build` before each build.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

import msgspec
from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.errors import NotFound
from cloud_hub.patches.queue import Patch
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from firmware_profiles.profile import DeviceProfile
from modules.errors import ManifestError
from modules.manifest import Manifest, decode_manifest

# There the decoder has no Zstandard (see pyproject.toml): such devices get patches that do without.
WITHOUT_ZSTANDARD = frozenset({"armv7l"})


class Model(msgspec.Struct, frozen=True):
    """An ONNX model by its digest, and what it calls the file that holds its tensors."""

    sha256: str
    location: str


class Surroundings(msgspec.Struct, frozen=True):
    """`models` describe base and target where these hold a model's external data."""

    models: tuple[Model, Model] | None = None
    zstandard: bool = True


async def surroundings(store: Store, blobs: Blobs, catalog: Mapping[str, DeviceProfile], job: Patch) -> Surroundings:
    """From the manifests of both versions."""
    query = select(modules.c.version, modules.c.profile, modules.c.manifest_sha256).where(
        modules.c.name == job.module, modules.c.version.in_((job.base_version, job.version))
    )
    async with store.read() as connection:
        rows = (await connection.execute(query)).all()
    before: Model | None = None
    after: Model | None = None
    profiles = set()
    for row in rows:
        try:
            manifest = decode_manifest(await blobs.read(row.manifest_sha256))
        except (NotFound, ManifestError):
            continue
        if row.version == job.base_version:
            before = before or _model(manifest, job.base)
        elif any(entry.sha256 == job.target for entry in manifest.files):
            after = after or _model(manifest, job.target)
            profiles.add(row.profile)
    known = [catalog[name] for name in profiles if name in catalog]
    zstandard = all(profile.arch not in WITHOUT_ZSTANDARD for profile in known)
    return Surroundings((before, after) if before and after else None, zstandard)


def _model(manifest: Manifest, file: str) -> Model | None:
    """The module's model, where the file lies beside it."""
    path = next((entry.path for entry in manifest.files if entry.sha256 == file), "")
    model = manifest.runtime.model
    if not path or path == model or not model.endswith(".onnx"):
        return None
    return Model(manifest.file(model).sha256, posixpath.relpath(path, posixpath.dirname(model) or "."))
