"""A fleet in one SQLite file: identities and what devices know, so that a restart of the simulator is one of the fleet.

Devices that changed are written in groups, once a second, in a thread. After an end that was not in order (the process
was killed) each counts on from far ahead and sends its outbox under a new epoch, as a device does that lost its disk's
last second. Called by `run`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloud_hub.operator.errors import FileError
from cloud_hub.simulator.fleet import Member, Place
from cloud_hub.simulator.identity import Identity
from cloud_hub.simulator.state import DeviceState, Lane

EVERY_S = 1.0
AT_ONCE = 2000
AHEAD = 1000  # more reports than a device sends in the second that may be missing
_TABLES = """
CREATE TABLE IF NOT EXISTS place (body BLOB NOT NULL, clean INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS devices (
  device TEXT PRIMARY KEY, certificate BLOB NOT NULL, key BLOB NOT NULL, state BLOB NOT NULL
) WITHOUT ROWID;
"""


class Book:
    """`open` it, `load` or `begin`, `save` now and then, `close`. One process at a time."""

    def __init__(self, path: Path) -> None:
        """Raises FileError `state-unusable`."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=1.0)
            path.chmod(0o600)  # it holds the keys of the fleet
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise FileError("state-unusable", f"{path}: {error}; nothing was started") from error

    def size(self) -> int:
        """How many devices it keeps. Raises FileError `state-unusable`."""
        try:
            count: int = self._file.execute("SELECT count(*) FROM devices").fetchone()[0]
        except sqlite3.Error as error:
            raise FileError("state-unusable", f"{self._path}: {error}; nothing was started") from error
        return count

    def load(self) -> tuple[Place | None, list[Member]]:
        """Raises FileError `state-unusable`."""
        try:
            head = self._file.execute("SELECT body, clean FROM place").fetchone()
            if head is None:
                return None, []
            rows = self._file.execute("SELECT device, certificate, key, state FROM devices ORDER BY device").fetchall()
            self._file.execute("UPDATE place SET clean = 0")
            place = msgspec.msgpack.decode(head[0], type=Place)
            members = [Member(Identity(row[0], row[1], row[2]), _state(row[3])) for row in rows]
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise FileError("state-unusable", f"{self._path}: {error}; nothing was started") from error
        if not head[1]:
            for member in members:
                _renew(member.state)
        return place, members

    def add(self, place: Place, members: Sequence[Member]) -> None:
        rows = [(m.identity.device, m.identity.certificate, m.identity.key, _bytes(m.state)) for m in members]
        self._file.execute("BEGIN")
        self._file.execute("DELETE FROM place")
        self._file.execute("INSERT INTO place VALUES (?, 0)", (msgspec.msgpack.encode(place),))
        self._file.executemany("INSERT INTO devices VALUES (?, ?, ?, ?)", rows)
        self._file.execute("COMMIT")

    async def save(self, members: Sequence[Member]) -> None:
        """In groups; encoded here, because the states go on changing."""
        for start in range(0, len(members), AT_ONCE):
            rows = [(_bytes(m.state), m.identity.device) for m in members[start : start + AT_ONCE]]
            await asyncio.to_thread(self._write, rows)

    def close(self, clean: bool) -> None:
        """`clean`: everything was saved."""
        if clean:
            self._file.execute("UPDATE place SET clean = 1")
        self._file.close()

    def _write(self, rows: Sequence[tuple[bytes, str]]) -> None:
        self._file.execute("BEGIN")
        self._file.executemany("UPDATE devices SET state = ? WHERE device = ?", rows)
        self._file.execute("COMMIT")


def _bytes(state: DeviceState) -> bytes:
    return msgspec.msgpack.encode(state)


def _state(body: bytes) -> DeviceState:
    return msgspec.msgpack.decode(body, type=DeviceState)


def _renew(state: DeviceState) -> None:
    state.counter += AHEAD
    for lane in (state.window, state.event):
        if lane is not None:
            bodies = [body for _, body in lane.waiting]
            fresh = Lane.new()
            lane.epoch, lane.acked, lane.last = fresh.epoch, 0, len(bodies)
            lane.waiting = list(enumerate(bodies, 1))
