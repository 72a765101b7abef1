"""Builds patches in the background: the most wanted first, one at a time, each in a process of its own.

The queue is a table, so that a hub which was ended goes on where it was. A build that nobody needs any more is ended,
as is one that takes too long; one that fails is tried again a few times, and then stays, with the reason. Run by
`service` beside the hub.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import func, select

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.patches import queue
from cloud_hub.patches.child import TOO_LARGE, Made, Order, Stored
from cloud_hub.patches.queue import Patch, PatchState
from cloud_hub.patches.surroundings import Model, surroundings
from cloud_hub.patches.wishes import Wishes
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events
from firmware_profiles.profile import DeviceProfile

LOOK_S: Final = 2.0  # between two looks at whether anything has changed
REPORTS_S: Final = 60.0  # reports come all the time: what they change is taken in so often,
REST: Final = 50  # and less often where that takes more than a fiftieth of the time
# What changes what is wanted at once.
_STIRRING: Final = ("module.signed", "model.deleted", "rollout.created", "rollout.started", "rollout.aborted")
WORTH: Final = 0.8  # of the target: a patch that is larger is dropped
MAX_WORDS: Final = 2000
_log = logging.getLogger(__name__)
CHILD: Final = (sys.executable, "-m", "cloud_hub.patches.child")


class _BuildError(Exception):
    """Why a build failed."""


class _TooLargeError(Exception):
    """The patch would save too little."""


class Builder:
    """`keep_building` is the only way in. `work` is a folder of its own, emptied at the start."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        wishes: Wishes,
        settings: PatchSettings,
        catalog: Mapping[str, DeviceProfile],
        work: Path,
        clock: Clock,
        child: tuple[str, ...] = CHILD,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._wishes = wishes
        self._settings = settings
        self._catalog = catalog
        self._work = work
        self._clock = clock
        self._child = child
        self._seen = -1  # the newest event
        self._looked_at, self._rest_s = 0.0, REPORTS_S
        self._full = False

    async def keep_building(self) -> None:
        """Until cancelled; a build under way is then put back."""
        if not self._settings.enabled:
            return
        await asyncio.to_thread(self._empty)
        recovered = False
        while True:
            try:
                if not recovered:
                    await self._recover()
                    recovered = True
                while await self.step():
                    pass
            except Exception:
                # Patches save bytes; whatever it was, files come whole meanwhile.
                recovered = False
                _log.exception("patches could not be built; trying again in %s s", LOOK_S)
            await asyncio.sleep(LOOK_S)

    async def step(self) -> bool:
        """Looks at what is wanted, and builds one; whether there was one to build."""
        await self._look()
        job = await self._next()
        if job is None:
            return False
        try:
            values = await self._built(job)
        except asyncio.CancelledError:
            back = {"state": PatchState.QUEUED.value, "attempts": job.attempts - 1}
            await asyncio.shield(asyncio.create_task(self._settle(job, back), name="patch-put-back"))
            raise
        await self._settle(job, values)
        return True

    async def _look(self) -> None:
        """Takes in what has changed since the last look."""
        now = self._clock()
        async with self._store.read() as connection:
            newest = (await connection.execute(select(func.max(events.c.id)))).scalar() or 0
            matters = select(events.c.id).where(events.c.id > self._seen, events.c.kind.in_(_STIRRING)).limit(1)
            stirred = newest > self._seen and (await connection.execute(matters)).one_or_none() is not None
        if stirred or self._seen < 0 or not 0 <= now - self._looked_at < self._rest_s:
            started = time.monotonic()
            wishes = await self._wishes.now()
            async with self._store.write() as connection:
                new = await queue.take_in(connection, wishes, now)
            self._looked_at = now
            self._rest_s = max(REPORTS_S, REST * (time.monotonic() - started))
            if new:
                _log.info("patches queued: %d", new)
        self._seen = newest

    async def _next(self) -> Patch | None:
        async with self._store.read() as connection:
            due = await queue.is_due(connection, self._clock())
            full = await queue.stored_bytes(connection) >= self._settings.total_mib * 1024 * 1024
        if full != self._full:
            _log.warning("patches %s patches.total_mib", "have reached" if full else "are again below")
        self._full = full
        if full or not due:
            return None
        async with self._store.write() as connection:
            return await queue.start_next(connection, self._clock())

    async def _built(self, job: Patch) -> dict[str, Any]:
        """What to settle. While the build goes on, it is looked after whether it is still wanted."""
        building = asyncio.create_task(self._build(job), name="patch-build")
        try:
            while not (await asyncio.wait({building}, timeout=LOOK_S))[0]:
                await self._look()
                async with self._store.read() as connection:
                    if not await queue.is_building(connection, job):
                        return {}
            return building.result()
        finally:
            building.cancel()
            await asyncio.wait({building})

    async def _build(self, job: Patch) -> dict[str, Any]:
        out = self._work / f"{job.target}-{job.base}"
        most = int(job.target_size * WORTH)
        try:
            made = await self._run(job, out, most)
            sha256 = await self._blobs.put_file(out)
        except _TooLargeError:
            reason = f"it would be larger than {WORTH:.0%} of the file"
            return {"state": PatchState.DROPPED.value, "reason": reason, "built_at": self._clock()}
        except (_BuildError, HubError, OSError) as error:
            _log.warning("a patch was not built: module=%s version=%d: %s", job.module, job.version, error)
            return queue.failed(job, str(error), self._clock(), self._settings.attempts)
        finally:
            out.unlink(missing_ok=True)
        _log.info("patch built: %s version %d: %d of %d bytes", job.module, job.version, made.size, job.target_size)
        return {
            "state": PatchState.BUILT.value, "reason": "", "sha256": sha256, "size": made.size,
            "built_at": self._clock(), "build_s": made.build_s,
        }  # fmt: skip

    async def _run(self, job: Patch, out: Path, most: int) -> Made:
        """The child from start to end. Raises _BuildError or _TooLargeError."""
        around = await surroundings(self._store, self._blobs, self._catalog, job)
        wanted = (Model(job.base, ""), Model(job.target, ""), *(around.models or ()))
        async with self._blobs.at_hand(*(one.sha256 for one in wanted)) as paths:
            stored = [Stored(str(path), one.sha256, one.location) for path, one in zip(paths, wanted, strict=True)]
            return await self._encoded(self._order(stored, around.zstandard, out, most))

    async def _encoded(self, order: Order) -> Made:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *self._child, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()
        )
        try:
            async with asyncio.timeout(self._settings.build_s):
                said, words = await child.communicate(msgspec.json.encode(order))
        except TimeoutError as error:
            raise _BuildError(f"it was not built after {self._settings.build_s:g} s (patches.build_s)") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode == TOO_LARGE:
            raise _TooLargeError
        if child.returncode != 0:
            text = words.decode(errors="replace").strip()[-MAX_WORDS:]
            raise _BuildError(text or f"the encoder's process ended with status {child.returncode}")
        return msgspec.json.decode(said, type=Made)

    def _order(self, stored: Sequence[Stored], zstandard: bool, out: Path, most: int) -> Order:
        base, target, *models = stored
        return Order(
            base=base,
            target=target,
            models=(models[0], models[1]) if models else None,
            zstandard=zstandard,
            out=str(out),
            most=most,
            memory_mib=self._settings.memory_mib,
            parent=os.getpid(),
        )

    async def _settle(self, job: Patch, values: dict[str, Any]) -> None:
        if values:
            async with self._store.write() as connection:
                await queue.settle(connection, job, values)

    async def _recover(self) -> None:
        async with self._store.write() as connection:
            await queue.recover(connection, self._clock(), self._settings.attempts)

    def _empty(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700, parents=True)


def _environment() -> dict[str, str]:
    """No secrets of the hub reach the child, which has one thread."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return keep | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
