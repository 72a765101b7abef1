"""Asking once more after a connection was lost: with jitter, for a while, and only what may be asked twice.

A hub that cannot be reached at the first try is told at once: most often its address is wrong. Used by `transport`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from cloud_hub.operator.errors import HubLost, HubUnreachable, Refused

RETRY_S: Final = 15.0  # a hub that is started anew needs some of it
FIRST_WAIT_S: Final = 0.2
MOST_WAIT_S: Final = 3.0
# The hub works on the same request, which came before.
_COMING: Final = ("request-under-way", "request-unanswered")
_Got = TypeVar("_Got")


async def persist(ask: Callable[[], Awaitable[_Got]], may_repeat: Callable[[], Awaitable[bool]]) -> _Got:
    """The first answer. Raises what the last try raised."""
    lost_at: float | None = None
    attempt = 0
    while True:
        try:
            return await ask()
        except HubLost:
            if lost_at is None:
                lost_at = time.monotonic()
            if not await _repeatable(may_repeat, lost_at) or _is_over(lost_at):
                raise
        except HubUnreachable:
            if lost_at is None or _is_over(lost_at):
                raise
        except Refused as error:
            if error.key not in _COMING or lost_at is None or _is_over(lost_at):
                raise
        attempt += 1
        await _pause(attempt)


async def _repeatable(may_repeat: Callable[[], Awaitable[bool]], lost_at: float) -> bool:
    """Asking whether it may be repeated may itself need more than one try."""
    attempt = 0
    while True:
        try:
            return await may_repeat()
        except HubUnreachable:
            if _is_over(lost_at):
                return False
        attempt += 1
        await _pause(attempt)


def _is_over(since: float) -> bool:
    return time.monotonic() - since > RETRY_S


async def _pause(attempt: int) -> None:
    """Full jitter, so that many clients of one hub do not come back together."""
    await asyncio.sleep(random.uniform(0, min(MOST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt, 10))))
