"""The stores of blobs that the settings name. Called by `composition` and `trust.setup`."""

from __future__ import annotations

from cloud_hub.blobs import Blobs, FolderBlobs
from cloud_hub.config import HubConfig, HubPaths


def open_blobs(config: HubConfig, paths: HubPaths) -> Blobs:
    """Of models and modules."""
    return FolderBlobs(paths.blobs)


def open_tensors(config: HubConfig, paths: HubPaths) -> Blobs:
    """Of samples."""
    return FolderBlobs(paths.sample_blobs)
