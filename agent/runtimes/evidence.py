"""What is kept of a module's crashes, and which modules are left alone because of them: STATE/evidence.

`<module>.json` has the last crashes, `<module>.quarantine` is there while the module is left alone: it ends with its
time, with another version, or when somebody removes it (`mooring-agent retry`). Written by `agent.runtimes.unit`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from pathlib import Path
from typing import TypeVar

import msgspec

from modules.errors import MALFORMED

MAX_CRASHES = 10  # of one module
MAX_LINES, MAX_LINE = 20, 200
MAX_FILE_BYTES = 256 * 1024

_Kept = TypeVar("_Kept")
_logger = logging.getLogger(__name__)


class Crash(msgspec.Struct, frozen=True):
    """One end of a worker that nobody wanted. `at` is seconds since the epoch by the device's clock, `request` the
    prediction under way where that was recorded, `memory` its peak and limit, `lines` what it printed last.
    """

    at: float
    version: int
    manifest_sha256: str
    key: str
    why: str
    exit_status: int | None = None
    signal: str = ""
    requests: int = 0
    memory: str = ""
    request: str = ""
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.why, self.memory and f"memory: {self.memory}", self.request and f"while it ran {self.request}"]
        return "; ".join(part for part in (*parts, self.lines[-1] if self.lines else "") if part)


class Quarantine(msgspec.Struct, frozen=True):
    """`until` is seconds since the epoch by the device's clock."""

    manifest_sha256: str
    until: float
    why: str = ""


class Crashes:
    """Counts them. Pure: time is the caller's."""

    def __init__(self, most: int, within_s: float) -> None:
        self._most = most
        self._within_s = within_s
        self._times: deque[float] = deque(maxlen=max(1, most))

    def note(self, now: float) -> bool:
        """Whether this one is one too many: `most` of them within the time. 0 is never too many."""
        self._times.append(now)
        full = self._most > 0 and len(self._times) == self._most
        if full and now - self._times[0] <= self._within_s:
            self._times.clear()
            return True
        return False


class Evidence:
    """The folder. A full or broken disk loses words, never a module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def crashes(self, name: str) -> tuple[Crash, ...]:
        """The oldest first; empty where there are none, or the file is damaged."""
        return self._read(f"{name}.json", tuple[Crash, ...]) or ()

    def note(self, name: str, crash: Crash) -> None:
        lines = tuple(line[:MAX_LINE] for line in crash.lines[-MAX_LINES:])
        kept = (*self.crashes(name), msgspec.structs.replace(crash, lines=lines))[-MAX_CRASHES:]
        self._write(f"{name}.json", kept)

    def hold(self, name: str, quarantine: Quarantine) -> None:
        self._write(f"{name}.quarantine", quarantine)

    def held(self, name: str, manifest_sha256: str, now: float, longest_s: float) -> Quarantine | None:
        """The quarantine that this version is in. A clock that was set back does not make it longer than that."""
        found = self._read(f"{name}.quarantine", Quarantine)
        if found is None or found.manifest_sha256 != manifest_sha256 or not now < found.until <= now + longest_s:
            return None
        return found

    def release(self, name: str) -> bool:
        """Whether it was held."""
        try:
            (self._folder / f"{name}.quarantine").unlink()
        except OSError:
            return False
        return True

    def _read(self, name: str, kind: type[_Kept]) -> _Kept | None:
        try:
            with (self._folder / name).open("rb") as file:
                return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=kind)
        except (OSError, *MALFORMED):
            return None

    def _write(self, name: str, value: object) -> None:
        fresh = self._folder / f".{name}.new"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
            os.replace(fresh, self._folder / name)
        except OSError as error:
            _logger.warning("evidence not kept", extra={"unit": name, "why": str(error)})
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
