"""Put a module into an image: the last step of a build whose request names a base. Called by `packaging`.

Model, known answers and tensors are looked at as for a process; then base, worker and the module's files become an
image (`cloud_hub.images`), whose digest goes into the manifest that is signed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from cloud_hub.building.bench import Bench
from cloud_hub.building.request import BuildRequest, ContainerRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.images.bases import Bases
from cloud_hub.images.build import build_image
from firmware_profiles.profile import DeviceProfile
from modules.bundle import FileEntry
from modules.containers import Container
from modules.errors import ManifestError
from modules.images import FOLDER, INNER_MANIFEST, ImageError
from modules.manifest import NEWER_AGENT, Manifest, encode_manifest

_UNKNOWN = f"sha256:{'0' * 64}"  # filled in by the build


async def in_container(
    manifest: Manifest, request: BuildRequest, profile: DeviceProfile, bench: Bench, bases: Bases
) -> Manifest:
    """The same module in a container, or as it is where none was asked for.

    Raises Unprocessable `image-refused`, `dockerfile-refused`; Unavailable where a registry or an engine is not
    reached; NotFound for an upload that is not there.
    """
    if request.container is None:
        return manifest
    asked = request.container
    wanted = _wanted(asked)
    base = await bases.get(asked.base, asked.dockerfile, profile.arch, bench)
    if any(entry.path == INNER_MANIFEST or entry.path.startswith(f"{FOLDER}/") for entry in manifest.files):
        raise Unprocessable("path-reserved", f"{INNER_MANIFEST} and {FOLDER}/ are kept for what the build writes")
    inner = bench.folder / INNER_MANIFEST
    inner.write_bytes(encode_manifest(manifest))
    wheels = [await bench.fetch(digest, f"wheels/{number}.whl") for number, digest in enumerate(asked.wheels)]
    try:
        async with bench.blobs.at_hand(*(entry.sha256 for entry in manifest.files)) as files:
            paths = dict(zip((entry.path for entry in manifest.files), files, strict=True)) | {INNER_MANIFEST: inner}
            built = await asyncio.to_thread(
                build_image, base, paths, profile.arch, bench.folder / "built", wanted, wheels
            )
    except ImageError as error:
        raise Unprocessable("image-refused", f"{error}; nothing was built") from error
    more = await bench.store({INNER_MANIFEST: inner, **built.files})
    return _outer(manifest, built.container, more, base)


def _wanted(asked: ContainerRequest) -> Container:
    said = {name: getattr(asked, name) for name in asked.__struct_fields__ if name in Container.__struct_fields__}
    try:
        return Container(FOLDER, _UNKNOWN, **said)
    except ManifestError as error:
        raise Unprocessable("container-invalid", f"{error}; nothing was built") from error


def _outer(manifest: Manifest, container: Container, more: tuple[FileEntry, ...], base: Path) -> Manifest:
    """The image's interpreter is not the device's, and its layers are unpacked beside the slot."""
    runtime = msgspec.structs.replace(manifest.runtime, kind="container", container=container)
    unpacked = 3 * (base.stat().st_size // 2**20 + 1)
    requires = msgspec.structs.replace(
        manifest.requires,
        python=(),
        agent_version=manifest.requires.agent_version or NEWER_AGENT,
        disk_mib=manifest.requires.disk_mib + unpacked if manifest.requires.disk_mib else 0,
    )
    files = tuple(sorted((*manifest.files, *more), key=lambda entry: entry.path))
    return msgspec.structs.replace(manifest, runtime=runtime, requires=requires, files=files)
