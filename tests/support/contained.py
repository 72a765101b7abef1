"""Real modules in containers: what the hub builds around a base image, put into a slot as an update would."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.slots import Slots
from cloud_hub.images.build import build_image
from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry, sha256_hex
from modules.containers import Container
from modules.images import FOLDER, INNER_MANIFEST
from modules.manifest import Manifest, Resources, encode_manifest
from support.built import Built

WANTED = Container(FOLDER, f"sha256:{'0' * 64}", python="/opt/python/bin/python3")


@dataclass(frozen=True)
class Contained:
    """A module as it is shipped: files by path, most of them large."""

    manifest: Manifest
    manifest_bytes: bytes
    files: Mapping[str, Path]

    @property
    def sha256(self) -> str:
        return sha256_hex(self.manifest_bytes)


def contain(
    module: Built, base: Path, work: Path, wanted: Container = WANTED, resources: Resources | None = None
) -> Contained:
    """The same module, in a container."""
    inner_manifest = msgspec.structs.replace(module.manifest, resources=resources or module.manifest.resources)
    files = {**module.files, INNER_MANIFEST: encode_manifest(inner_manifest)}
    paths = {path: _written(work / "module" / path, data) for path, data in files.items()}
    built = build_image(base, paths, "x86_64", work, wanted)
    paths |= built.files
    runtime = msgspec.structs.replace(module.manifest.runtime, kind="container", container=built.container)
    entries = tuple(entry(path, source) for path, source in sorted(paths.items()))
    manifest = msgspec.structs.replace(inner_manifest, runtime=runtime, files=entries)
    return Contained(manifest, encode_manifest(manifest), paths)


def install(slots: Slots, module: Contained, staging: Path) -> None:
    """As a finished update would."""
    staging.mkdir(parents=True, exist_ok=True)
    for file in module.manifest.files:
        shutil.copyfile(module.files[file.path], staging / file.sha256)
    slots.make(module.manifest_bytes, module.manifest, lambda file: staging / file.sha256)
    shutil.rmtree(staging)


def entry(path: str, source: Path) -> FileEntry:
    chunks, whole = [], hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(MAX_CHUNK_BYTES):
            whole.update(block)
            chunks.append(Chunk(sha256_hex(block), len(block)))
    return FileEntry(path, source.stat().st_size, whole.hexdigest(), tuple(chunks))


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
