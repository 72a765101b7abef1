"""The files in which workers keep their last predictions: made, sized and lent by the agent, written by the workers.

One per module digest, below `rings/`; it goes with its slot. Its room is taken on the disk before a worker maps it, so
that a disk that fills up later cannot end the worker. A worker that finds the file with another that still drains gets
one without a name, which ends with it. What lies in it is `agent.sampling.ring`'s. Blocking, and quick but for large
files. Called by `agent.runtimes.process`.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from modules.sampling import SamplingPolicy

DEFAULT_BYTES = 16 * 1024 * 1024

_logger = logging.getLogger(__name__)


class RingFile:
    """One file, open. `handle` is for the worker to inherit."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def fit(self, policy: SamplingPolicy) -> None:
        """As large as the policy says, for a worker that does not use it yet. What is left of another size goes."""
        wanted = size_of(policy)
        if os.fstat(self.handle).st_size != wanted:
            os.ftruncate(self.handle, 0)
            self.grow(policy)

    def grow(self, policy: SamplingPolicy) -> None:
        """The same for a worker that may use it: it only ever grows. Where the disk has no room, nothing is kept."""
        wanted, now = size_of(policy), os.fstat(self.handle).st_size
        if now:
            return  # the worker has mapped this much
        try:
            if wanted:
                os.posix_fallocate(self.handle, 0, wanted)
        except OSError as error:
            os.ftruncate(self.handle, 0)
            _logger.warning("no room to keep predictions for later", extra={"bytes": wanted, "why": str(error)})

    def close(self) -> None:
        os.close(self.handle)


class Rings:
    """The folder of files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, slot: str, policy: SamplingPolicy) -> RingFile | None:
        """The file of the module in the slot of this name; None where none can be made."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            ring = RingFile(self._open(slot))
            ring.fit(policy)
        except OSError as error:
            _logger.warning("a module runs without its ring", extra={"slot": slot, "why": str(error)})
            return None
        return ring

    def prune(self, slots: Path) -> None:
        """Removes the files of modules whose slots are gone."""
        for path in self._root.glob("*.ring") if self._root.is_dir() else ():
            if not (slots / path.stem).is_dir():
                path.unlink(missing_ok=True)

    def _open(self, slot: str) -> int:
        handle = os.open(self._root / f"{slot}.ring", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return os.open(self._root, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except BaseException:
            os.close(handle)
            raise
        return handle


def size_of(policy: SamplingPolicy) -> int:
    """Bytes of the ring that the policy wants."""
    return (policy.ring_bytes or DEFAULT_BYTES) if policy.ring_rows else 0
