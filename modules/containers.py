"""The container of a module of kind `container`: its image by digest, and what it may have of the device.

Pure values with their checks. Built by the hub (`cloud_hub.images`), run by `agent.containers`.
Source: OCI image specification 1.1 (manifest, config, layers by digest).
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from modules.bundle import check_path
from modules.errors import ManifestError

_DIGEST = r"sha256:[0-9a-f]{64}"
_FOLDER = r"/[A-Za-z0-9._][A-Za-z0-9._/-]{0,199}"
_DEVICE = r"/dev/[A-Za-z0-9._/-]{1,100}"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
MAX_EACH = 64  # devices, folders, variables


class Container(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`image` is the folder, among the module's files, of an OCI image layout; `digest` that of the image's manifest
    (sha256:...). `serves` says who answers requests: our own `worker` inside, or a program of the image (`http`) that
    listens on `port` and is ready once `health` is answered with 200. No network but `network` (an engine's network by
    name), a read-only root but for `writable` (folders in memory of at most `writable_mib` each). `gpus` are asked of
    the engine, -1 for all. `python` is the interpreter of the image that runs our worker, `command` what runs in its
    place where the image serves (empty: the image's own entry point).
    """

    image: str
    digest: str
    serves: Literal["worker", "http"] = "worker"
    port: int = 8080
    health: str = "/v2/health/ready"
    network: str = "none"
    gpus: int = 0
    devices: tuple[str, ...] = ()
    writable: tuple[str, ...] = ("/tmp",)  # noqa: S108 - the container's own, in memory
    writable_mib: int = 64
    environment: dict[str, str] = {}
    python: str = "python3"
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_path(self.image)
        _check("digest", _DIGEST, self.digest)
        _check("health", r"/[\x21-\x7e]{0,199}", self.health)
        _check("network", r"[a-z0-9][a-z0-9_.-]{0,62}", self.network)
        _check("python", r"[A-Za-z0-9._/-]{1,200}", self.python)
        for name, pattern, texts in (
            ("devices", _DEVICE, self.devices),
            ("writable", _FOLDER, self.writable),
            ("environment", _VARIABLE, tuple(self.environment)),
        ):
            if len(texts) > MAX_EACH:
                raise ManifestError(f"container.{name}: expected at most {MAX_EACH}, got {len(texts)}")
            for text in texts:
                _check(name, pattern, text)
                if ".." in text.split("/"):
                    raise ManifestError(f"container.{name}: expected no .. in {text[:80]!r}")
        if len(self.command) > MAX_EACH or (self.command and self.serves == "worker"):
            raise ManifestError(f"container.command: expected at most {MAX_EACH} words, and none where a worker serves")
        for name, number, least, most in (
            ("port", self.port, 1, 65_535),
            ("gpus", self.gpus, -1, 64),
            ("writable_mib", self.writable_mib, 1, 65_536),
        ):
            if not least <= number <= most:
                raise ManifestError(f"container.{name}: expected {least} to {most}, got {number}")


def _check(name: str, pattern: str, text: str) -> None:
    if not re.fullmatch(pattern, text):
        raise ManifestError(f"container.{name}: expected {pattern}, got {text[:80]!r}")
