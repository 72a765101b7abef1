"""The base image that a build names: an upload, or one of a registry by its digest; with a Dockerfile's steps on top.

Called by `cloud_hub.building.container`.
"""

from __future__ import annotations

import re
from pathlib import Path

from cloud_hub.building.bench import Bench
from cloud_hub.errors import Unprocessable
from cloud_hub.images.build import ARCHITECTURES
from cloud_hub.images.pull import pull
from cloud_hub.images.settings import ImageSettings
from cloud_hub.images.steps import run_steps

_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(:\d{1,5})?)/(?P<name>[a-z0-9._/-]{1,200})@(?P<digest>sha256:[0-9a-f]{64})"
)


class Bases:
    """Where bases come from on this hub."""

    def __init__(self, settings: ImageSettings | None = None) -> None:
        self._settings = settings or ImageSettings()

    async def get(self, base: str, dockerfile: str, arch: str, bench: Bench) -> Path:
        """A tar archive below the bench. `base` and `dockerfile` are as in the request.

        Raises Unprocessable, Unavailable, NotFound.
        """
        archive = await self._archive(base, arch, bench)
        if archive.stat().st_size > self._settings.max_mib * 2**20:
            raise Unprocessable("image-refused", f"base image: expected at most {self._settings.max_mib} MiB")
        if not dockerfile:
            return archive
        if not self._settings.engine:
            text = "steps of a Dockerfile need an engine beside the hub (images.engine in hub.toml), and there is none"
            raise Unprocessable("dockerfile-refused", f"{text}; nothing was built")
        steps = await bench.fetch(dockerfile, "base/Dockerfile")
        architecture = ARCHITECTURES.get(arch, arch)
        return await run_steps(archive, steps, architecture, self._settings, bench.folder / "base/steps.tar")

    async def _archive(self, base: str, arch: str, bench: Bench) -> Path:
        match = _REFERENCE.fullmatch(base)
        if match is None:
            if not re.fullmatch(r"[0-9a-f]{64}", base):
                text = "expected the digest of an upload, or HOST/NAME@sha256:...: a tag may be another image tomorrow"
                raise Unprocessable("image-refused", f"base image: {text}; got {base[:120]!r}")
            return await bench.fetch(base, "base/base.tar")
        if match["host"] not in self._settings.registries:
            allowed = ", ".join(self._settings.registries) or "none"
            text = f"expected a registry of images.registries ({allowed}), got {match['host']}"
            raise Unprocessable("image-refused", f"base image: {text}; nothing was built")
        target = bench.folder / "base/pulled.tar"
        await pull(match["host"], match["name"], match["digest"], ARCHITECTURES.get(arch, arch), self._settings, target)
        return target
