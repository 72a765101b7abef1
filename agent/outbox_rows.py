"""The outbox's rows: what waits, by stream, as SQL in the agent's store. Who sends and who acks is not known here.

Functions over a connection, run by `AgentStore.run`, each in one transaction. `at` is a time by the outbox's own clock
(seconds that agents have run on this device), because a device's clock may begin in 1970 and jump. Called by
`agent.outbox`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modules.messages import MAX_BATCH_ITEMS, MAX_MESSAGE_BYTES, Stream

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
_OLDEST = "select seq, size, at from outbox where stream = ? order by seq"
_SIZES = "select seq, size from outbox where stream = ? and seq > ? order by seq limit ?"
_PAYLOADS = "select seq, payload from outbox where stream = ? and seq > ? and seq <= ? order by seq"
_TIME_ANEW = "update outbox set at = ? where at > ?"
_LATEST = "select coalesce(max(at), 0) from outbox"


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
    acknowledged. Then the oldest go that are beyond `limit_bytes`, or from before `horizon`. `dropped` was given up
    before it could get here.
    """

    held: Standing
    payloads: Sequence[tuple[bytes, float]]
    acked: int
    dropped: int
    limit_bytes: int
    horizon: float = float("-inf")

    @property
    def empty(self) -> bool:
        return not self.payloads and self.acked <= self.held.acked and not self.dropped


@dataclass
class Committed:
    """Where the streams stand now, and what was given up, by (stream, reason)."""

    held: dict[str, Standing]
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)


def standing(connection: sqlite3.Connection, stream: str) -> Standing:
    """Reads every row, behind its payload: at the start, not at every commit."""
    last_seq, acked, dropped = connection.execute(_MARKS, (stream,)).fetchone() or (0, 0, 0)
    count, size = connection.execute(_HELD, (stream, last_seq)).fetchone()
    return Standing(last_seq, acked, dropped, count, size)


def time_anew(connection: sqlite3.Connection, now: float) -> None:
    """Rows of a later time than now were written by another clock (agents before 0.2): they are of now."""
    if connection.execute(_LATEST).fetchone()[0] > now:
        connection.execute(_TIME_ANEW, (now, now))


def commit(
    connection: sqlite3.Connection, changes: Mapping[Stream, Change], total_bytes: int, first_to_go: Iterable[Stream]
) -> Committed:
    """Appends, forgets what was acknowledged, and keeps to the bounds of each stream and to that of all of them.

    Of all streams together, what is too much goes from the streams `first_to_go`, in that order.
    """
    done = Committed({})
    for stream, change in changes.items():
        done.held[stream] = _commit(connection, stream, change, done.drops)
    excess = sum(held.size for held in done.held.values()) - total_bytes
    for stream in first_to_go:
        if excess > 0:
            before = done.held[stream]
            done.held[stream] = _give_up(connection, stream, before, excess, done.drops, "total")
            excess -= before.size - done.held[stream].size
    return done


def begin_anew(connection: sqlite3.Connection, stream: str, acked: int) -> Standing:
    """Forgets what was acknowledged, and that it was: everything still held is sent as if for the first time."""
    connection.execute(_FORGET, (stream, acked))
    connection.execute(_BEGIN_ANEW, (stream,))
    return standing(connection, stream)


def next_batch(connection: sqlite3.Connection, stream: str, after: int, room: int) -> tuple[tuple[int, bytes], ...]:
    """The entries after a number that fit into `room` bytes, oldest first; one at least."""
    upto = after
    for seq, size in connection.execute(_SIZES, (stream, after, MAX_BATCH_ITEMS)):
        room -= size
        if room < 0 and upto > after:
            break
        upto = seq
    return tuple(connection.execute(_PAYLOADS, (stream, after, upto)))


def _commit(connection: sqlite3.Connection, stream: str, change: Change, drops: Counter[tuple[str, str]]) -> Standing:
    held = change.held
    if not change.empty:
        held = _append(connection, stream, change)
    held = _give_up(connection, stream, held, held.size - change.limit_bytes, drops, "bytes")
    return _age(connection, stream, held, change.horizon, drops)


def _append(connection: sqlite3.Connection, stream: str, change: Change) -> Standing:
    before, acked = change.held, max(change.held.acked, change.acked)
    gone, gone_bytes = connection.execute(_HELD, (stream, acked)).fetchone() if acked > before.acked else (0, 0)
    connection.execute(_FORGET, (stream, acked))
    numbered = enumerate(change.payloads, before.last_seq + 1)
    rows = [(stream, seq, payload, len(payload) + ENTRY_BYTES, at) for seq, (payload, at) in numbered]
    connection.executemany(_INSERT, rows)
    held = Standing(
        before.last_seq + len(rows),
        acked,
        before.dropped + change.dropped,
        before.count - gone + len(rows),
        before.size - gone_bytes + sum(row[3] for row in rows),
    )
    connection.execute(_KEEP, (stream, held.last_seq, held.acked, held.dropped))
    return held


def _give_up(
    connection: sqlite3.Connection,
    stream: str,
    held: Standing,
    excess: int,
    drops: Counter[tuple[str, str]],
    why: str,
) -> Standing:
    """Without the oldest rows, until `excess` bytes are gone."""
    count = size = upto = 0
    for seq, row_size, _ in connection.execute(_OLDEST, (stream,)) if excess > 0 else ():
        if size >= excess:
            break
        size, count, upto = size + row_size, count + 1, seq
    return _without(connection, stream, held, (count, size, upto), drops, why)


def _age(
    connection: sqlite3.Connection, stream: str, held: Standing, horizon: float, drops: Counter[tuple[str, str]]
) -> Standing:
    """Without the rows from before the horizon."""
    count = size = upto = 0
    for seq, row_size, at in connection.execute(_OLDEST, (stream,)) if horizon > 0 else ():
        if at >= horizon:
            break
        size, count, upto = size + row_size, count + 1, seq
    return _without(connection, stream, held, (count, size, upto), drops, "age")


def _without(
    connection: sqlite3.Connection,
    stream: str,
    held: Standing,
    cut: tuple[int, int, int],
    drops: Counter[tuple[str, str]],
    why: str,
) -> Standing:
    count, size, upto = cut
    if not count:
        return held
    connection.execute(_FORGET, (stream, upto))
    drops[stream, why] += count
    left = Standing(held.last_seq, held.acked, held.dropped + count, held.count - count, held.size - size)
    connection.execute(_KEEP, (stream, left.last_seq, left.acked, left.dropped))
    return left
