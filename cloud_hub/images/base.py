"""Read a base image from a tar archive: an OCI image layout, or what `docker save` writes. Nothing in it is run.

Every layer's digest is computed, and compared with what the image says of itself; sizes are bounded. Blocking: called
by `images.build`, in a thread.
Source: OCI image specification 1.1 (image-layout.md); Docker image specification 1.2.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from modules.errors import MALFORMED
from modules.images import GZIP_LAYER_TYPE, INDEX_TYPE, LAYER_TYPE, MAX_DOCUMENT_BYTES, MAX_LAYERS, ImageError

MAX_MEMBERS = 10_000
MAX_UNPACKED = 16 * 2**30  # bytes of all layers together
_READ = 1024 * 1024
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_INDEXES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")


class BaseLayer(msgspec.Struct, frozen=True):
    """A layer as a file of its own. `digest` (hex) is of the file, `diff_id` (sha256:...) of what it unpacks to."""

    path: Path
    digest: str
    size: int
    diff_id: str
    media_type: str


class BaseImage(msgspec.Struct, frozen=True):
    """`config` is the image's own, as it came."""

    config: dict[str, Any]
    layers: tuple[BaseLayer, ...]

    @property
    def platform(self) -> tuple[str, str]:
        return str(self.config.get("os", "")), str(self.config.get("architecture", ""))


class _Saved(msgspec.Struct):
    """An entry of manifest.json. Names as the specification has them."""

    Config: str
    Layers: tuple[str, ...]


class _Descriptor(msgspec.Struct):
    digest: str
    mediaType: str = ""
    platform: dict[str, Any] = {}


class _Document(msgspec.Struct):
    """An index or a manifest: one has `manifests`, the other the rest."""

    manifests: tuple[_Descriptor, ...] = ()
    config: _Descriptor | None = None
    layers: tuple[_Descriptor, ...] = ()
    mediaType: str = ""


def read_base(archive: Path, architecture: str, work: Path) -> BaseImage:
    """The image for `architecture` (as images say it: amd64, arm64, arm); its layers are written below `work`.

    Raises ImageError.
    """
    try:
        with tarfile.open(archive) as tar:
            members = _members(tar)
            config_name, layers = _named(tar, members, architecture)
            config = _json(_read(tar, members, config_name), dict[str, Any])
            _check_platform(config, architecture)
            return BaseImage(config, _layers(tar, members, layers, config, work))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ImageError(f"base image: expected a tar archive as `docker save` or an OCI layout: {error}") from error


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if len(found) >= MAX_MEMBERS:
            raise ImageError(f"base image: expected at most {MAX_MEMBERS} files in the archive")
        found[member.name.removeprefix("./")] = member
    return found


def _named(
    tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], architecture: str
) -> tuple[str, list[tuple[str, str]]]:
    """The config's name, and each layer's with the digest it must have (empty: only its diff_id is known)."""
    if "index.json" in members:
        document = _json(_read(tar, members, "index.json"), _Document)
        return _from_index(tar, members, document, architecture)
    if "manifest.json" in members:
        saved = _json(_read(tar, members, "manifest.json"), tuple[_Saved, ...])
        if len(saved) != 1:
            raise ImageError(f"base image: expected one image in the archive, got {len(saved)}")
        return saved[0].Config, [(name, "") for name in saved[0].Layers]
    raise ImageError("base image: expected index.json or manifest.json in the archive, got neither")


def _from_index(
    tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], document: _Document, architecture: str
) -> tuple[str, list[tuple[str, str]]]:
    for _ in range(3):  # an index may name indexes
        if not document.manifests:
            break
        chosen = _chosen(document.manifests, architecture)
        document = _json(_checked(tar, members, chosen.digest), _Document)
    if document.config is None:
        raise ImageError("base image: expected an image's manifest behind its index, got none")
    _checked(tar, members, document.config.digest)
    return _blob(document.config.digest), [(_blob(layer.digest), layer.digest) for layer in document.layers]


