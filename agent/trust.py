"""What this device shall run, verified: the director says what, the image repository what may run where.

Synchronous, because python-tuf is: `Verifier` runs it in one thread of its own. Trust only moves forward; every
refusal is a TrustError whose key says what it is. python-tuf is imported at the first refresh, not at start.

What is kept on disk: `floor.json` (versions, durable: see `agent.trust_floor`), `image/` and `director/` (python-tuf's
folders, a cache), `manifests/` (verified ones by digest, so that a warm refresh costs two small requests).
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agent.absent import KEY_STORES, without
from agent.config import StatePaths
from agent.errors import LinkTimeout, TrustError
from agent.link import Link
from agent.trust_checks import Assigned, check_device, check_image, read_director, read_manifest
from agent.trust_floor import Floor
from agent.trust_manifests import Get, ManifestCache
from modules.manifest import Manifest, SamplingPolicy
from modules.messages import Answer, Repository
from modules.targets import Mode

if TYPE_CHECKING:
    from agent.trust_repository import Reading

# A freeze of years is less likely than a clock that is years ahead.
YEARS_S = 5 * 365 * 86_400.0
# What a folder is refused for when this device has seen newer since it was written.
OUTDATED = frozenset({"freeze", "rollback"})
# python-tuf checks signatures before it believes, but not the type of every value it believes. A hub that signs a list
# where a name belongs must be refused like any other, not end the agent's update engine.
NONSENSE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


class DesiredModule(msgspec.Struct, frozen=True):
    """One module of the desired set. `sampling` is the director's policy; None leaves the manifest's own."""

    name: str
    version: int
    manifest: Manifest
    manifest_bytes: bytes
    manifest_sha256: str
    release_counter: int
    deployment: str
    mode: Mode
    sampling: SamplingPolicy | None
    config: Mapping[str, Any]
    share: float = 1.0
    salt: str = ""


class Desired(msgspec.Struct, frozen=True):
    """The whole desired set, sorted by module name: versions of the director's targets and the image's timestamp."""

    director_version: int
    image_version: int
    modules: tuple[DesiredModule, ...]


class Trust:
    """Both repositories and the checks between them. Not thread-safe: one thread at a time calls `refresh`."""

    def __init__(self, device: str, hardware_id: str, roots: Path, metadata: Path, clock: Callable[[], float]) -> None:
        self._device, self._hardware_id, self._clock = device, hardware_id, clock
        self._roots, self._metadata = roots, metadata
        self._floor_file = metadata / "floor.json"
        self._manifests = ManifestCache(metadata / "manifests")

    def refresh(self, installed: Mapping[str, int], get: Get) -> Desired:
        """Asks both repositories and verifies. `installed` are the release counters so far, by module name.

        Raises TrustError; nothing that was trusted before is given up.
        """
        try:
            self._metadata.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._verified(installed, get)
        except OSError as error:
            raise TrustError(f"metadata folder: {error}", "io") from error
        except NONSENSE as error:
            text = f"metadata: expected values of the kinds that TUF names, got one that gives {error!r}"
            raise TrustError(text, "bad-metadata") from error

    def _verified(self, installed: Mapping[str, int], get: Get) -> Desired:
        Floor.load(self._floor_file).check_clock(self._clock())
        director = self._read("director", get)
        try:
            check_device(director.targets, self._device)
            self._accept(director, "director")
        finally:
            director.drop()
        wanted = read_director(director.targets, self._hardware_id)
        image = self._read("image", get)
        try:
            targets = [image.target(str(assigned.path)) for assigned in wanted]
            self._accept(image, "image")
        finally:
            image.drop()
        for assigned, target in zip(wanted, targets, strict=True):
            check_image(assigned, target, self._hardware_id, installed)
        modules = tuple(self._module(assigned, get) for assigned in wanted)
        self._manifests.keep_only({module.manifest_sha256 for module in modules})
        return Desired(director.versions.targets, image.versions.timestamp, modules)

    def _read(self, name: Repository, get: Get) -> Reading:
        """A refreshed repository. Tried twice where the first failure may be nobody's fault.

        The director's files have no versions in their names: one may be signed anew between two of our requests. And a
        damaged folder of ours is dropped.
        """
        try:
            return self._read_once(name, get)
        except TrustError as error:
            if error.key not in {"mix-and-match", "io"}:
                raise
            if error.key == "io":
                shutil.rmtree(self._metadata / name, ignore_errors=True)
        return self._read_once(name, get)

    def _read_once(self, name: Repository, get: Get) -> Reading:
        reading = _reading()
        bootstrap = (self._roots / f"{name}.root.json").read_bytes()
        try:
            return reading(name, self._metadata / name, self._metadata / f"{name}.new", bootstrap, get)
        except TrustError as error:
            last = Floor.load(self._floor_file).time
            if error.key == "freeze" and last and self._clock() - last > YEARS_S:
                raise TrustError(f"{error}, years after the last one: is the clock years ahead?", "clock") from error
            raise

    def _accept(self, reading: Reading, name: Repository) -> None:
        """The lower bound first, durably; then python-tuf's folder, which may be lost."""
        floor = Floor.load(self._floor_file)
        floor.check(name, reading.versions)
        if floor.repositories.get(name) != reading.versions or self._clock() - floor.time > 3600:
            floor.raised(name, reading.versions, self._clock()).save(self._floor_file)
        reading.keep()

    def _module(self, assigned: Assigned, get: Get) -> DesiredModule:
        data = self._manifests.bytes_of(assigned, get)
        path, custom = assigned.path, assigned.custom
        manifest = read_manifest(assigned, data)
        return DesiredModule(
            path.name, path.version, manifest, data, assigned.sha256, custom.release_counter,
            custom.deployment, custom.mode, custom.sampling, custom.config, custom.share, custom.salt,
        )  # fmt: skip


