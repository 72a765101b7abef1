"""Exact versions and hashes of the wheels for a device's platform, and their files, by `uv` in a process of its own.

Wheels only: building a source archive would run its author's code on the hub, and for the wrong machine. What is
unpacked is files; nothing of it is imported or started here. Called by `building.environment`.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from uv import find_uv_bin

from cloud_hub.building.bytecode import compile_libraries
from cloud_hub.building.device_packages import DEVICE
from cloud_hub.building.requirements import Wanted
from cloud_hub.building_settings import NO_INDEX, BuildingSettings
from cloud_hub.errors import Unavailable, Unprocessable
from modules.environment import FOLDER

MAX_SAID = 2000
# What uv may see of the hub's environment: where things are, how to get out, and its own settings.
_INHERITED = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC")
_INHERITED_PREFIXES = ("UV_",)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_NO_ROUTE = re.compile(r"(?i)(error sending request|failed to fetch|could not connect|dns error|timed out)")


class Target(msgspec.Struct, frozen=True):
    """The devices that libraries are for: `arch` and C library as in a wheel's name, and the interpreter's version."""

    arch: str
    python: str
    glibc: str

    @property
    def platform(self) -> str:
        """As uv calls it. Raises Unprocessable `environment-platform` where it knows none."""
        if self.arch not in ("x86_64", "aarch64"):
            text = f"expected x86_64 or aarch64, got {self.arch}: libraries cannot be resolved for it"
            raise Unprocessable("environment-platform", f"environment: {text}; put the image's own in a container")
        return f"{self.arch}-manylinux_{self.glibc.replace('.', '_')}"


class Resolver:
    """Asks the hub's indexes. `cache` is a folder of uv's own, which may be removed at any time (None: none)."""

    def __init__(self, settings: BuildingSettings | None = None, cache: Path | None = None) -> None:
        self.settings = settings or BuildingSettings()
        self._cache = cache

    async def lock(self, wanted: Wanted, target: Target, folder: Path) -> str:
        """A requirement list with exact versions and hashes, without what devices have of their own.

        Raises Unprocessable `environment-unresolved` with uv's words, Unavailable `index-unreachable`.
        """
        asked, bounds = folder / "requirements.in", folder / "device.txt"
        asked.write_text("\n".join(wanted.lines) + "\n")
        bounds.write_text("".join(f"{name}{versions}\n" for name, versions in DEVICE.items()))
        without = [part for name in DEVICE for part in ("--no-emit-package", name)]
        return await self._uv(
            "pip", "compile", str(asked), "--constraint", str(bounds), "--generate-hashes", "--no-header",
            "--no-annotate", "--quiet", "--python-version", target.python, *without, *self._common(target, folder),
            cwd=folder,
        )  # fmt: skip

    async def unpack(self, lock: Path, target: Target, folder: Path) -> Path:
        """The wheels' files, as an interpreter would import them, with its byte code, in a folder below `folder`.
        Raises as `lock`.
        """
        unpacked = folder / "unpacked"
        await self._uv(
            "pip", "install", "--target", str(unpacked), "--requirement", str(lock), "--no-deps", "--require-hashes",
            "--link-mode", "copy", "--quiet", "--python-version", target.python, *self._common(target, folder),
            cwd=folder,
        )  # fmt: skip
        await compile_libraries(unpacked, FOLDER, target.python, self.settings.deadline_s)
        return unpacked

    def _common(self, target: Target, folder: Path) -> list[str]:
        where = self.settings
        cache = str(self._cache or folder / "cache")
        found = ["--python-platform", target.platform, "--only-binary", ":all:", "--no-config", "--cache-dir", cache]
        found += ["--python", sys.executable, "--no-progress", "--color", "never"]  # no search for other interpreters
        if where.index_url == NO_INDEX:
            found.append("--no-index")
        elif where.index_url:
            found += ["--default-index", where.index_url]
        found += [part for url in where.extra_index_urls for part in ("--index", url)]
        return found + [part for place in where.find_links for part in ("--find-links", place)]

    async def _uv(self, *arguments: str, cwd: Path) -> str:
        process = await asyncio.create_subprocess_exec(
            find_uv_bin(), *arguments, cwd=cwd, env=_environment(), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, said = await asyncio.wait_for(process.communicate(), self.settings.deadline_s)
        except TimeoutError as error:
            text = f"no answer from the package index within {self.settings.deadline_s:g} s"
            raise Unavailable("index-unreachable", f"environment: {text}; nothing was built") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise _failed(said.decode(errors="replace"))
        return out.decode()


def pinned(lock: str) -> Sequence[str]:
    """The requirements of a lock file, such as pillow==11.3.0."""
    return [line.split()[0] for line in lock.splitlines() if re.match(r"^[A-Za-z0-9]", line)]


def _failed(said: str) -> Unprocessable | Unavailable:
    text = re.sub(r"\s+", " ", said).strip()[:MAX_SAID]
    if own := [name for name in DEVICE if re.search(rf"\b{name}[<>=!~ ]", text)]:
        text += f" [{', '.join(own)}: the devices' own, {', '.join(DEVICE[name] for name in own)}]"
    if _NO_ROUTE.search(text):
        return Unavailable("index-unreachable", f"environment: the package index did not answer: {text}")
    return Unprocessable(
        "environment-unresolved",
        f"environment: {text or 'uv said nothing'} (wheels only, for the devices' platform); nothing was built",
    )


def _environment() -> dict[str, str]:
    """No secret of the hub's reaches the child."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.lower() in _PROXIES or name.startswith(_INHERITED_PREFIXES)
    }
