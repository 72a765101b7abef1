"""Folders for what runtimes compile for this device: one per module digest, owned by its worker's user.

Each has a bound; one that has grown beyond it is emptied before the next worker starts, for what lies there can always
be compiled again. It goes with its slot. Blocking, and quick. Called by `agent.runtimes.process`.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from agent.slots import Slot

MAX_FILES = 10_000
_MIB = 1024 * 1024

_logger = logging.getLogger(__name__)


class Caches:
    """The folder of folders. `each_mib` is the bound of one module (0: there are none)."""

    def __init__(self, root: Path, each_mib: int) -> None:
        self._root = root
        self._each_bytes = each_mib * _MIB

    @property
    def each_bytes(self) -> int:
        return self._each_bytes

    def open(self, slot: Slot, uid: int) -> Path | None:
        """The folder of the module, which `uid` may write to (0: we ourselves). None where there is none: a module runs
        without, only slower to load. Modules with code of their own get none: they could fill the disk. Those of slots
        that are gone are removed.
        """
        self.prune(slot.path.parent)
        runtime = slot.manifest.runtime
        if not self._each_bytes or runtime.scripted or runtime.kind != "process":
            return None
        folder = self._root / slot.path.name
        try:
            self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
            if folder.is_symlink() or (folder.is_dir() and _too_large(folder, self._each_bytes)):
                _logger.info("emptying the cache of a module: it has grown too large", extra={"folder": folder.name})
                _remove(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
            owner = uid or os.geteuid()
            if folder.stat().st_uid != owner:  # another user's of before: what it has written is not believed
                _remove(folder)
                folder.mkdir(mode=0o700)
                os.chown(folder, owner, owner if uid else -1)
        except OSError as error:
            _logger.warning("a module runs without its cache", extra={"folder": folder.name, "why": str(error)})
            return None
        return folder

    def prune(self, slots: Path) -> None:
        """Removes the folders of modules whose slots are gone."""
        if not self._root.is_dir():
            return
        for folder in self._root.iterdir():
            if not (slots / folder.name).is_dir():
                _remove(folder)


def _too_large(folder: Path, most: int) -> bool:
    """On the disk; what goes meanwhile does not count."""
    total = 0
    for number, path in enumerate(folder.rglob("*")):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
        if total > most or number >= MAX_FILES:
            return True
    return False


def _remove(folder: Path) -> None:
    """Never follows a link."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
