"""The stores of blobs that the settings name. Called by `composition`, `trust.setup`, `blob_moving` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloud_hub.blobs import Blobs, FolderBlobs
from cloud_hub.bucket.settings import FOLDER, MIB, Place
from cloud_hub.config import HubConfig, HubPaths

FILES: Final = "files"
SAMPLES: Final = "samples"
SAMPLES_SHARE: Final = 0.1  # of the cache: tensors of samples are read once or twice
DAY_S: Final = 86_400.0


def open_blobs(config: HubConfig, paths: HubPaths) -> Blobs:
    """Of models and modules. Raises Unavailable `s3-unavailable`; sends nothing."""
    return opened(config, paths.blobs, paths.blob_cache, FILES, 1 - SAMPLES_SHARE)


def open_tensors(config: HubConfig, paths: HubPaths) -> Blobs:
    """Of samples. As `open_blobs`."""
    return opened(config, paths.sample_blobs, paths.blob_cache, SAMPLES, SAMPLES_SHARE)


def opened(config: HubConfig, folder: Path, cache: Path, name: str, share: float) -> Blobs:
    """In the folder, or in the bucket's folder `name` with that share of the cache."""
    if config.blobs == FOLDER:
        return FolderBlobs(folder)
    # Only where there is a bucket: nobody else pays for its imports.
    from cloud_hub.bucket.blobs import BucketBlobs
    from cloud_hub.bucket.cache import Cache
    from cloud_hub.bucket.objects import Objects

    objects = Objects(Place.parse(config.blobs).below(name), config.bucket)
    limit = int(config.bucket.cache_mib * share * MIB)
    return BucketBlobs(objects, Cache(cache / name, limit), config.uploads_days * DAY_S / 4)
