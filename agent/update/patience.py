"""Waiting with an end: work that something else may make needless, and deadlines for which some time does not count.

Called by `agent.update.engine`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

LOOK_S = 5.0  # how exactly the time is kept


async def finished(work: Coroutine[Any, Any, None], *ends: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` came to its end before any of `ends` returned. Raises what `work` raises, or one of `ends`.

    Whatever happens, nothing of it goes on afterwards.
    """
    working = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait({working, *others}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            for end in others:
                if end.done():
                    end.result()
            return False
        working.result()
        return True
    finally:
        await _end([working, *others])


async def run_out(
    deadline_s: float,
    counts: Callable[[], bool],
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Returns once `deadline_s` have passed of the time that `counts`."""
    spent_s = 0.0
    while spent_s < deadline_s:
        began = clock()
        await pause(min(LOOK_S, deadline_s - spent_s))
        if counts():
            spent_s += clock() - began


async def _end(tasks: list[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # whoever wanted it has it
