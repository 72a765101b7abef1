"""What `mooring module export` wrote, made into what other programs take: a folder of files, an archive of an image.

Called by the commands `module export` and `module run`, after verification.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from cloud_hub.operator.errors import FileError, OperatorError
from modules.errors import ModuleError
from modules.images import load_archive, read_image
from modules.layers import stream
from modules.manifest import Manifest, decode_manifest

MANIFEST_FILE = "manifest.json"  # as in a device's slot


def exported_manifest(bundle: Path, manifest_sha256: str) -> Manifest:
    """Raises FileError, ManifestError."""
    return decode_manifest(_blob(bundle, manifest_sha256).read_bytes())


def write_slot(bundle: Path, manifest_sha256: str, folder: Path) -> Manifest:
    """The module's files under their own names, with the manifest beside them. Raises FileError, ManifestError."""
    manifest = exported_manifest(bundle, manifest_sha256)
    try:
        for entry in manifest.files:
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_blob(bundle, entry.sha256), target)
        shutil.copyfile(_blob(bundle, manifest_sha256), folder / MANIFEST_FILE)
    except OSError as error:
        raise FileError("not-written", f"{folder}: {error}; nothing was run") from error
    return manifest


def write_image(bundle: Path, manifest: Manifest, tag: str, target: Path) -> None:
    """What `docker load` takes, every file compared with its digest. Raises FileError, OperatorError."""
    container = manifest.runtime.container
    if container is None:
        text = f"{manifest.name}:{manifest.version}: expected a module in a container; build it with --base"
        raise OperatorError("not-a-container", text)
    digests = {entry.path: entry.sha256 for entry in manifest.files}

    def opened(path: str) -> BinaryIO:
        if path not in digests:
            raise FileError("bundle-incomplete", f"{path}: it is not among the module's files")
        return _blob(bundle, digests[path]).open("rb")

    def read(path: str) -> bytes:
        with opened(path) as file:
            return file.read()

    try:
        image = read_image(container, read)
        with target.open("wb") as file:
            for block in stream(load_archive(image, manifest, tag), opened):
                file.write(block)
    except (OSError, ModuleError) as error:
        target.unlink(missing_ok=True)
        raise FileError("not-written", f"{target}: {error}; no image was written") from error


def _blob(bundle: Path, sha256: str) -> Path:
    path = bundle / "blobs" / sha256
    if not path.is_file():
        raise FileError("bundle-incomplete", f"{bundle}: no file {sha256}; export it again")
    return path
