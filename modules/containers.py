"""The container of a module of kind `container`: its image by digest, and what it may have of the device.

Pure values with their checks. Built by the hub (`cloud_hub.images`), run by `agent.containers`.
Source: OCI image specification 1.1 (manifest, config, layers by digest).
"""

from __future__ import annotations

import msgspec

from modules.bundle import check_path


class Container(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`image` is the folder, among the module's files, of an OCI image layout; `digest` that of the image's manifest
    (sha256:...). `serves` says who answers requests: our own worker inside, or a program of the image that listens on
    `port`. No network but `network`, a read-only root but for `writable` (folders in memory of at most `writable_mib`).
    """

    image: str
    digest: str
    serves: str = "worker"
    port: int = 8080
    network: str = "none"
    gpus: int = 0
    devices: tuple[str, ...] = ()
    writable: tuple[str, ...] = ("/tmp",)  # noqa: S108 - the container's own, in memory
    writable_mib: int = 64
    environment: dict[str, str] = {}

    def __post_init__(self) -> None:
        check_path(self.image)
