"""A little room on the disk, held back for a start on a full one.

Others fill the disk that the agent lives on. What serves goes on serving then, but an agent that starts needs some
kilobytes: SQLite makes files of its own to open the store, and without the store nobody knows what to serve. So a file
of noise is kept, and given back at a start that finds no room. Called by `agent.service`.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

NAME = ".reserve"
RESERVE_BYTES = 512 * 1024
LEAST_FREE_BYTES = 16 * 1024 * 1024  # below that the room is not ours to take

_logger = logging.getLogger(__name__)


def give_back(state: Path) -> None:
    """At a start, before anything is opened: frees the reserve where the disk has less room than that."""
    reserve = state / NAME
    with suppress(OSError):
        if reserve.exists() and free_bytes(state) < RESERVE_BYTES:
            reserve.unlink()
            _logger.warning("the disk is full, starting on the reserve", extra={"bytes": RESERVE_BYTES})


def keep(state: Path) -> None:
    """Makes the reserve where it is not whole and the disk has room. Cheap where there is nothing to do."""
    reserve = state / NAME
    try:
        if (reserve.exists() and reserve.stat().st_size == RESERVE_BYTES) or free_bytes(state) < LEAST_FREE_BYTES:
            return
        reserve.write_bytes(os.urandom(RESERVE_BYTES))  # zeros would take no room on some file systems
    except OSError as error:
        _logger.info("no reserve on the disk", extra={"why": str(error)})
        with suppress(OSError):
            reserve.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Raises OSError."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize
