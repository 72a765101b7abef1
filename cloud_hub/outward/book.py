"""Webhooks and their deliveries as they are kept. Rows only: what is sent when is decided in `courier`."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.outward.choice import Choice
from cloud_hub.store.tables import cursors, deliveries, webhooks

State = Literal["active", "paused", "disabled"]
# waiting: failed so far, and is sent again; again: dead, and asked for once more by hand.
DeliveryState = Literal["waiting", "delivered", "dead", "again"]
MAX_SHOWN: Final = 1000
SLICE: Final = 1000


class Webhook(msgspec.Struct, frozen=True):
    """Where events go. `position` is the last event that it is done with; times are seconds since the epoch.

    `failures` counts attempts in a row that failed, since `failing_since`; `not_before` is the next one.
    """

    id: str
    url: str
    choice: Choice
    state: State
    reason: str
    created_at: float
    created_by: str
    failing_since: float | None
    failures: int
    not_before: float


class Sealed(msgspec.Struct, frozen=True):
    """The secrets of a webhook as they are kept, see `secrets`."""

    secret: bytes
    previous: bytes | None
    previous_until: float | None


class Standing(msgspec.Struct, frozen=True):
    """What a courier must know before each step. `again` is a dead delivery that was asked for by hand, 0 for none."""

    webhook: Webhook
    sealed: Sealed
    position: int
    again: int


class Delivery(msgspec.Struct, frozen=True):
    """What became of one event. `status` is that of HTTP, 0 where no answer came."""

    id: int
    webhook: str
    event: int
    kind: str
    state: DeliveryState
    attempts: int
    status: int
    reason: str
    first_at: float
    last_at: float


# --- webhooks ---------------------------------------------------------------------------------------------------------
async def insert_webhook(connection: AsyncConnection, webhook: Webhook, secret: bytes) -> None:
    values = msgspec.structs.asdict(webhook)
    choice = msgspec.to_builtins(values.pop("choice"))
    await connection.execute(insert(webhooks).values(**values, **choice, secret=secret))


async def find(connection: AsyncConnection, webhook: str) -> Webhook | None:
    row = (await connection.execute(select(webhooks).where(webhooks.c.id == webhook))).one_or_none()
    return None if row is None else _webhook(row)


async def standing(connection: AsyncConnection, webhook: str, cursor: str) -> Standing | None:
    """In one query: it is asked for all the time."""
    position = select(cursors.c.event).where(cursors.c.name == cursor).scalar_subquery()
    asked = (deliveries.c.webhook == webhook, deliveries.c.state == "again")
    again = select(func.min(deliveries.c.id)).where(*asked).scalar_subquery()
    query = select(webhooks, position.label("position"), again.label("again")).where(webhooks.c.id == webhook)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    return Standing(_webhook(row), _sealed(row), row.position or 0, row.again or 0)


async def every(connection: AsyncConnection) -> list[Webhook]:
    """Oldest first."""
    query = select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)
    return [_webhook(row) for row in await connection.execute(query)]


async def secrets_of(connection: AsyncConnection, webhook: str) -> Sealed | None:
    query = select(webhooks.c.secret, webhooks.c.previous, webhooks.c.previous_until)
    row = (await connection.execute(query.where(webhooks.c.id == webhook))).one_or_none()
    return None if row is None else Sealed(row.secret, row.previous, row.previous_until)


async def change(connection: AsyncConnection, webhook: str, **values: object) -> bool:
    """Whether there is such a webhook still."""
    done = await connection.execute(update(webhooks).where(webhooks.c.id == webhook).values(**values))
    return bool(done.rowcount)


async def remove(connection: AsyncConnection, webhook: str) -> None:
    """With all of its deliveries."""
    await connection.execute(delete(deliveries).where(deliveries.c.webhook == webhook))
    await connection.execute(delete(webhooks).where(webhooks.c.id == webhook))


# --- deliveries -------------------------------------------------------------------------------------------------------
async def delivery_of(connection: AsyncConnection, webhook: str, event: int) -> Delivery | None:
    query = select(deliveries).where(deliveries.c.webhook == webhook, deliveries.c.event == event)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _delivery(row)


async def put(connection: AsyncConnection, delivery: Delivery) -> None:
    """The one delivery of that webhook and event, new or in the place of what was known; its id is not looked at."""
    values = {name: value for name, value in msgspec.structs.asdict(delivery).items() if name != "id"}
    here = (deliveries.c.webhook == delivery.webhook, deliveries.c.event == delivery.event)
    if not (await connection.execute(update(deliveries).where(*here).values(values))).rowcount:
        await connection.execute(insert(deliveries).values(values))


async def newest(
    connection: AsyncConnection, webhook: str, state: DeliveryState | None = None, before: int = 0, limit: int = 100
) -> list[Delivery]:
    query = select(deliveries).where(deliveries.c.webhook == webhook).order_by(deliveries.c.id.desc())
    if state is not None:
        query = query.where(deliveries.c.state == state)
    if before:
        query = query.where(deliveries.c.id < before)
    return [_delivery(row) for row in await connection.execute(query.limit(min(limit, MAX_SHOWN + 1)))]


async def delivery(connection: AsyncConnection, number: int) -> Delivery | None:
    row = (await connection.execute(select(deliveries).where(deliveries.c.id == number))).one_or_none()
    return None if row is None else _delivery(row)


async def ask_again(connection: AsyncConnection, webhook: str, delivery: int | None) -> int:
    """One dead delivery, or with None all of them. How many."""
    here = [deliveries.c.webhook == webhook, deliveries.c.state == "dead"]
    if delivery is not None:
        here.append(deliveries.c.id == delivery)
    return (await connection.execute(update(deliveries).where(*here).values(state="again"))).rowcount


async def counts(connection: AsyncConnection) -> dict[tuple[str, str], int]:
    """Deliveries by webhook and state."""
    query = select(deliveries.c.webhook, deliveries.c.state, func.count()).group_by(
        deliveries.c.webhook, deliveries.c.state
    )
    return {(webhook, state): count for webhook, state, count in await connection.execute(query)}


async def forget(connection: AsyncConnection, delivered_before: float, dead_before: float) -> int:
    """Old ones, at most SLICE in one call. How many."""
    old = (deliveries.c.state == "delivered") & (deliveries.c.last_at < delivered_before)
    old |= (deliveries.c.state == "dead") & (deliveries.c.last_at < dead_before)
    found = list((await connection.execute(select(deliveries.c.id).where(old).limit(SLICE))).scalars())
    if found:
        await connection.execute(delete(deliveries).where(deliveries.c.id.in_(found)))
    return len(found)


def _webhook(row: Row[Any]) -> Webhook:
    choice = Choice(tuple(row.kinds), row.module, row.severity, row.scope)
    values = {name: getattr(row, name) for name in Webhook.__struct_fields__ if name != "choice"}
    return Webhook(**values, choice=choice)


def _sealed(row: Row[Any]) -> Sealed:
    return Sealed(row.secret, row.previous, row.previous_until)


def _delivery(row: Row[Any]) -> Delivery:
    return msgspec.convert(row, Delivery, from_attributes=True)
