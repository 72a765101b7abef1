"""Bring all blobs from a folder to a bucket, or back; what is there already is not sent again. Called by `cli`.

Beside a hub that runs it only copies. Alone it copies what is left, and then has the settings name the other place.
Nothing is removed from where it was.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from cloud_hub.blobs import Blobs
from cloud_hub.bucket.opening import open_blobs, open_tensors
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Conflict, Unprocessable
from cloud_hub.service import only_one

AT_ONCE: Final = 4
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Moved:
    """How many files there are and how many of them were sent now; `switched`: the settings name the new place."""

    files: int
    sent: int
    bytes: int
    switched: bool


async def move(paths: HubPaths, to: str, told: Told = lambda _done, _files: None) -> Moved:
    """`to` as the setting `blobs`. Safe to repeat. `told` hears how many files of how many are there.

    Raises BadRequest `config-invalid`, Conflict `already-there`, Unavailable `blob-store-unreachable`, Unprocessable
    `blob-damaged`; the settings are as they were then.
    """
    before = HubConfig.load(paths.root)
    try:
        after = msgspec.structs.replace(before, blobs=to)
    except ValueError as error:
        raise BadRequest("config-invalid", f"{error}; nothing was moved") from error
    if after.blobs == before.blobs:
        raise Conflict("already-there", f"blobs are in {to} already; nothing was moved")
    try:
        with only_one(paths):
            moved = await _moved(paths, before, after, told, switched=True)
            # As it is in the file: what the environment says is not to be written there.
            msgspec.structs.replace(HubConfig.load(paths.root, {}), blobs=to).write(paths.root)
            return moved
    except Conflict as error:
        if error.key != "hub-running":
            raise
    return await _moved(paths, before, after, told, switched=False)


async def _moved(paths: HubPaths, before: HubConfig, after: HubConfig, told: Told, switched: bool) -> Moved:
    moved = Moved(0, 0, 0, switched)
    for opened in (open_blobs, open_tensors):
        source, target = opened(before, paths), opened(after, paths)
        try:
            one = await _copied(source, target, told)
        finally:
            await source.close()
            await target.close()
        moved = Moved(moved.files + one.files, moved.sent + one.sent, moved.bytes + one.bytes, switched)
    return moved


async def _copied(source: Blobs, target: Blobs, told: Told) -> Moved:
    wanted, there = await source.stored_before(math.inf), await target.stored_before(math.inf)
    left, done, size = sorted(wanted - there), len(wanted & there), 0
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        size += sum(await asyncio.gather(*(_sent(source, target, sha256) for sha256 in some)))
        done += len(some)
        told(done, len(wanted))
    return Moved(len(wanted), len(left), size, switched=False)


async def _sent(source: Blobs, target: Blobs, sha256: str) -> int:
    async with source.at_hand(sha256) as (path,):
        stored = await target.put_file(path)
        if stored != sha256:
            text = f"{path} has another digest than its name says: restore it from a backup or remove it"
            raise Unprocessable("blob-damaged", f"{text}; the settings were not changed")
        return path.stat().st_size
