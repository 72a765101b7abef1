"""Which files of a folder are done: on the disk before anybody is told so. Parent side, blocking; called in a thread.

One line of JSON per file, appended and synced; a last line that a power cut has torn is left out. Files that have gone
from the folder are forgotten when the log is written anew, which happens when it has twice as many lines as then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.files import sync_folder, write_durably
from agent.sources.talk import File
from modules.errors import MALFORMED

MAX_REMEMBERED = 200_000
LEAST_LINES = 1024  # below which writing anew is not worth it
_lines = msgspec.json.Decoder(File)


class MemoryFull(Exception):
    """The folder holds more files than can be remembered."""


class Memory:
    """Of one folder of one module. `log` is made on first use. Raises OSError."""

    def __init__(self, log: Path, folder: Path) -> None:
        self._log = log
        self._folder = folder
        self._done: dict[str, File] = {}
        self._written = self._kept = 0  # lines in all, and of them after it was written anew
        self._torn = False
        self._read()

    def fresh(self, files: Sequence[File]) -> tuple[int, ...]:
        """The numbers of those that are not done."""
        return tuple(number for number, file in enumerate(files) if self._done.get(file.name) != file)

    def note(self, files: Iterable[File]) -> None:
        """Returns when it is on the disk. Raises OSError, MemoryFull; then nothing is noted."""
        new = {file.name: file for file in files if self._done.get(file.name) != file}
        if not new:
            return
        if len(self._done) + len(new) > MAX_REMEMBERED:
            self._forget_gone()
            if len(self._done) + len(new) > MAX_REMEMBERED:
                raise MemoryFull(f"{self._folder}: expected at most {MAX_REMEMBERED} files; remove some")
        self._append(new.values())
        self._done |= new
        if self._torn or self._written > max(LEAST_LINES, 2 * self._kept):
            self._forget_gone()

    def _append(self, files: Iterable[File]) -> None:
        known = self._log.exists()
        lines = [msgspec.json.encode(file) + b"\n" for file in files]
        handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as log:
            log.write((b"\n" if self._torn else b"") + b"".join(lines))
            log.flush()
            os.fsync(log.fileno())
        if not known:
            sync_folder(self._log.parent)
        self._written += len(lines)

    def _forget_gone(self) -> None:
        """Writes the log anew with the files that are still there."""
        try:
            there = set(os.listdir(self._folder))
        except OSError:
            return  # not there now: say nothing about its files
        kept = {name: file for name, file in self._done.items() if name in there}
        write_durably(self._log, b"".join(msgspec.json.encode(file) + b"\n" for file in kept.values()))
        self._done, self._written, self._kept, self._torn = kept, len(kept), len(kept), False

    def _read(self) -> None:
        data = b""
        with suppress(FileNotFoundError):
            data = self._log.read_bytes()
        for line in data.split(b"\n"):
            with suppress(*MALFORMED):
                file = _lines.decode(line)
                self._done[file.name] = file
        self._written = data.count(b"\n")
        self._kept = len(self._done)
        self._torn = bool(data) and not data.endswith(b"\n")