class Asked(Protocol):
    """Whoever has metadata: the hub over `Link`, or a folder. Raises Refused, LinkDown, LinkTimeout, LinkError."""

    async def get(
        self,
        repository: Repository,
        name: str,
        offset: int = 0,
        length: int = ...,
        timeout_s: float | None = None,
        held: bytes | None = None,
        grant: str = "",
    ) -> Answer: ...


class Verifier:
    """`Trust` on a thread of its own, fed by the link. Owns the thread: `close` ends it.

    `folder`, while one is installed from, is asked before the hub; the hub only where the folder is out of date.
    """

    def __init__(self, trust: Trust, link: Link, timeout_s: float = 120.0) -> None:
        self._trust, self._link, self._timeout_s = trust, link, timeout_s
        self.folder: Asked | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trust")
        self._turn = asyncio.Lock()

    async def refresh(self, installed: Mapping[str, int]) -> Desired:
        """As `Trust.refresh`; one at a time, callers wait for their turn. Raises TrustError."""
        async with self._turn:
            if self.folder is None:
                return await self._refresh(self._link, installed)
            try:
                return await self._refresh(self.folder, installed)
            except TrustError as error:
                if error.key not in OUTDATED or not self._link.connected.is_set():
                    raise
            return await self._refresh(self._link, installed)

    async def _refresh(self, asked: Asked, installed: Mapping[str, int]) -> Desired:
        loop = asyncio.get_running_loop()
        bridge = _Bridge(asked, loop, self._timeout_s)
        try:
            return await loop.run_in_executor(self._thread, self._trust.refresh, dict(installed), bridge.get)
        finally:
            bridge.close()

    def close(self) -> None:
        """Does not wait: what is under way ends with its next request."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Bridge:
    """From the thread to the loop and back, for one refresh; closed, it refuses, so that no thread outlives its use."""

    def __init__(self, asked: Asked, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        self._asked, self._loop, self._limit_s = asked, loop, limit_s
        self._deadline = time.monotonic() + limit_s
        self._waiting: Future[Answer] | None = None
        self._closed = threading.Event()

    def get(self, repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        """Blocks the calling thread. Raises Refused, LinkDown, LinkTimeout."""
        left = self._deadline - time.monotonic()
        if self._closed.is_set() or left <= 0:
            raise LinkTimeout(f"{repository} {name}: the refresh took longer than {self._limit_s} s")
        asking = self._asked.get(repository, name, offset, length, held=held)
        self._waiting = asyncio.run_coroutine_threadsafe(asking, self._loop)
        if self._closed.is_set():  # in the meantime: nobody else would cancel this one
            self._waiting.cancel()
        try:
            return self._waiting.result(left)
        except (CancelledError, FutureTimeout) as error:
            self._waiting.cancel()
            raise LinkTimeout(f"{repository} {name}: given up") from error

    def close(self) -> None:
        self._closed.set()
        if self._waiting is not None:
            self._waiting.cancel()


def build_trust(paths: StatePaths, device: str, hardware_id: str, clock: Callable[[], float]) -> Trust:
    """The Trust of an enrolled device."""
    return Trust(device, hardware_id, paths.roots, paths.metadata, clock)


def _reading() -> type[Reading]:
    """python-tuf is loaded with the first repository that is read."""
    with without(KEY_STORES):
        from agent.trust_repository import Reading

        return Reading
