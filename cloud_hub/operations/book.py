"""Long operations as they are kept: rows, and what may become of them. No tasks here. Called by `room`."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import NotFound
from cloud_hub.store.tables import operations

SLICE: Final = 500
MAX_DOING_CHARS: Final = 200
Kept = Row[Any]


class OperationState(enum.StrEnum):
    """From waiting to running to one of the others, which are ends."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # the hub was stopped meanwhile; what was done up to then stays

    @property
    def ended(self) -> bool:
        return self not in LIVE


LIVE: Final = (OperationState.WAITING, OperationState.RUNNING)


class Operation(msgspec.Struct, frozen=True):
    """Something that takes long. `doing` says for people what it is at, `done` of `total` how far (0: not known).

    Once `state` is done or failed, the answer to the request, with its `status`, is at `result`. It and the operation
    are forgotten at `expires_at`. Times are seconds since the epoch.
    """

    id: str
    kind: str
    request: str
    actor: str
    state: OperationState
    doing: str
    done: int
    total: int
    created_at: float
    ended_at: float | None
    expires_at: float | None
    status: int
    result: str


class Outcome(msgspec.Struct, frozen=True):
    """What was answered: `body`, or the file `blob` of `size` bytes."""

    status: int
    media: str
    body: bytes = b""
    blob: str | None = None
    size: int = 0


class New(msgspec.Struct, frozen=True):
    """What is asked for, and by whom. `owner` is who may see it."""

    kind: str
    request: str
    owner: str
    actor: str


async def add(connection: AsyncConnection, number: str, new: New, process: str, now: float) -> None:
    row = msgspec.structs.asdict(new) | {"id": number, "process": process, "created_at": now, "seen_at": now}
    empty = {"doing": "", "done": 0, "total": 0, "status": 0, "media": "", "size": 0}
    await connection.execute(insert(operations).values(**row, **empty, state=str(OperationState.WAITING)))


async def find(connection: AsyncConnection, number: str) -> Kept:
    """Raises NotFound `operation-not-found`."""
    row = (await connection.execute(select(operations).where(operations.c.id == number))).one_or_none()
    if row is None:
        raise unknown(number)
    return row


async def page(connection: AsyncConnection, owner: str, state: str, before: int, limit: int) -> list[Kept]:
    """Newest first, below the number `before` (0: from the newest). An empty owner or state is any."""
    query = select(operations).order_by(operations.c.number.desc()).limit(limit)
    conditions: list[ColumnElement[bool]] = []
    if owner:
        conditions.append(operations.c.owner == owner)
    if state:
        conditions.append(operations.c.state == state)
    if before:
        conditions.append(operations.c.number < before)
    return list(await connection.execute(query.where(*conditions)))


async def note(connection: AsyncConnection, number: str, now: float, **values: object) -> bool:
    """Writes what is new of one that goes on. False when it does not any more: somebody has ended it."""
    here = (operations.c.id == number) & operations.c.state.in_(LIVE)
    return bool((await connection.execute(update(operations).where(here).values(seen_at=now, **values))).rowcount)


async def end(
    connection: AsyncConnection, number: str, state: OperationState, now: float, outcome: Outcome | None = None
) -> bool:
    """As `note`. What has ended stays as it ended."""
    values: dict[str, object] = {"state": str(state), "ended_at": now}
    if outcome is not None:
        values |= {"status": outcome.status, "media": outcome.media, "blob": outcome.blob, "size": outcome.size}
        values["answer"] = None if outcome.blob else outcome.body
    return await note(connection, number, now, **values)


async def interrupt(connection: AsyncConnection, process: str, silent_since: float, now: float) -> int:
    """Ends what other processes were at and have not spoken of since `silent_since`. How many there were."""
    left = operations.c.state.in_(LIVE) & (operations.c.process != process) & (operations.c.seen_at <= silent_since)
    values = {"state": str(OperationState.INTERRUPTED), "ended_at": now}
    return (await connection.execute(update(operations).where(left).values(values))).rowcount


async def forget(connection: AsyncConnection, ended_before: float) -> int:
    """At most SLICE of them; how many."""
    old = select(operations.c.id).where(operations.c.ended_at < ended_before).limit(SLICE)
    return (await connection.execute(delete(operations).where(operations.c.id.in_(old)))).rowcount


async def trim(connection: AsyncConnection, owner: str, most: int) -> None:
    """Forgets the oldest of the owner's that have ended, so that `most` are left."""
    newest = select(operations.c.number).where(operations.c.owner == owner).order_by(operations.c.number.desc())
    last = (await connection.execute(newest.offset(most - 1).limit(1))).scalar_one_or_none()
    if last is not None:
        old = (operations.c.owner == owner) & (operations.c.number < last) & operations.c.ended_at.is_not(None)
        await connection.execute(delete(operations).where(old))


async def is_work(connection: AsyncConnection, process: str, silent_since: float, ended_before: float) -> bool:
    """Whether `interrupt` or `forget` would find anything."""
    left = operations.c.state.in_(LIVE) & (operations.c.process != process) & (operations.c.seen_at <= silent_since)
    query = select(operations.c.number).where(or_(left, operations.c.ended_at < ended_before)).limit(1)
    return (await connection.execute(query)).first() is not None


async def blobs_of_operations(connection: AsyncConnection) -> set[str]:
    """The files that hold results: what retention must leave."""
    rows = await connection.execute(select(operations.c.blob).where(operations.c.blob.is_not(None)))
    return set(rows.scalars())


def shown(row: Kept, keep_s: float, result: str) -> Operation:
    """`result` is the path at which the answer is."""
    state = OperationState(row.state)
    has_result = state in (OperationState.DONE, OperationState.FAILED)
    return Operation(
        id=row.id,
        kind=row.kind,
        request=row.request,
        actor=row.actor,
        state=state,
        doing=row.doing,
        done=row.done,
        total=row.total,
        created_at=row.created_at,
        ended_at=row.ended_at,
        expires_at=None if row.ended_at is None else row.ended_at + keep_s,
        status=row.status,
        result=result if has_result else "",
    )


def unknown(number: str) -> NotFound:
    return NotFound("operation-not-found", f"no operation {number[:40]!r}; it may have expired", id=number[:40])
