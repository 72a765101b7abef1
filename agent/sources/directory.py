"""Files of a folder as items: seen by inotify or by looking again, done once, remembered by the parent.

At least once: a file is noted after its prediction and its result, so it is predicted again only if the worker or the
device ended in between; its result then has the same name. A file counts as whole when it was closed or moved here
while we watched, or has not changed for `settle_s`.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from agent.backends import Array
from agent.sources.asking import AskError, Device
from agent.sources.content import Reader
from agent.sources.feed import as_item
from agent.sources.items import Item, Result, Writer
from agent.sources.notice import Notices
from agent.sources.talk import File, is_name
from modules.sources import Directory

WAIT_S = 0.25
MAX_LISTED = 200_000


class DirectoryIntake:
    """One folder."""

    dropped = 0

    def __init__(
        self, number: int, source: Directory, device: Device, reader: Reader, batched: Sequence[str], writer: Writer
    ) -> None:
        self._number = number
        self._source = source
        self._folder = Path(source.path)
        self._device = device
        self._reader = reader
        self._batched = batched
        self._writer = writer
        self._notices: Notices | None = None
        self._closed: set[str] = set()  # names that are whole, as we were told
        self._waiting: list[File] = []
        self._done: dict[str, File] = {}  # what the parent need not be asked about again
        self._next_look = 0.0

    def open(self) -> None:
        self._notices = Notices(self._folder)
        self._waiting, self._next_look = [], 0.0

    def take(self, most_rows: int) -> list[Item]:
        if not self._waiting:
            self._look()
        files, self._waiting = self._waiting[:most_rows], self._waiting[most_rows:]
        return [self._item(file) for file in files]

    def answered(self, item: Item, result: Result) -> None:
        file = item.token
        assert isinstance(file, File)  # noqa: S101 - ours
        if not item.repeat and self._source.results and is_name(name := f"{file.name}.json"):
            self._device.write(self._number, name, self._writer.json(result))

    def settled(self, items: Sequence[Item]) -> None:
        files = [item.token for item in items if not item.repeat and isinstance(item.token, File)]
        self._device.note(self._number, files)
        for file in files:
            self._done[file.name] = file

    def close(self) -> None:
        if self._notices is not None:
            self._notices.close()
            self._notices = None

    def _look(self) -> None:
        """Waits for news or the time to look again, then lists what is to do."""
        assert self._notices is not None  # noqa: S101 - opened
        now = time.monotonic()
        if now < self._next_look:
            news = self._notices.wait(min(WAIT_S, self._next_look - now))
            self._closed |= news
            if not news and time.monotonic() < self._next_look:
                return
        self._next_look = time.monotonic() + self._source.every_s
        whole = self._whole()
        fresh = self._device.fresh(self._number, whole) if whole else []
        self._done |= {file.name: file for file in set(whole) - set(fresh)}
        self._waiting = sorted(fresh, key=lambda file: (file.changed_ns, file.name))

    def _whole(self) -> list[File]:
        """The files that are whole and not known to be done. Raises OSError where the folder is not there."""
        found: list[File] = []
        there: set[str] = set()
        settled_ns = time.time_ns() - int(self._source.settle_s * 1e9)
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if len(there) >= MAX_LISTED:
                    raise AskError(f"{self._folder}: expected at most {MAX_LISTED} files")
                if not is_name(entry.name) or not fnmatch.fnmatchcase(entry.name, self._source.pattern):
                    continue
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    continue  # links could lead out of the folder
                there.add(entry.name)
                file = File(entry.name, status.st_size, status.st_mtime_ns)
                if self._done.get(entry.name) == file:
                    continue
                if entry.name in self._closed or status.st_mtime_ns <= settled_ns:
                    found.append(file)
                else:
                    self._next_look = min(self._next_look, time.monotonic() + max(0.05, self._source.settle_s))
        self._closed -= there
        self._done = {name: file for name, file in self._done.items() if name in there}
        return found

    def _item(self, file: File) -> Item:
        try:
            return as_item(file.name, self._inputs(file), self._batched, file, file.changed_ns / 1e9)
        except (OSError, ValueError) as error:
            return Item(file.name, {}, error=str(error), token=file)

    def _inputs(self, file: File) -> dict[str, Array]:
        if file.size > self._source.max_bytes:
            raise ValueError(f"expected at most {self._source.max_bytes} bytes, got {file.size}")
        handle = os.open(self._folder / file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as content:
            data = content.read(self._source.max_bytes + 1)
        if len(data) > self._source.max_bytes:
            raise ValueError(f"expected at most {self._source.max_bytes} bytes, got more")
        return self._reader.read(data)
