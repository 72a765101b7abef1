"""Commands as rows: written down before they are sent, ended by the device's result or by their time.

Functions over a connection; writing ones belong into the caller's transaction. Used by `commands` and by
`monitoring.committing`, where results arrive.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.store.bulk import insert_many
from cloud_hub.store.engine import among
from cloud_hub.store.tables import commands
from modules.bundle import DIGEST_PATTERN
from modules.commands import COMMAND_ID, Command, CommandResult
from modules.pieces import MAX_BLOB_BYTES

PENDING: Final = "pending"
GIVEN_UP: Final = ("expired", "cancelled")  # by the hub: the device may still have a word
MAX_TEXT: Final = 500
MAX_PENDING: Final = 100  # of one device


class AskedCommand(msgspec.Struct, frozen=True):
    """One command, and what became of it.

    `state`: pending (the device has not answered), done, refused, failed, expired or cancelled; `text` says why.
    `count` is how many things the device says it has sent of `found`, `arrived` how many of them are here. `batch`
    names those that were asked together. What it brought is a blob (gzip) of `result_size` bytes.
    """

    id: str
    device: str
    kind: str
    module: str
    asked: dict[str, Any]  # as the kind has it
    state: str
    created_at: float
    created_by: str
    expires_at: float
    sent_at: float | None
    ended_at: float | None
    key: str
    text: str
    count: int
    found: int
    arrived: int
    batch: str = ""
    result_sha256: str = ""
    result_size: int = 0


async def put(connection: AsyncConnection, asked: Sequence[AskedCommand], body: bytes) -> None:
    await insert_many(connection, commands, [{**msgspec.structs.asdict(one), "body": body} for one in asked])


async def get(connection: AsyncConnection, id_: str) -> AskedCommand | None:
    row = (await connection.execute(select(commands).where(commands.c.id == id_))).one_or_none()
    return None if row is None else to_asked(row)


async def listed(
    connection: AsyncConnection,
    device: str,
    module: str,
    state: str,
    limit: int,
    devices: Collection[str] | None = None,
    *,
    kind: str = "",
    batch: str = "",
    after: tuple[float, str] | None = None,
) -> list[AskedCommand]:
    """Newest first; empty texts mean any; with `devices` only theirs, with `after` those behind that time and id."""
    c = commands.c
    query = select(commands).order_by(c.created_at.desc(), c.id).limit(limit)
    for column, value in ((c.device, device), (c.module, module), (c.state, state), (c.kind, kind), (c.batch, batch)):
        if value:
            query = query.where(column == value)
    if after is not None:
        query = query.where((c.created_at < after[0]) | ((c.created_at == after[0]) & (c.id > after[1])))
    if devices is not None:
        query = query.where(among(commands.c.device, devices))
    return [to_asked(row) for row in await connection.execute(query)]


async def pending(
    connection: AsyncConnection,
    now: float,
    limit: int,
    devices: Collection[str] | None = None,
    sent_before: float | None = None,
) -> list[tuple[str, Command]]:
    """Commands that have no answer yet, each with its device; those that were sent longest ago first."""
    query = select(commands).where(commands.c.state == PENDING, commands.c.expires_at > now)
    if devices is not None:
        query = query.where(among(commands.c.device, devices))
    if sent_before is not None:
        query = query.where((commands.c.sent_at.is_(None)) | (commands.c.sent_at < sent_before))
    oldest = func.coalesce(commands.c.sent_at, 0.0)  # what was never sent first, whatever the database
    rows = await connection.execute(query.order_by(oldest, commands.c.created_at).limit(limit))
    return [(row.device, Command(row.id, row.kind, row.expires_at, bytes(row.body))) for row in rows]


async def sent(connection: AsyncConnection, ids: Sequence[str], now: float) -> None:
    if ids:
        await connection.execute(update(commands).where(among(commands.c.id, ids)).values(sent_at=now))


async def end(connection: AsyncConnection, device: str, result: CommandResult, now: float) -> bool:
    """Write down how it ended, the first time only. Whether it was pending, or had been given up unheard."""
    if not re.fullmatch(COMMAND_ID, result.id):
        return False
    change = (
        update(commands)
        .where(commands.c.id == result.id, commands.c.device == device, commands.c.state.in_((PENDING, *GIVEN_UP)))
        .values(
            state=result.outcome,
            ended_at=now,
            key=_plain(result.key)[:63],
            text=_plain(result.text)[:MAX_TEXT],
            count=max(0, min(result.count, 2**31 - 1)),
            found=max(0, min(result.found, 2**31 - 1)),
            result_sha256=result.sha256 if brings(result) else "",
            result_size=result.size if brings(result) else 0,
        )
    )
    return (await connection.execute(change)).rowcount > 0


def brings(result: CommandResult) -> bool:
    """Whether it names a blob that can be one."""
    return re.fullmatch(DIGEST_PATTERN, result.sha256) is not None and 0 < result.size <= MAX_BLOB_BYTES


async def cancel(connection: AsyncConnection, id_: str, now: float) -> bool:
    """Whether it was pending. A device that has it already may do it all the same: then its result counts."""
    text = "it was cancelled; a device that had it already may have done it"
    change = update(commands).where(commands.c.id == id_, commands.c.state == PENDING)
    change = change.values(state="cancelled", ended_at=now, key="cancelled", text=text)
    return (await connection.execute(change)).rowcount > 0


async def waiting_devices(connection: AsyncConnection, now: float, limit: int) -> set[str]:
    """Devices for which something waits."""
    query = select(commands.c.device).where(commands.c.state == PENDING, commands.c.expires_at > now)
    return set((await connection.execute(query.distinct().limit(limit))).scalars())


async def arrived(connection: AsyncConnection, device: str, counts: Mapping[str, int]) -> None:
    """So many things of each command have come."""
    for id_, count in counts.items():
        change = update(commands).where(commands.c.id == id_, commands.c.device == device)
        await connection.execute(change.values(arrived=commands.c.arrived + count))


async def counted(connection: AsyncConnection, now: float, devices: Collection[str]) -> dict[str, int]:
    """How many commands wait for each of the devices."""
    query = select(commands.c.device, func.count()).where(
        commands.c.state == PENDING, commands.c.expires_at > now, among(commands.c.device, devices)
    )
    rows = await connection.execute(query.group_by(commands.c.device))
    return {row[0]: row[1] for row in rows}


async def expire(connection: AsyncConnection, now: float, limit: int) -> list[AskedCommand]:
    """End what nobody has answered in time; what that was."""
    query = select(commands).where(commands.c.state == PENDING, commands.c.expires_at <= now).limit(limit)
    late = [to_asked(row) for row in await connection.execute(query)]
    if late:
        text = "the device did not answer in time"
        change = update(commands).where(among(commands.c.id, [one.id for one in late]), commands.c.state == PENDING)
        await connection.execute(change.values(state="expired", ended_at=now, key="expired", text=text))
    return late


async def forget(connection: AsyncConnection, before: float, limit: int) -> int:
    """Remove what was asked before then and has ended; how many at most `limit` there were."""
    query = select(commands.c.id).where(commands.c.created_at < before, commands.c.state != PENDING).limit(limit)
    old = list((await connection.execute(query)).scalars())
    if old:
        await connection.execute(delete(commands).where(among(commands.c.id, old)))
    return len(old)


def _plain(text: str) -> str:
    """A device's words, as any database takes them."""
    return "".join(c if c.isprintable() else " " for c in text)


def to_asked(row: Row[Any]) -> AskedCommand:
    return msgspec.convert(
        {field: getattr(row, field) for field in AskedCommand.__struct_fields__}, AskedCommand, from_attributes=True
    )
