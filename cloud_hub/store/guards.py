"""What must hold, or be noted, in the very transaction with which a request begins to change something.

A condition that is checked before a change may hold no more when the change is made; one that is checked behind the
writer's lock holds until the commit. Whoever handles a request hangs its guards beside the call, because every change
may have some and no room does anything with them: `Store.write` runs them at the start of the first transaction that
commits. `api.etags` and `api.idempotency` hang them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy.ext.asyncio import AsyncConnection

Guard = Callable[[AsyncConnection], Awaitable[None]]


class Guards:
    """Of one request. `passed` as soon as a transaction has committed in which all of them ran."""

    def __init__(self) -> None:
        self.passed = False
        self._guards: list[Guard] = []

    def add(self, guard: Guard) -> None:
        """It raises to refuse: the transaction then changes nothing."""
        self._guards.append(guard)

    async def run(self, connection: AsyncConnection) -> None:
        """What the guards read through the store meanwhile, they read through this connection."""
        if not self.passed:
            for guard in self._guards:
                with reading_through(connection):
                    await guard(connection)


_guards: ContextVar[Guards | None] = ContextVar("guards", default=None)
_through: ContextVar[AsyncConnection | None] = ContextVar("through", default=None)


@contextmanager
def guarded(guards: Guards | None) -> Iterator[None]:
    """The changes made inside, in this task and those that it starts, pass the guards; None: no guards at all."""
    before = _guards.set(guards)
    try:
        yield
    finally:
        _guards.reset(before)


def guards_here() -> Guards | None:
    return _guards.get()


@contextmanager
def reading_through(connection: AsyncConnection | None) -> Iterator[None]:
    """Transactions that are opened inside are part of the one of `connection`; with None they are their own again."""
    before = _through.set(connection)
    try:
        yield
    finally:
        _through.reset(before)


def connection_here() -> AsyncConnection | None:
    return _through.get()
