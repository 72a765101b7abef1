"""The right to do what only one process may do, held for a while and taken over by another when it is not renewed.

A row holds who has it, a token that grows with each new holder, and until when by the database's clock; no process's
clock is compared with another's. A holder counts its own time from before it asked, so it gives up before another can
begin. What it writes is fenced all the same: each of its transactions checks the token under a lock that a new holder
must wait for, so nothing of an old holder comes after the first word of a new one. (Gray and Cheriton, Leases, 1989;
the token is Lamport's.) Without replicas it is held always, and costs nothing.

Built by `composition`; `service` keeps it and runs its tickers in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from sqlalchemy import ColumnElement, Float, and_, cast, extract, func, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import HubError, Unavailable
from cloud_hub.replicas.settings import ReplicasSettings
from cloud_hub.store.engine import Store, fenced_by
from cloud_hub.store.tables import leases

WORK: Final = "work"
RENEWALS: Final = 4  # in the life of a lease: three may fail
STOP_S: Final = 5.0
_log = logging.getLogger(__name__)


class Lease:
    """`keep` runs until cancelled; `run` runs work while it is held."""

    def __init__(self, store: Store, settings: ReplicasSettings, name: str = WORK) -> None:
        self._store = store
        self._name = name
        self._holder = settings.name
        self._lease_s = settings.lease_s
        self._token = 0  # 0: not held
        self._until = 0.0  # by the monotonic clock, sooner than by the database's
        self._changed = asyncio.Event()

    @property
    def alone(self) -> bool:
        """A hub of one process."""
        return not self._holder

    @property
    def held(self) -> bool:
        """Whether this process may go on with what only one may do."""
        return self.alone or (self._token > 0 and time.monotonic() < self._until)

    async def keep(self) -> None:
        """Takes the lease when it is free and renews it, until cancelled; then it is given back."""
        if self.alone:
            return
        try:
            while True:
                await self._try()
                pause_s = self._lease_s / RENEWALS * random.uniform(0.8, 1.0)
                if self._token:
                    pause_s = min(pause_s, max(0.0, self._until - time.monotonic()))
                await asyncio.sleep(pause_s)
        finally:
            await asyncio.shield(self._give_back())

    async def run(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        """Runs `work` whenever this process holds the lease, fenced; it is cancelled at once when it does not."""
        if self.alone:
            await work()
            return
        while True:
            await self._until_it_is(True)
            token = self._token
            with fenced_by(self._check(token)):
                task = asyncio.create_task(_all_of(work), name=name)
            try:
                lost = asyncio.create_task(self._until_it_is(False, token), name=f"{name}-lease")
                await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                lost.cancel()
                task.cancel()
                await asyncio.wait({task, lost}, timeout=STOP_S)
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                _log.error("%s failed and begins anew with the next lease", name, exc_info=error)
                await asyncio.sleep(self._lease_s / RENEWALS)

    async def _until_it_is(self, held: bool, token: int = 0) -> None:
        """Returns when the lease is held, or is no longer held under `token`."""
        while self.held != held and (not token or token == self._token):
            changed = self._changed
            left = None if held else max(0.0, self._until - time.monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await changed.wait()

    async def _try(self) -> None:
        asked = time.monotonic()
        try:
            async with asyncio.timeout(self._lease_s / RENEWALS):
                token = await (self._renew() if self._token else self._take())
        except (HubError, OSError, TimeoutError) as error:
            _log.warning("the lease could not be asked for: %s: %s", type(error).__name__, error)
            if self._token and not self.held:
                self._set(0, 0.0)
            return
        if token and self._token == 0:
            _log.info("this process does what only one may do", extra={"replica": self._holder, "token": token})
        elif not token and self._token:
            _log.warning("another process has the lease now", extra={"replica": self._holder})
        self._set(token, asked + self._lease_s)

    def _set(self, token: int, until: float) -> None:
        before = self._token if self.held else 0
        self._token, self._until = token, until
        if token != before:
            self._changed.set()
            self._changed = asyncio.Event()

    async def _renew(self) -> int:
        """The token again; 0 when another has taken over."""
        async with self._store.aside() as connection:
            until = _now(connection) + self._lease_s
            mine = and_(leases.c.name == self._name, leases.c.holder == self._holder, leases.c.token == self._token)
            done = await connection.execute(update(leases).where(mine).values(until=until))
            return self._token if done.rowcount else 0

    async def _take(self) -> int:
        """A new token when the lease is free, or was this process's in an earlier life; 0 when another has it."""
        async with self._store.aside() as connection:
            if self._is_others(await self._standing(connection)):
                return 0
            standing = await self._standing(connection, lock=True)
            until = _now(connection) + self._lease_s
            if standing is None:
                values = {"name": self._name, "holder": self._holder, "token": 1}
                with suppress(IntegrityError):  # another makes it at this moment, and has it then
                    async with connection.begin_nested():
                        await connection.execute(insert(leases).values(**values, until=until))
                        return 1
                return 0
            _, token, _ = standing
            if self._is_others(standing):
                return 0
            change = update(leases).where(leases.c.name == self._name)
            await connection.execute(change.values(holder=self._holder, token=token + 1, until=until))
            return token + 1

    def _is_others(self, standing: tuple[str, int, float] | None) -> bool:
        """Whether another holds it now."""
        return standing is not None and standing[0] != self._holder and standing[2] > 0

    async def _standing(self, connection: AsyncConnection, lock: bool = False) -> tuple[str, int, float] | None:
        """Holder, token and seconds left. With `lock` transactions of the holder, which check it, end first."""
        left = (leases.c.until - _now(connection)).label("left")
        query = select(leases.c.holder, leases.c.token, left).where(leases.c.name == self._name)
        row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
        return None if row is None else (row.holder, row.token, row.left)

    async def _give_back(self) -> None:
        """So that another need not wait. It may fail: the lease ends by itself."""
        token = self._token
        self._set(0, 0.0)
        if not token:
            return
        with suppress(HubError, OSError, TimeoutError):
            async with asyncio.timeout(STOP_S), self._store.aside() as connection:
                mine = and_(leases.c.name == self._name, leases.c.token == token)
                await connection.execute(update(leases).where(mine).values(until=0.0))

    def _check(self, token: int) -> Callable[[AsyncConnection], Awaitable[None]]:
        """What a transaction does first. Raises Unavailable `lease-lost`."""
        mine = and_(leases.c.name == self._name, leases.c.holder == self._holder, leases.c.token == token)
        query = select(leases.c.token).where(mine).with_for_update(read=True, key_share=True)

        async def check(connection: AsyncConnection) -> None:
            if (await connection.execute(query)).one_or_none() is None:
                raise Unavailable("lease-lost", f"replica {self._holder} has lost its lease; nothing was changed")

        return check


def is_left(connection: AsyncConnection) -> ColumnElement[bool]:
    """Of the rows of leases: those that are held."""
    return leases.c.until > _now(connection)


async def _all_of(work: Callable[[], Awaitable[object]]) -> None:
    await work()


def _now(connection: AsyncConnection) -> ColumnElement[float]:
    """The database's clock, in seconds since the epoch."""
    if connection.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Float)
    return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Float)
