"""A file by its patch: the patch is fetched like any file, the new file is made from it and an old one, and verified.

Nobody signed the patch; the file that it makes has the signed digest, or it is thrown away and the file comes in
blocks. Called by `agent.transfer.fetch`; the decoder runs in a process of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.errors import AgentError, FetchError
from agent.files import sync_folder
from agent.transfer.partial import Partial, Plan, file_sha256
from agent.transfer.pull import Pull
from agent.transfer.traffic import Traffic
from modules.messages import PatchOffer

log = logging.getLogger(__name__)

# rebuild(base, patch, out, size, deadline_s): makes `out` of `size` bytes, or raises AgentError.
Rebuild = Callable[[Path, Path, Path, int, float], Awaitable[None]]
# With these the patch is at fault, and blocks may do; with others, blocks would fail as well.
_FALLS_BACK = frozenset({"not-found", "refused", "chunk-mismatch", "file-mismatch"})
_DEADLINE_S, _BYTES_PER_S = 60.0, 500_000


class Patcher:
    """`spoilt`: the SHA-256 of patches that failed, which are not tried again while this process lives."""

    def __init__(
        self, staging: Path, pull: Pull, rebuild: Rebuild, on_disk: Callable[..., Awaitable[Any]], traffic: Traffic
    ) -> None:
        self._staging, self._pull, self._rebuild = staging, pull, rebuild
        self._on_disk, self._traffic = on_disk, traffic
        self.spoilt: set[str] = set()

    async def make(self, plan: Plan, base: Path, offer: PatchOffer) -> Path | None:
        """The file, verified, in staging; None when the patch was no good. Raises FetchError, OSError."""
        try:
            patch = await self._fetch(plan, offer)
            made = await self._make(plan, base, patch)
        except FetchError as error:
            if error.key not in _FALLS_BACK:
                raise
            made, why = None, str(error)
        except AgentError as error:
            made, why = None, str(error)
        else:
            why = "it makes another file"
        if made is None:
            self.spoilt.add(offer.sha256)
            log.warning("patch of no use, fetching the file: file=%s why=%s", plan.name, why)
        else:
            self._traffic.add("patched", plan.size - offer.size)
        return made

    async def _fetch(self, plan: Plan, offer: PatchOffer) -> Path:
        place = f"{plan.sha256}.{offer.sha256[:16]}"
        path = self._staging / place
        if await self._on_disk(lambda: path.is_file() and file_sha256(path) == offer.sha256):
            return path
        what = Plan.whole(f"patch of {plan.name}", offer.sha256, offer.size, place)
        partial = await self._on_disk(lambda: Partial(self._staging, what))
        try:
            await self._pull.run([partial], lambda count: None)
            finished: Path = await self._on_disk(partial.finish)
        finally:
            await self._on_disk(partial.close)
        return finished

    async def _make(self, plan: Plan, base: Path, patch: Path) -> Path | None:
        out = self._staging / f"{plan.sha256}.made"
        try:
            await self._on_disk(lambda: out.unlink(missing_ok=True))
            await self._rebuild(base, patch, out, plan.size, _DEADLINE_S + plan.size / _BYTES_PER_S)
            made: Path | None = await self._on_disk(lambda: _accept(plan, out, self._staging / plan.sha256))
        finally:
            await self._on_disk(lambda: out.unlink(missing_ok=True))
        await self._on_disk(lambda: patch.unlink(missing_ok=True))
        return made


def _accept(plan: Plan, out: Path, final: Path) -> Path | None:
    """Only the signed file gets its name."""
    if out.is_symlink() or out.stat().st_size != plan.size or file_sha256(out) != plan.sha256:
        return None
    handle = os.open(out, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(out, final)
    sync_folder(final.parent)
    return final
