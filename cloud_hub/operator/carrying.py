"""A module that another hub has released, from a folder into this hub: verified from that hub's root, then uploaded.

Called by `mooring site import`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from cloud_hub.operator import verify
from cloud_hub.operator.cli.session import ModuleRef
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.errors import FileError, OperatorError, VerificationFailed
from cloud_hub.packaging import ModuleRelease
from modules.manifest import decode_manifest
from modules.targets import TargetPath


async def import_bundle(hub: HubClient, folder: Path, module: ModuleRef, root: Path, publisher: str) -> ModuleRelease:
    """Nothing is sent before everything holds. Raises VerificationFailed, FileError, OperatorError."""
    if not module.profile:
        raise OperatorError("profile-missing", "expected NAME:VERSION/PROFILE")
    found = await asyncio.to_thread(_verified, folder, module, root, publisher)
    blobs = folder / "blobs"
    manifest = decode_manifest((blobs / found.manifest_sha256).read_bytes())
    for sha256 in (found.manifest_sha256, *sorted({entry.sha256 for entry in manifest.files})):
        uploaded = await hub.upload(blobs / sha256)
        if uploaded.sha256 != sha256:
            raise FileError("bundle-changed", f"{blobs / sha256}: changed while it was read; nothing was taken in")
    return await hub.import_module(found.manifest_sha256)


def _verified(folder: Path, module: ModuleRef, root: Path, publisher: str) -> verify.Verification:
    source = verify.folder_source(folder)
    try:
        pinned = root.read_bytes()
    except OSError as error:
        raise FileError("root-unreadable", f"{root}: {error.strerror}; nothing was taken in") from error
    known = [publisher] if publisher else verify.publishers(source)
    if len(known) != 1:
        raise VerificationFailed("publisher-missing", f"{folder}: name the --publisher; there are {', '.join(known)}")
    path = TargetPath(known[0], module.name, module.version, module.profile)
    return verify.verify(path, source, pinned, str(root))
