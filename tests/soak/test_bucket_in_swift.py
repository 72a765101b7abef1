"""Blobs in OpenStack Swift: another S3-compatible store than the tests' own, with disks and signatures.

It runs where MOORING_TEST_SWIFT names the folder of Swift's programs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from pathlib import Path

import pytest

from cloud_hub.bucket.blobs import BucketBlobs
from cloud_hub.bucket.cache import Cache
from cloud_hub.bucket.objects import PART_BYTES, Objects
from cloud_hub.bucket.settings import MIB, BucketSettings, Place
from cloud_hub.errors import NotFound
from support.swift import make_bucket, programs, running_swift

SECONDS = float(os.environ.get("MOORING_SOAK_S", "3600")) / 12
REPLICAS = 3


def replica(settings: BucketSettings, folder: Path, number: int) -> BucketBlobs:
    """With a cache that is too small for all of it."""
    objects = Objects(Place("models", "fleet/files"), settings)
    return BucketBlobs(objects, Cache(folder / f"cache-{number}", 24 * MIB), 3600.0)


@pytest.mark.soak
@pytest.mark.timeout(2 * SECONDS + 600)
@pytest.mark.skipif(programs() is None, reason="MOORING_TEST_SWIFT names no programs of Swift (pip install swift)")
async def test_replicas_that_store_read_and_remove_at_once_see_one_store(tmp_path: Path) -> None:
    chance, known = random.Random(3), dict[str, bytes]()
    with running_swift(tmp_path) as settings:
        make_bucket(settings, "models")
        blobs = [replica(settings, tmp_path, number) for number in range(REPLICAS)]
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or len(known) < 4:
            size = chance.choice((0, 1, 1000, 300_000, 5 * MIB, 2 * PART_BYTES + 7))
            data = chance.randbytes(size)
            digests = await asyncio.gather(*(one.put(data) for one in blobs[: chance.randint(1, REPLICAS)]))
            assert set(digests) == {hashlib.sha256(data).hexdigest()}
            known[digests[0]] = data
            sha256, wanted = chance.choice(list(known.items()))
            offset, length = chance.randrange(len(wanted) + 1), 65_536
            found = await asyncio.gather(*(one.read(sha256, offset, length) for one in blobs))
            assert set(found) == {wanted[offset : offset + length]}
            if len(known) > 20:
                gone = chance.choice(list(known))
                assert await chance.choice(blobs).remove(gone, 1e12) == len(known.pop(gone))
        assert await blobs[0].stored_before(1e12) == known.keys()
        assert await blobs[1].total_bytes() == sum(map(len, known.values()))
        with pytest.raises(NotFound):
            await blobs[2].read("0" * 64)
        for one in blobs:
            await one.close()
