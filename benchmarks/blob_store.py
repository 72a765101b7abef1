"""What files cost a hub that has them in a folder, in a bucket with the file here, and in a bucket without it.

Blocks of 64 KiB as devices ask for them, and uploads of 8 MiB. The bucket is moto's server beside it, in memory: what a
store of your own takes comes on top. Medians, the three side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from common import median, report

from cloud_hub.blobs import Blobs, FolderBlobs
from cloud_hub.bucket.blobs import BucketBlobs
from cloud_hub.bucket.cache import Cache
from cloud_hub.bucket.objects import Objects
from cloud_hub.bucket.settings import MIB, Place
from support.s3 import running_s3

BLOCK = 64 * 1024
SIZE = 8 * MIB
CACHE = 1024 * MIB


async def measure(folder: Path, rounds: int) -> dict[str, float]:
    with running_s3() as s3:
        s3.make("models")
        objects = Objects(Place("models", "files"), s3.settings(folder))
        stores: dict[str, Blobs] = {
            "folder": FolderBlobs(folder / "blobs"),
            "cached": BucketBlobs(objects, Cache(folder / "cache", CACHE), 3600.0),
            # Room for nothing: every block is a question to the store.
            "bucket": BucketBlobs(objects, Cache(folder / "none", 1), 3600.0),
        }
        blocks: dict[str, list[float]] = {name: [] for name in stores}
        puts: dict[str, list[float]] = {name: [] for name in stores}
        for _ in range(rounds):
            for name, store in stores.items():
                data = os.urandom(SIZE)
                began = time.perf_counter()
                sha256 = await store.put(data)
                puts[name].append(SIZE / MIB / (time.perf_counter() - began))
                for offset in range(0, SIZE, BLOCK):
                    began = time.perf_counter()
                    await store.read(sha256, offset, BLOCK)
                    blocks[name].append(1e6 * (time.perf_counter() - began))
        for store in stores.values():
            await store.close()
    found = {f"{name}_block_us": median(times) for name, times in blocks.items()}
    return found | {f"{name}_put_mib_per_s": median(rates) for name, rates in puts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("blob_store", asyncio.run(measure(Path(folder), arguments.rounds)))


if __name__ == "__main__":
    main()