def _chosen(manifests: tuple[_Descriptor, ...], architecture: str) -> _Descriptor:
    """Attestations beside an image have the platform unknown/unknown."""
    fitting = [one for one in manifests if one.platform.get("architecture", architecture) == architecture]
    if len({one.digest for one in fitting}) != 1:
        found = sorted({str(one.platform.get("architecture", "?")) for one in manifests})
        raise ImageError(f"base image: expected one image for {architecture}, got {len(fitting)} (there is {found})")
    return fitting[0]


def _layers(
    tar: tarfile.TarFile,
    members: Mapping[str, tarfile.TarInfo],
    named: list[tuple[str, str]],
    config: dict[str, Any],
    work: Path,
) -> tuple[BaseLayer, ...]:
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or ()
    if len(diff_ids) != len(named) or not 1 <= len(named) <= MAX_LAYERS - 2:
        raise ImageError(f"base image: expected 1 to {MAX_LAYERS - 2} layers as in its config, got {len(named)}")
    work.mkdir(parents=True, exist_ok=True)
    left, layers = MAX_UNPACKED, []
    for number, ((name, expected), diff_id) in enumerate(zip(named, diff_ids, strict=True)):
        layer, unpacked = _copied(_opened(tar, members, name), work / f"base-{number}", left)
        left -= unpacked
        if expected and expected != f"sha256:{layer.digest}":
            raise ImageError(f"base image: expected a layer {expected}, got sha256:{layer.digest}")
        if layer.diff_id != diff_id:
            raise ImageError(f"base image: expected layer {number} to unpack to {diff_id}, got {layer.diff_id}")
        layers.append(layer)
    return tuple(layers)


def _copied(source: IO[bytes], target: Path, most: int) -> tuple[BaseLayer, int]:
    """The layer, and how many bytes it unpacks to."""
    packed, plain = hashlib.sha256(), hashlib.sha256()
    size = unpacked = 0
    unpack = None
    with target.open("wb") as file:
        while block := source.read(_READ):
            if not size and block.startswith(_ZSTD):
                raise ImageError("base image: expected layers as tar or gzip, got zstd, which Docker 20.10 cannot load")
            if not size and block.startswith(_GZIP):
                unpack = zlib.decompressobj(wbits=31)
            packed.update(block)
            size += len(block)
            file.write(block)
            for part in _unpacked(unpack, block):
                plain.update(part)
                unpacked += len(part)
                if unpacked > most:
                    raise ImageError(f"base image: expected layers of at most {MAX_UNPACKED} bytes in all")
    kind = GZIP_LAYER_TYPE if unpack else LAYER_TYPE
    return BaseLayer(target, packed.hexdigest(), size, f"sha256:{plain.hexdigest()}", kind), unpacked


def _unpacked(unpack: zlib._Decompress | None, block: bytes) -> list[bytes]:
    """In parts, so that a bomb is noticed before it fills the memory."""
    if unpack is None:
        return [block]
    parts = [unpack.decompress(block, _READ)]
    while unpack.unconsumed_tail:
        parts.append(unpack.decompress(unpack.unconsumed_tail, _READ))
    return parts


def _check_platform(config: dict[str, Any], architecture: str) -> None:
    found = config.get("os"), config.get("architecture")
    if found != ("linux", architecture):
        raise ImageError(f"base image: expected linux/{architecture}, got {found[0]}/{found[1]}")


def _checked(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], digest: str) -> bytes:
    body = _read(tar, members, _blob(digest))
    if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
        raise ImageError(f"base image: {digest}: the bytes are not those of its digest")
    return body


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _read(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> bytes:
    body = _opened(tar, members, name).read(MAX_DOCUMENT_BYTES + 1)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise ImageError(f"base image: expected {name} to have at most {MAX_DOCUMENT_BYTES} bytes")
    return body


def _opened(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> IO[bytes]:
    """Links are followed inside the archive only: old `docker save` writes one for a layer that it has twice."""
    member = members.get(name)
    file = tar.extractfile(member) if member is not None and (member.isreg() or member.issym()) else None
    if file is None:
        raise ImageError(f"base image: {name[:200]} is named, but it is no file of the archive")
    return file


def _json(body: bytes, kind: Any) -> Any:  # noqa: ANN401 - the caller names the type
    try:
        return msgspec.json.decode(body, type=kind)
    except MALFORMED as error:
        raise ImageError(f"base image: {error}") from error
