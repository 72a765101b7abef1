"""What `doctor` looks at where files lie: in the hub's folder, or in the bucket that all replicas share."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import aclosing
from typing import Final

import msgspec

from cloud_hub.bucket.settings import FOLDER, Place
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Unavailable
from cloud_hub.findings import Finding

SUBJECT: Final = "files"
PATIENCE_S: Final = 10.0


def blobs(config: HubConfig, paths: HubPaths) -> Finding:
    """Whether the store answers, lets this hub in, and has a bucket of that name. Nothing is written."""
    if config.blobs == FOLDER:
        return Finding(SUBJECT, "ok", f"in {paths.blobs}: one hub, no replicas")
    if importlib.util.find_spec("obstore") is None:
        return Finding(SUBJECT, "problem", "no library for buckets: pip install 'mooring[s3]'")
    try:
        asyncio.run(_look(config))
    except Unavailable as error:
        return Finding(SUBJECT, "problem", error.message)
    if config.bucket.endpoint.startswith("http://"):
        return Finding(SUBJECT, "note", f"{config.blobs} at {config.bucket.endpoint}: not encrypted on the way")
    return Finding(SUBJECT, "ok", f"{config.blobs} at {config.bucket.endpoint}")


async def _look(config: HubConfig) -> None:
    from cloud_hub.bucket.objects import Objects  # only where there is a bucket

    patience = min(PATIENCE_S, config.bucket.request_timeout_s)
    objects = Objects(Place.parse(config.blobs), msgspec.structs.replace(config.bucket, request_timeout_s=patience))
    async with aclosing(objects.all()) as found:
        await anext(found, None)
