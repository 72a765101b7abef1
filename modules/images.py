"""The image of a container as files of a module: an OCI image layout that lacks one layer, that of the module's files.

    image/oci-layout, image/index.json     what tools look for
    image/blobs/sha256/...                 the image's manifest, its config, the base's layers, that of the worker
    everything else                        the model and its company, which the last layer puts below /mooring/module

The image's manifest has the digest that the module's manifest (and so TUF) signs; it names config and layers by theirs.
`load_archive` gives what `docker load` takes, with the last layer made from the files. Pure. Built by
`cloud_hub.images`; read by `agent.containers` and by the operator's export.
Source: OCI image specification 1.1; Docker image specification 1.2 (manifest.json), which every engine loads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from modules.bundle import FileEntry, sha256_hex
from modules.containers import Container
from modules.errors import MALFORMED, ModuleError
from modules.layers import Content, Member, Piece, archive, module_layer, size
from modules.manifest import Manifest

FOLDER = "image"
MODULE_ROOT = "mooring/module"  # inside the image
CODE_ROOT = "mooring/code"
SITE_ROOT = "mooring/site"
INNER_MANIFEST = "module.json"  # the manifest without its container, for the worker of an image that runs on its own
STANDALONE_PORT = 8000
MODULE_LAYER = "dev.mooring.layer"  # annotation; its value "module" says: made from the module's files
MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_LAYERS = 127
_T = TypeVar("_T")

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
GZIP_LAYER_TYPE = f"{LAYER_TYPE}+gzip"


class ImageError(ModuleError):
    """An image is not what its digest says, or not one that can be loaded."""

    key = "image-refused"


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A blob by its digest (sha256:...) and size in bytes. Names as the specification has them."""

    mediaType: str
    digest: str
    size: int
    annotations: dict[str, str] = {}

    @property
    def hex(self) -> str:
        """Raises ImageError where it is of another kind than sha256."""
        kind, _, digest = self.digest.partition(":")
        if kind != "sha256" or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ImageError(f"image: expected a digest as sha256:..., got {self.digest[:80]!r}")
        return digest

    @property
    def made_here(self) -> bool:
        """Whether this layer is made from the module's files."""
        return self.annotations.get(MODULE_LAYER) == "module"


class ImageManifest(msgspec.Struct, frozen=True):
    config: Descriptor
    layers: tuple[Descriptor, ...]
    schemaVersion: int = 2
    mediaType: str = MANIFEST_TYPE


class ImageIndex(msgspec.Struct, frozen=True):
    manifests: tuple[Descriptor, ...]
    schemaVersion: int = 2
    mediaType: str = INDEX_TYPE


class RootFs(msgspec.Struct, frozen=True):
    """`diff_ids` are the digests of the layers, unpacked, in order."""

    diff_ids: tuple[str, ...]
    type: str = "layers"


class ImageConfig(msgspec.Struct, frozen=True):
    """As much of a config as is needed; `config` is what a container starts with (Entrypoint, Env, User ...)."""

    architecture: str
    os: str
    rootfs: RootFs
    config: dict[str, Any] = {}
    variant: str = ""


class Image(msgspec.Struct, frozen=True):
    """An image whose manifest and config have been checked against the digest that was signed."""

    manifest_bytes: bytes
    manifest: ImageManifest
    config_bytes: bytes
    config: ImageConfig

    @property
    def id(self) -> str:
        """By what engines know it: the digest of its config, which names the content of every layer."""
        return self.manifest.config.digest

    @property
    def digest(self) -> str:
        return f"sha256:{sha256_hex(self.manifest_bytes)}"


def blob_path(digest: str) -> str:
    """Where a blob lies among the module's files, by its digest in hex."""
    return f"{FOLDER}/blobs/sha256/{digest}"


def own_files(manifest: Manifest) -> dict[str, FileEntry]:
    """The module's files that are none of the image's: what its last layer is made from."""
    return {entry.path: entry for entry in manifest.files if not entry.path.startswith(f"{FOLDER}/")}


def read_image(container: Container, read: Callable[[str], bytes]) -> Image:
    """`read` gives a file of the module by its path. Raises ImageError, and what `read` raises."""
    if container.image != FOLDER:
        raise ImageError(f"image: expected it in the folder {FOLDER}, got {container.image}")
    digest = Descriptor(MANIFEST_TYPE, container.digest, 0).hex
    manifest_bytes = _document(digest, read)
    manifest = _decoded("manifest", manifest_bytes, ImageManifest)
    if not 1 <= len(manifest.layers) <= MAX_LAYERS:
        raise ImageError(f"image: expected 1 to {MAX_LAYERS} layers, got {len(manifest.layers)}")
    config_bytes = _document(manifest.config.hex, read)
    config = _decoded("config", config_bytes, ImageConfig)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise ImageError(f"image: {len(manifest.layers)} layers, but {len(config.rootfs.diff_ids)} in its config")
    return Image(manifest_bytes, manifest, config_bytes, config)


def load_archive(image: Image, module: Manifest, tag: str) -> tuple[Piece, ...]:
    """The stream for `docker load`: an OCI layout and the manifest.json of old in one. Raises ImageError."""
    index = ImageIndex((Descriptor(MANIFEST_TYPE, image.digest, len(image.manifest_bytes)),))
    layers = {layer.hex: _layer(layer, module) for layer in image.manifest.layers}
    loaded = [
        {
            "Config": f"blobs/sha256/{image.manifest.config.hex}",
            "RepoTags": [tag],
            "Layers": [f"blobs/sha256/{layer.hex}" for layer in image.manifest.layers],
        }
    ]
    documents = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": msgspec.json.encode(index),
        "manifest.json": msgspec.json.encode(loaded),
        f"blobs/sha256/{image.manifest.config.hex}": image.config_bytes,
        f"blobs/sha256/{sha256_hex(image.manifest_bytes)}": image.manifest_bytes,
    }
    members = [Member(name, (body,)) for name, body in documents.items()]
    return archive([*members, *(Member(f"blobs/sha256/{digest}", pieces) for digest, pieces in layers.items())])


def contents(files: dict[str, FileEntry]) -> dict[str, Content]:
    return {path: Content(path, entry.size, entry.sha256) for path, entry in files.items()}


def _layer(layer: Descriptor, module: Manifest) -> tuple[Piece, ...]:
    if not layer.made_here:
        return (Content(blob_path(layer.hex), layer.size, layer.hex),)
    pieces = module_layer(MODULE_ROOT, contents(own_files(module)))
    if size(pieces) != layer.size:
        raise ImageError(f"image: expected {layer.size} bytes of the module's files, got {size(pieces)}")
    return pieces


def _document(digest: str, read: Callable[[str], bytes]) -> bytes:
    body = read(blob_path(digest))
    if len(body) > MAX_DOCUMENT_BYTES or sha256_hex(body) != digest:
        raise ImageError(f"image: expected a document with SHA-256 {digest}, got {sha256_hex(body)}")
    return body


def _decoded(what: str, body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except MALFORMED as error:
        raise ImageError(f"image: its {what}: {error}") from error
