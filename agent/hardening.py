"""A program that holds a key leaves no copy of it behind: no core file, no look into its memory, no readable key file.

Called once by `agent.cli` before the agent runs, and by `doctor`. MOORING_ALLOW_DUMPS=1 in the environment leaves core
files and the memory open, for finding a fault or for measuring.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from collections.abc import Mapping

from agent.config import StatePaths
from agent.errors import ConfigError

ALLOW = "MOORING_ALLOW_DUMPS"
_PR_SET_DUMPABLE = 4


def keep_memory_private(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether it is so now. Workers, which are programs of their own, are not touched by it."""
    if environment.get(ALLOW) == "1":
        return False
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)


def check_private(paths: StatePaths) -> None:
    """Raises ConfigError `key-exposed` when somebody else on this machine could read a key of this device."""
    for path in sorted(paths.identity.rglob("*.key")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            text = f"{path}: expected a file that only its owner can read (0600), got {mode:04o}; the key is not used"
            raise ConfigError(f"{text}: chmod 600 it, and enrol anew if somebody may have read it", "key-exposed")
