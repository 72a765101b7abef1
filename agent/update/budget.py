"""Whether an update has room, before anything of it is downloaded: on the disk, and in memory for a spare worker.

New files, what is kept of the old ones, and a margin. What nobody needs is removed first, then the set that is kept
for a way back. Blocking; called by `agent.update.steps` while resolving.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config import AgentConfig
from agent.errors import UpdateError
from agent.installed import PROCESS, kept_as
from agent.slots import Slots
from agent.transfer.fetch import Fetcher
from modules.manifest import Manifest

MEMINFO = Path("/proc/meminfo")
_MIB = 1024 * 1024
_BLOCK = 512  # the unit of st_blocks, whatever the file system's

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Digests of manifests: `needed` whatever happens, `spare` for a way back."""

    needed: frozenset[str]
    spare: frozenset[str]


class Budget:
    """Looks at one state directory, which is on one file system."""

    def __init__(self, config: AgentConfig, staging: Path, slots: Slots, fetcher: Fetcher) -> None:
        self._margin = config.fetch.disk_margin_bytes
        self._check_memory = config.update.check_memory
        self._staging = staging
        self._slots = slots
        self._fetcher = fetcher

    def check_disk(self, new: Sequence[Manifest], kept: Kept) -> None:
        """Makes room where there is too little. Raises UpdateError `disk-budget` with the numbers."""
        need = self._need(new)
        for free_up in (self._remove_rubbish(new, kept.needed | kept.spare), self._remove_spare(kept)):
            if self._free() >= need + self._margin:
                return
            free_up()
        if (free := self._free()) < need + self._margin:
            text = (
                f"expected {_mib(need)} for new files and {_mib(self._margin)} to spare on the disk, got {_mib(free)} "
                f"free; {_mib(self._held(kept.needed))} are in modules that serve, nothing else can be removed"
            )
            raise UpdateError(text, "disk-budget")

    def check_memory(self, trial: Sequence[Manifest]) -> None:
        """That spare workers fit beside those that serve. Raises UpdateError `memory-budget` with the numbers."""
        need = sum(one.requires.memory_mib for one in trial if kept_as(one.runtime.kind) == PROCESS) * _MIB
        available = _available(MEMINFO)
        if self._check_memory and need and available is not None and available < need:
            text = f"expected {_mib(need)} of memory to try the new modules beside the old, got {_mib(available)}"
            raise UpdateError(text, "memory-budget")

    def _need(self, new: Sequence[Manifest]) -> int:
        """Bytes that are still to be written: downloads, and copies of what a slot has or two modules share."""
        need, seen = 0, set[str]()
        for manifest in new:
            for entry in manifest.files:
                again = entry.sha256 in seen or self._slots.find(entry.sha256) is not None
                seen.add(entry.sha256)
                need += entry.size if again else max(0, entry.size - self._staged(entry.sha256))
            if manifest.runtime.kind != PROCESS:  # unpacked beside its slot
                need += max(0, manifest.requires.disk_mib * _MIB - manifest.size)
        return need

    def _staged(self, sha256: str) -> int:
        """Bytes of a file that are on the disk already, in whatever state."""
        path = self._fetcher.path(sha256)
        return sum(allocated(one) for one in (path, path.with_name(f"{path.name}.part")))

    def _remove_rubbish(self, new: Sequence[Manifest], keep: Collection[str]) -> Callable[[], None]:
        def remove() -> None:
            self._slots.prune(keep)
            self._fetcher.clear(frozenset(entry.sha256 for manifest in new for entry in manifest.files))

        return remove

    def _remove_spare(self, kept: Kept) -> Callable[[], None]:
        def remove() -> None:
            if kept.spare - kept.needed:
                _logger.warning("no room for an update beside the modules that are kept for a way back: removing them")
                self._slots.prune(kept.needed)

        return remove

    def _held(self, digests: Collection[str]) -> int:
        folders = (self._slots.path(digest) for digest in digests)
        return sum(allocated(path) for folder in folders for path in folder.rglob("*"))

    def _free(self) -> int:
        space = os.statvfs(self._staging)
        return space.f_bavail * space.f_frsize


def allocated(path: Path) -> int:
    """What a file takes on the disk: one with holes is smaller than it says."""
    try:
        return path.lstat().st_blocks * _BLOCK
    except OSError:
        return 0


def _available(path: Path) -> int | None:
    """Bytes that a new process may have without pushing others out; None where the kernel does not say."""
    try:
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
