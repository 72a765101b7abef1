"""The settings of images, the table `[images]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import re

import msgspec


class ImageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where base images may come from beside uploads. `registries` are hosts (with a port, if any) from which bases are
    pulled by digest, with HTTPS but for loopback; none by default. `engine` is the address of a Docker engine beside
    the hub for builds with a Dockerfile, such as unix:///var/run/docker.sock; none by default: whoever may build could
    run programs on it. `steps_network` is the network that those steps have. A pull has `pull_s` seconds, the steps
    `steps_s`, a base at most `max_mib`.
    """

    registries: tuple[str, ...] = ()
    engine: str = ""
    steps_network: str = "none"
    pull_s: float = 900.0
    steps_s: float = 1800.0
    max_mib: int = 16_384

    def __post_init__(self) -> None:
        for host in self.registries:
            if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?", host):
                raise ValueError(f"images.registries: expected a host such as ghcr.io, got {host[:80]!r}")
        if not min(self.pull_s, self.steps_s) > 0 or self.max_mib < 1:
            raise ValueError("images: expected pull_s, steps_s and max_mib above 0")
