"""A data set of the hub as a folder: its files with checked digests, and what it is. Used by the commands."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloud_hub.datasets.wishes import ABOUT, Dataset
from cloud_hub.operator.errors import FileError

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.transport import Progress


async def download(hub: HubClient, dataset: Dataset, folder: Path, progress: Progress) -> None:
    """Raises FileError `digest-differs`, `not-written`."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    for file in dataset.files:
        target = folder / file.path
        await hub.download_dataset_file(dataset.name, dataset.version, file.path, target, progress)
        await asyncio.to_thread(check_digest, target, file.sha256)
    (folder / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(dataset), indent=2) + b"\n")


def check_digest(path: Path, sha256: str) -> None:
    """Raises FileError `digest-differs`; then the file is gone."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        path.unlink()
        raise FileError("digest-differs", f"{path}: expected SHA-256 {sha256}, got {got}; the file was removed")
