"""Waiting for a condition with a deadline: what tests do instead of sleeping for a guessed time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PAUSE_S = 0.02


async def until(condition: Callable[[], bool], what: str, deadline_s: float = 20.0) -> None:
    """Returns once `condition()` is true. Raises TimeoutError naming `what` when it is not by the deadline."""
    limit = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        await asyncio.sleep(PAUSE_S)


async def until_async(condition: Callable[[], Awaitable[bool]], what: str, deadline_s: float = 20.0) -> None:
    """As `until`, for a condition that must itself be awaited."""
    limit = time.monotonic() + deadline_s
    while not await condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        await asyncio.sleep(PAUSE_S)


def until_blocking(condition: Callable[[], bool], what: str, deadline_s: float = 20.0) -> None:
    """As `until`, for tests without an event loop: those that watch processes from outside."""
    limit = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        time.sleep(PAUSE_S)
