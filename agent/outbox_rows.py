"""The outbox's rows: what waits, by stream, as SQL in the agent's store. Who sends and who acks is not known here.

Functions over a connection, run by `AgentStore.run`, each in one transaction. Called by `agent.outbox`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modules.messages import MAX_BATCH_ITEMS, MAX_MESSAGE_BYTES

# What an entry costs in a message beyond its payload, and what the message costs itself, both rounded up.
ENTRY_BYTES = 16
BATCH_BYTES = 1024
MAX_ITEM_BYTES = MAX_MESSAGE_BYTES - BATCH_BYTES - ENTRY_BYTES

_MARKS = "select last_seq, acked, dropped from streams where stream = ?"
_HELD = "select count(*), coalesce(sum(size), 0) from outbox where stream = ? and seq <= ?"
_KEEP = """insert into streams(stream, last_seq, acked, dropped) values(?, ?, ?, ?)
    on conflict(stream) do update set
        last_seq = excluded.last_seq, acked = excluded.acked, dropped = excluded.dropped"""
_INSERT = "insert into outbox(stream, seq, payload, size, at) values(?, ?, ?, ?, ?)"
_FORGET = "delete from outbox where stream = ? and seq <= ?"
_BEGIN_ANEW = "update streams set acked = 0 where stream = ?"
_OLDEST = "select seq, size from outbox where stream = ? order by seq"
_SIZES = "select seq, size from outbox where stream = ? and seq > ? order by seq limit ?"
_PAYLOADS = "select seq, payload from outbox where stream = ? and seq > ? and seq <= ? order by seq"


@dataclass(frozen=True)
class Standing:
    """Where a stream stands: the last number given, the last acknowledged, entries given up, rows and bytes held."""

    last_seq: int = 0
    acked: int = 0
    dropped: int = 0
    count: int = 0
    size: int = 0


@dataclass(frozen=True)
class Change:
    """What one commit does to a stream that stands at `held`: new payloads with their times, and what the hub has
    acknowledged.
    """

    held: Standing
    payloads: Sequence[tuple[bytes, float]]
    acked: int
    dropped: int
    limit_bytes: int


def standing(connection: sqlite3.Connection, stream: str) -> Standing:
    """Reads every row, behind its payload: at the start, not at every commit."""
    last_seq, acked, dropped = connection.execute(_MARKS, (stream,)).fetchone() or (0, 0, 0)
    count, size = connection.execute(_HELD, (stream, last_seq)).fetchone()
    return Standing(last_seq, acked, dropped, count, size)


def commit(connection: sqlite3.Connection, changes: Mapping[str, Change]) -> dict[str, Standing]:
    """Appends, forgets what was acknowledged, drops the oldest beyond the limit; where the streams stand then."""
    return {stream: _commit(connection, stream, change) for stream, change in changes.items()}


def begin_anew(connection: sqlite3.Connection, stream: str, acked: int) -> Standing:
    """Forgets what was acknowledged, and that it was: everything still held is sent as if for the first time."""
    connection.execute(_FORGET, (stream, acked))
    connection.execute(_BEGIN_ANEW, (stream,))
    return standing(connection, stream)


def next_batch(connection: sqlite3.Connection, stream: str, after: int) -> tuple[tuple[int, bytes], ...]:
    """The entries after a number that fit into one message, oldest first."""
    upto, room = after, MAX_MESSAGE_BYTES - BATCH_BYTES
    for seq, size in connection.execute(_SIZES, (stream, after, MAX_BATCH_ITEMS)):
        room -= size
        if room < 0:
            break
        upto = seq
    return tuple(connection.execute(_PAYLOADS, (stream, after, upto)))


def _commit(connection: sqlite3.Connection, stream: str, change: Change) -> Standing:
    before = change.held
    acked = max(before.acked, change.acked)
    gone, gone_bytes = connection.execute(_HELD, (stream, acked)).fetchone() if acked > before.acked else (0, 0)
    connection.execute(_FORGET, (stream, acked))
    numbered = enumerate(change.payloads, before.last_seq + 1)
    rows = [(stream, seq, payload, len(payload) + ENTRY_BYTES, at) for seq, (payload, at) in numbered]
    connection.executemany(_INSERT, rows)
    size = before.size - gone_bytes + sum(row[3] for row in rows)
    cut, cut_bytes = _shrink(connection, stream, size - change.limit_bytes)
    last_seq, dropped = before.last_seq + len(rows), before.dropped + change.dropped + cut
    connection.execute(_KEEP, (stream, last_seq, acked, dropped))
    return Standing(last_seq, acked, dropped, before.count - gone + len(rows) - cut, size - cut_bytes)


def _shrink(connection: sqlite3.Connection, stream: str, excess: int) -> tuple[int, int]:
    """Deletes the oldest rows until `excess` bytes are gone; how many rows and bytes that were."""
    count = size = upto = 0
    if excess <= 0:
        return count, size
    for seq, row_size in connection.execute(_OLDEST, (stream,)):
        if size >= excess:
            break
        size, count, upto = size + row_size, count + 1, seq
    connection.execute(_FORGET, (stream, upto))
    return count, size
